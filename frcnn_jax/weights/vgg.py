"""ImageNet weights of VGG-16 in torchvision's names -> our variables, fc6 and fc7 too.

| file | config that it needs |
| --- | --- |
| torchvision's and timm's `vgg16` | the default pixels |
| Caffe's, under the same names | `backbone.bgr=True`, `pixel_std` of ones, its means |

The two files have the same names and shapes, so `families` accepts the settings of
either, but no mixture. Caffe's weights give the paper's results, torchvision's about
1 mAP less.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from frcnn_jax.weights.files import read_arrays, shorten
from frcnn_jax.weights.tree import flatten, unflatten

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of each stage; a pooling follows
CHANNELS = 512  # of the map that fc6 reads


def load_backbone(
    path: str | pathlib.Path, variables: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `variables` (of a detector) with VGG's arrays read from `path`.

    fc6 and fc7 are filled where the box head has them. Raises ValueError naming the
    arrays that are missing, have another shape or have no place.
    """
    arrays = _classifier_names(read_arrays(path))
    model: dict[Any, Any] = flatten(variables)
    filled, names = dict(model), _names(model)
    known = tuple(f"{name}." for name in names.values())
    problems = [
        f"not in the model: {name}"
        for name in arrays
        if not name.startswith(("classifier.", "head.", *known))
    ]
    for layer, name in names.items():
        for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
            key, source = ("params", *layer, ours), f"{name}.{theirs}"
            if source not in arrays:
                problems.append(f"not in the file: {source}")
                continue
            array, shape = arrays[source], model[key].shape
            value = _from_torch(array, pooled=layer[-1] == "fc6")
            if value.shape != shape:
                problems.append(
                    f"{source} has shape {array.shape}, {'/'.join(key)} needs {shape}"
                )
            filled[key] = jnp.asarray(value, jnp.float32)
    if problems:
        raise ValueError(f"{path} does not fit VGG-16: " + shorten(sorted(problems)))
    return unflatten(filled)


def _names(model: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, str], str]:
    """`("backbone", "conv2_1")` -> `features.5`: ReLUs and poolings are counted."""
    names, at = {}, 0
    for i, count in enumerate(CONVOLUTIONS, start=1):
        for j in range(1, count + 1):
            names["backbone", f"conv{i}_{j}"] = f"features.{at}"
            at += 2  # the convolution and its ReLU
        at += 1  # the pooling
    if ("params", "box_head", "fc6", "kernel") in model:
        names["box_head", "fc6"] = "classifier.0"
        names["box_head", "fc7"] = "classifier.3"
    return names


def _classifier_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm's fc6 and fc7, convolutions of the whole map, as torchvision's layers."""
    renamed = {}
    for name, array in arrays.items():
        if name.startswith("pre_logits."):
            name = name.replace("pre_logits.fc1.", "classifier.0.")
            name = name.replace("pre_logits.fc2.", "classifier.3.")
            array = array.reshape(len(array), -1) if array.ndim == 4 else array
        renamed[name] = array
    return renamed


def _from_torch(array: np.ndarray, *, pooled: bool) -> np.ndarray:
    """Kernels to HWIO and [in, out]; after RoIPool in the order (y, x, channel)."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 2 and pooled:
        side = round((array.shape[1] / CHANNELS) ** 0.5)
        maps = array.reshape(len(array), -1, side, side)
        return maps.transpose(2, 3, 1, 0).reshape(-1, len(array))
    return array.T
