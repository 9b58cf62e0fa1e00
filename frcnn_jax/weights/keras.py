"""ImageNet weights of Keras' first ResNet-50 -> our variables.

The config that they need: `KERAS_RESNET50` and `KERAS_PIXELS` below.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from frcnn_jax.weights.files import read_arrays, shorten
from frcnn_jax.weights.tree import flatten, unflatten

# What a detector on the Keras weights needs: the group `backbone`, and the pixels. The
# network was trained on BGR minus the mean; `load_keras_resnet50` turns conv1 to RGB.
KERAS_RESNET50 = dict(name="resnet", depth=50, stride_in_1x1=True, norm_eps=1e-3)
KERAS_PIXELS = dict(pixel_mean=(123.68, 116.779, 103.939), pixel_std=(1.0, 1.0, 1.0))

_CLASSIFIER = re.compile(r"^(fc1000|predictions|probs)/")
_KERAS_LAYER = re.compile(r"(res|bn)([2-5])([a-z])_branch(1|2[abc])")
_KERAS_BRANCHES = {
    "1": ("shortcut", "shortcut_bn"),
    "2a": ("conv1", "bn1"),
    "2b": ("conv2", "bn2"),
    "2c": ("conv3", "bn3"),
}


def load_backbone(
    path: str | pathlib.Path, variables: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `variables` (of a detector) with the backbone's arrays read from `path`.

    Raises as `frcnn_jax.weights.load_backbone` does.
    """
    loaded = flatten(load_keras_resnet50(path))
    model = flatten(variables)
    in_head = {key for key in model if key[1:3] == ("box_head", "layer4")}
    to_head = {(key[0], "box_head", *key[1:]) for key in loaded} & in_head
    new = {}
    for (collection, *rest), value in loaded.items():
        head = (collection, "box_head", *rest)
        new[head if head in to_head else (collection, "backbone", *rest)] = value
    wanted = {key for key in model if key[1] == "backbone"} | in_head
    problems = [
        *(f"not in the file: {_name(k)}" for k in wanted - set(new)),
        *(f"not in the model: {_name(k)}" for k in set(new) - wanted),
        *(
            f"{_name(k)}: the file has shape {new[k].shape}, the model {model[k].shape}"
            for k in wanted & set(new)
            if new[k].shape != model[k].shape
        ),
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit the backbone (another depth or other stages?): "
            + shorten(sorted(problems))
        )
    filled = {key: jnp.asarray(value, jnp.float32) for key, value in new.items()}
    return unflatten({**model, **filled})


def load_keras_resnet50(path: str | pathlib.Path) -> dict[str, Any]:
    """Return `{"params": ..., "batch_stats": ...}` of `resnet.Backbone(depth=50)`.

    Reads an `.npz` with the names of Keras' first ResNet-50 (`conv1/kernel`,
    `res2a_branch2a/kernel`, `bn2a_branch1/gamma`, ...; other stage lengths work too).
    Float16 becomes float32; a convolution's bias b moves into its batch norm, whose
    mean becomes mean - b; the input channels of conv1 are reversed (BGR to RGB). The
    classifier is left out. Raises ValueError naming arrays that are not understood.
    """
    arrays = {
        name: array.astype(np.float32)
        for name, array in read_arrays(path).items()
        if not _CLASSIFIER.match(name)
    }
    places = {name: _keras_place(name) for name in arrays}
    unknown = sorted(name for name, place in places.items() if not place)
    if unknown or "conv1/kernel" not in arrays:
        raise ValueError(
            f"{path} is not a Keras ResNet: "
            + (f"cannot place {shorten(unknown)}" if unknown else "no conv1/kernel")
        )
    flat = {places[name]: array for name, array in arrays.items()}
    conv1 = ("params", "conv1", "kernel")
    flat[conv1] = flat[conv1][:, :, ::-1]
    for key in [k for k in flat if k[-1] == "conv_bias"]:
        mean = ("batch_stats", *key[1:-1], "mean")
        if mean not in flat:
            raise ValueError(f"{path}: a bias but no mean at {'/'.join(key[1:-1])}")
        flat[mean] = flat[mean] - flat.pop(key)
    return unflatten(flat)


def _keras_place(name: str) -> tuple[str, ...]:
    """Where an array of Keras goes: the key path, () when unknown.

    A convolution's bias goes to `conv_bias` of its norm, to be folded there.

    >>> _keras_place("res3b_branch2a/kernel")
    ('params', 'layer2', 'block1', 'conv1', 'kernel')
    >>> _keras_place("bn2a_branch1/moving_mean")
    ('batch_stats', 'layer1', 'block0', 'shortcut_bn', 'mean')
    """
    layer, _, array = name.partition("/")
    if layer in ("conv1", "bn_conv1"):
        block, branch, is_norm = (), "2a", layer == "bn_conv1"
    elif match := _KERAS_LAYER.fullmatch(layer):
        kind, stage, letter, branch = match.groups()
        block = (f"layer{int(stage) - 1}", f"block{ord(letter) - ord('a')}")
        is_norm = kind == "bn"
    else:
        return ()
    conv, norm = _KERAS_BRANCHES[branch]
    places: dict[tuple[bool, str], tuple[str, ...]] = {
        (False, "kernel"): ("params", *block, conv, "kernel"),
        (False, "bias"): ("params", *block, norm, "conv_bias"),
        (True, "gamma"): ("params", *block, norm, "scale"),
        (True, "beta"): ("params", *block, norm, "bias"),
        (True, "moving_mean"): ("batch_stats", *block, norm, "mean"),
        (True, "moving_variance"): ("batch_stats", *block, norm, "var"),
    }
    return places.get((is_norm, array), ())


def _name(key: tuple[str, ...]) -> str:
    return "/".join(key)
