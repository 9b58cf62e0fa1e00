"""Dicts: a Python list of dicts, made by any code of your own, as a data set.

    {"image": "photos/1.jpg", "boxes": [[10, 20, 50, 80]], "labels": ["cat"]}

| key | value |
| --- | --- |
| `image` | a path below `root`, an encoded file's bytes, or an RGB uint8 array |
| `boxes` | `[n, 4]`, meaning what `convention` says |
| `labels` | names of classes, or numbers 0..C-1 into `classes` |
| `ignore` | optional: true for boxes that are neither object nor background |
| `id` | optional: what to call the image; else its position, counted from one |
"""

import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frcnn_jax.data.conventions import to_xyxy
from frcnn_jax.data.images import image_size
from frcnn_jax.data.source import Example, Source, clean_boxes

KEYS = {"image", "boxes", "labels", "ignore", "id"}


def load(
    *,
    split: str,
    dataset: Any = "",
    root: str = "",
    classes: Sequence[str] = (),
    convention: str = "xyxy",
) -> Source:
    """The dicts of a split.

    `dataset` is the dotted path of, or is itself, `{split: list}`, a function of the
    split that returns a list, or one list for every split (take parts of it: "[:100]").
    `classes` empty: every name found in any split of a `{split: list}`, sorted.
    """
    if isinstance(dataset, str):
        module, _, name = dataset.rpartition(".")
        if not module:
            raise ValueError(
                f"data.dataset={dataset!r}: give the dotted path of a list of dicts, "
                "as data.name=dicts:my_lab.animals.EXAMPLES"
            )
        dataset = getattr(importlib.import_module(module), name)
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise ValueError(f"no split {split!r}: there are {', '.join(dataset)}")
        classes = classes or _names([d for part in dataset.values() for d in part])
        dataset = dataset[split]
    elif callable(dataset):
        dataset = dataset(split)
    return from_dicts(dataset, root=root, classes=classes, convention=convention)


def from_dicts(
    dicts: Sequence[Mapping[str, Any]],
    *,
    root: str = "",
    classes: Sequence[str] = (),
    convention: str = "xyxy",
) -> Source:
    """A source made of dicts; ValueError names the one that is not as it should be."""
    classes = tuple(classes) or _names(dicts)
    report: list[str] = []
    examples = [
        _example(i, d, pathlib.Path(root), classes, convention, report)
        for i, d in enumerate(dicts, start=1)
    ]
    return Source(examples, classes, report=report)


def _names(dicts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    found = {label for d in dicts for label in d.get("labels", ())}
    if numbers := [label for label in found if not isinstance(label, str)]:
        raise ValueError(f"label {numbers[0]!r} is a number: name them in data.classes")
    return tuple(sorted(found))


def _example(
    position: int,
    d: Mapping[str, Any],
    root: pathlib.Path,
    classes: tuple[str, ...],
    convention: str,
    report: list[str],
) -> Example:
    image = d.get("image")
    name = str(d.get("id", image if isinstance(image, str) else position))
    if unknown := set(d) - KEYS:
        raise ValueError(f"{name}: unknown key {unknown.pop()!r} beside {sorted(KEYS)}")
    if isinstance(image, str | pathlib.Path):
        image = str(root / image)
        size = image_size(image)
    elif isinstance(image, bytes):
        size = image_size(image, name=name)
    elif isinstance(image, np.ndarray):
        size = (image.shape[0], image.shape[1])
    else:
        raise ValueError(f"{name}: image is {image!r}, expected a path, bytes or array")
    boxes = np.asarray(d.get("boxes", ()), np.float64)
    labels = list(d.get("labels", ()))
    ignore = np.asarray(d.get("ignore", [False] * len(labels)), bool)
    if boxes.size != 4 * len(labels) or ignore.shape != (len(labels),):
        raise ValueError(
            f"{name}: boxes of shape {boxes.shape}, {len(labels)} labels, ignore of "
            f"shape {ignore.shape}: expected [n, 4], n and n"
        )
    boxes = to_xyxy(boxes.reshape(-1, 4), convention, size)
    shown = [
        f"{c} ({', '.join(f'{v:g}' for v in b)})"
        for c, b in zip(labels, boxes, strict=True)
    ]
    boxes, keep = clean_boxes(boxes, size, shown, name, report)
    numbers = [_class(c, classes, name) for c in labels]
    return Example(
        image=image,
        image_id=d.get("id", position),
        boxes=boxes[keep],
        classes=np.array(numbers, np.int32)[keep],
        ignore=ignore[keep],
        size=size,
    )


def _class(label: Any, classes: tuple[str, ...], where: str) -> int:
    """The class 1..C of a name, or of a number 0..C-1."""
    if isinstance(label, str) and label in classes:
        return classes.index(label) + 1
    if not isinstance(label, str) and 0 <= int(label) < len(classes):
        return int(label) + 1
    raise ValueError(
        f"{where}: label {label!r} is not one of {', '.join(classes)} (nor a number "
        f"0..{len(classes) - 1}): add it to data.classes"
    )
