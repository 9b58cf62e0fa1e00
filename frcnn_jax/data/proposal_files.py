"""Files of proposals: boxes for every image of a data set, from any method.

An `.npz` of four arrays, m images with n proposals in all:

| array | shape | meaning |
| --- | --- | --- |
| `image_ids` | `[m]` text | the data set's image ids (7 is written "7") |
| `offsets` | `[m + 1]` int | image i has the rows `offsets[i]:offsets[i + 1]` |
| `boxes` | `[n, 4]` float32 | x1, y1, x2, y2: continuous pixels of the image on disk |
| `scores` | `[n]` float32 | higher is better; only their order is used |

Training reads any file with these four arrays: `data.proposals=FILE`.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from frcnn_jax import npz

ARRAYS = ("image_ids", "offsets", "boxes", "scores")


class Scored(NamedTuple):
    """The proposals of one image."""

    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, "n"]


NONE = Scored(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


def write(path: str | os.PathLike, proposals: Mapping[str, Scored]) -> None:
    """Write the proposals of images by their ids, atomically, making the folder."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [NONE, *proposals.values()]
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:  # given a name, savez would extend it
            np.savez(
                file,
                image_ids=np.array(list(proposals), str),
                offsets=np.cumsum([len(found.boxes) for found in rows]),
                boxes=np.concatenate([found.boxes for found in rows]),
                scores=np.concatenate([found.scores for found in rows]),
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike) -> dict[str, Scored]:
    """The proposals of every image, best first, from a file of any origin.

    FileNotFoundError, or ValueError that names the array that does not fit.
    """
    try:
        arrays = npz.read(path, ARRAYS)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no proposals file {path}: scripts/make_proposals.py writes one"
        ) from None
    _check(arrays, path)
    ids, offsets, boxes, scores = (arrays[name] for name in ARRAYS)
    found = {}
    for i, image_id in enumerate(ids.tolist()):
        rows = slice(offsets[i], offsets[i + 1])
        best = np.argsort(-scores[rows], kind="stable")
        found[str(image_id)] = Scored(
            boxes[rows][best].astype(np.float32), scores[rows][best].astype(np.float32)
        )
    return found


def _check(arrays: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise ValueError(f"{path} lacks {missing}: expected the arrays {ARRAYS}")
    ids, offsets, boxes, scores = (arrays[name] for name in ARRAYS)
    n = len(boxes)
    ends = offsets.shape == (len(ids) + 1,) and offsets[0] == 0 and offsets[-1] == n
    if not ends or np.any(np.diff(offsets) < 0):
        raise ValueError(
            f"{path}: offsets {offsets.shape} should rise from 0 to the {n} boxes, one "
            f"more than the {len(ids)} image_ids"
        )
    if len(set(ids.tolist())) != len(ids):
        raise ValueError(f"{path}: an image id is there twice")
    if boxes.shape != (n, 4) or scores.shape != (n,):
        raise ValueError(
            f"{path}: boxes {boxes.shape} and scores {scores.shape} should be [n, 4] "
            "and [n]"
        )
    wrong = ~(np.isfinite(boxes).all(1) & np.isfinite(scores))
    wrong |= (boxes[:, 2:] < boxes[:, :2]).any(1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"{path}: row {row} is {boxes[row]} with score {scores[row]}: expected "
            "finite numbers, x1 <= x2 and y1 <= y2"
        )
