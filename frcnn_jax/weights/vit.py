"""Plain Vision Transformers of timm -> our parameters (`models/vit.py`).

| file | what is left out |
| --- | --- |
| MAE, DINO and other ViT of ImageNet | the norm after the last block |
| DINOv2 | the mask token |
| Segment Anything's image encoder | its neck |

The class token and its position are left out unless the model has them, a classifier
(`head`, `fc_norm`) always. Positions of another grid are interpolated as timm does,
relative ones as Detectron2 and Segment Anything do (`ops.positions`). A file without
relative positions leaves them as they are.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from frcnn_jax.ops import positions
from frcnn_jax.weights.files import read_arrays, shorten
from frcnn_jax.weights.tree import Key, flatten, unflatten

MARKS = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}
IGNORED = re.compile(r"(mask_token|fc_norm\..*|head\..*|pre_logits\..*|neck\..*)$")
TOP = {
    "patch_embed.proj.weight": ("embed", "kernel"),
    "patch_embed.proj.bias": ("embed", "bias"),
    "norm.weight": ("out_norm", "scale"),
    "norm.bias": ("out_norm", "bias"),
}
PARTS = {
    "norm1.weight": ("norm1", "scale"),
    "norm1.bias": ("norm1", "bias"),
    "attn.qkv.weight": ("attention", "qkv", "kernel"),
    "attn.qkv.bias": ("attention", "qkv", "bias"),
    "attn.rel_pos_h": ("attention", "row_positions"),
    "attn.rel_pos_w": ("attention", "column_positions"),
    "attn.proj.weight": ("attention", "project", "kernel"),
    "attn.proj.bias": ("attention", "project", "bias"),
    "ls1.gamma": ("scale1", "scale"),
    "norm2.weight": ("norm2", "scale"),
    "norm2.bias": ("norm2", "bias"),
    "mlp.fc1.weight": ("mlp_expand", "kernel"),
    "mlp.fc1.bias": ("mlp_expand", "bias"),
    "mlp.fc2.weight": ("mlp_project", "kernel"),
    "mlp.fc2.bias": ("mlp_project", "bias"),
    "ls2.gamma": ("scale2", "scale"),
}
RELATIVE = ("row_positions", "column_positions")


def recognises(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether these are the names of a plain ViT."""
    return set(arrays) >= MARKS


def load_backbone(
    path: str | pathlib.Path, variables: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `variables` (of a detector) with the backbone's arrays read from `path`.

    Raises ValueError, naming the arrays, for a file that does not fill every array of
    the backbone, fills one with another shape, or holds arrays with no place in it.
    """
    model = flatten(variables)
    body = {key[2:]: leaf for key, leaf in model.items() if key[1] == "backbone"}
    found, problems = by_our_names(read_arrays(path), body)
    missing = [key for key in body if key not in found]
    if not any(key[-1] in RELATIVE for key in found):
        missing = [key for key in missing if key[-1] not in RELATIVE]
    problems += [f"not in the file: {'/'.join(key)}" for key in missing]
    for key, array in found.items():
        if array.shape != body[key].shape:
            name, shape = "/".join(key), body[key].shape
            problems.append(f"{name} has shape {array.shape}, the model needs {shape}")
    if problems:
        raise ValueError(f"{path} does not fit the model: " + shorten(sorted(problems)))
    filled = {
        ("params", "backbone", *key): jnp.asarray(array, jnp.float32)
        for key, array in found.items()
    }
    return unflatten({**model, **filled})


def by_our_names(
    arrays: Mapping[str, np.ndarray], body: Mapping[Key, Any]
) -> tuple[dict[Key, np.ndarray], list[str]]:
    """The arrays of a file under our names and in our layouts, and what has no place.

    `body` are the backbone's own: positions become as large as they are there.
    """
    found: dict[Key, np.ndarray] = {}
    problems = []
    for name, array in arrays.items():
        if name in ("pos_embed", "cls_token"):
            continue
        key = place(name)
        if key is not None and key in body:
            found[key] = _in_our_layout(key, np.asarray(array, np.float32), body[key])
        elif not IGNORED.search(name) and not name.startswith("norm."):
            problems.append(f"not in the model: {name}")
    has_token = ("class_token",) in body
    if "cls_token" in arrays and has_token:
        found["class_token",] = np.asarray(arrays["cls_token"], np.float32).reshape(-1)
    if "pos_embed" in arrays:
        token, grid = split_positions(arrays["pos_embed"], "cls_token" in arrays)
        if ("positions",) in body:
            found["positions",] = resized(grid, body["positions",].shape)
        else:
            problems.append("not in the model: pos_embed (model.backbone.positions=0)")
        if has_token and token is not None:
            found["class_position",] = token
    return found, problems


def place(name: str) -> Key | None:
    """Where an array of timm's stands in our backbone.

    >>> place("blocks.3.mlp.fc1.weight")
    ('block3', 'mlp_expand', 'kernel')
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        return TOP.get(name)
    part = PARTS.get(match[2])
    return part and (f"block{match[1]}", *part)


def split_positions(
    array: np.ndarray, class_token: bool
) -> tuple[np.ndarray | None, np.ndarray]:
    """The class token's position `[c]`, or None, and the grid `[p, q, c]`.

    >>> split_positions(np.zeros((1, 1 + 6 * 6, 2)), True)[1].shape
    (6, 6, 2)
    """
    array = np.asarray(array, np.float32)[0]
    if array.ndim == 3:
        return None, array
    side = round(len(array) ** 0.5)
    token = None
    if class_token and side * side != len(array):
        token, array = array[0], array[1:]
        side = round(len(array) ** 0.5)
    if side * side != len(array):
        raise ValueError(
            f"pos_embed has {len(array)} positions: expected those of a square grid"
        )
    return token, array.reshape((side, side, -1))


def resized(grid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The grid `[p, q, c]` of positions on `shape`."""
    h, w = shape[:2]
    return np.asarray(positions.absolute(jnp.asarray(grid), (h, w)))


def _in_our_layout(key: Key, array: np.ndarray, ours: Any) -> np.ndarray:
    if key == ("embed", "kernel"):
        return array.transpose((2, 3, 1, 0))
    if key[-1] == "kernel":
        return array.T
    if key[-1] in RELATIVE and len(array) != len(ours):
        n = (len(ours) + 1) // 2
        rows = np.asarray(positions.relative(jnp.asarray(array), n))
        return np.concatenate([rows[0, ::-1], rows[1:, 0]])  # offsets 1 - n to n - 1
    return array
