"""Dicts: a Python list of dicts, made by any code of your own, as a data set.

    {"image": "photos/1.jpg", "boxes": [[10, 20, 50, 80]], "labels": ["cat"]}

| key | value |
| --- | --- |
| `image` | a path below `root`, an encoded file's bytes, or an RGB uint8 array |
| `boxes` | `[n, 4]`, meaning what `convention` says |
| `labels` | names of classes, or numbers 0..C-1 into `classes` |
| `ignore` | optional: true for boxes that are neither object nor background |
| `id` | optional: the image's id; without it the position, counted from one |
"""

import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frcnn_jax.data.conventions import to_xyxy
from frcnn_jax.data.folders import few
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

    `dataset` is a `{split: list}`, a function that takes the split and returns a list,
    or one list for all splits (parts of it are splits such as "all[:100]"). It may be
    the dotted path of one of these. If `classes` is empty, they are all names in all
    splits of a `{split: list}`, sorted.
    """
    if isinstance(dataset, str):
        module, _, name = dataset.rpartition(".")
        if not module:
            raise ValueError(
                f"data.dataset={dataset!r}: give the dotted path of a list of dicts, "
                "as data.name=dicts:my_lab.animals.EXAMPLES"
            )
        dataset = _imported(module, name)
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise ValueError(
                f"no split {split!r}: there are {few(dataset)}; set data.train_split "
                "and data.eval_split to some of these"
            )
        classes = classes or _names([d for part in dataset.values() for d in part])
        dataset = dataset[split]
    elif callable(dataset):
        dataset = dataset(split)
    return from_dicts(dataset, root=root, classes=classes, convention=convention)


def from_dicts(
    dicts: Sequence[Any],
    *,
    root: str = "",
    classes: Sequence[str] = (),
    convention: str = "xyxy",
) -> Source:
    """A source made of dicts; ValueError names the first that is wrong."""
    classes = tuple(classes) or _names(dicts)
    report: list[str] = []
    examples = [
        _example(i, d, pathlib.Path(root), classes, convention, report)
        for i, d in enumerate(dicts, start=1)
    ]
    return Source(examples, classes, report=report)


def _imported(module: str, name: str) -> Any:
    """The object of a dotted path; ValueError if the module has no such name."""
    found = importlib.import_module(module)
    if not hasattr(found, name):
        file = getattr(found, "__file__", None)
        raise ValueError(
            f"data.dataset='{module}.{name}': {module} ({file or 'no file'}) has no "
            f"{name!r}; define it there, or correct the path"
        )
    return getattr(found, name)


def _names(dicts: Sequence[Any]) -> tuple[str, ...]:
    found: set[str] = set()
    for position, d in enumerate(dicts, start=1):
        where = _where(d, position)
        for label in _labels(d, where):
            if not isinstance(label, str):
                raise ValueError(
                    f"{where}: label {label!r} is a number: name them in data.classes"
                )
            found.add(label)
    return tuple(sorted(found))


def _where(d: Any, position: int) -> str:
    """What to call a dict in a message: its id, its image's path, or its position."""
    if not isinstance(d, Mapping):
        raise ValueError(
            f"entry {position} is {repr(d)[:80]}, expected a dict with "
            f"{', '.join(sorted(KEYS))}: see frcnn_jax.data.sources.dicts"
        )
    image = d.get("image")
    return str(d.get("id", image if isinstance(image, str) else position))


def _labels(d: Mapping[str, Any], where: str) -> list[Any]:
    labels = d.get("labels", ())
    if isinstance(labels, str) or not isinstance(labels, Sequence | np.ndarray):
        raise ValueError(
            f"{where}: labels is {repr(labels)[:80]}, expected a list of names or "
            "numbers, one for each box"
        )
    return list(labels)


def _array(d: Mapping[str, Any], key: str, value: Any, kind: Any, where: str) -> Any:
    try:
        return np.asarray(d.get(key, value), kind)
    except (TypeError, ValueError) as error:
        form = "[n, 4]" if key == "boxes" else "n truths"
        raise ValueError(
            f"{where}: {key} is {repr(d[key])[:80]}, expected {form} ({error}): "
            "correct it"
        ) from None


def _example(
    position: int,
    d: Any,
    root: pathlib.Path,
    classes: tuple[str, ...],
    convention: str,
    report: list[str],
) -> Example:
    name, image = _where(d, position), d.get("image")
    if unknown := set(d) - KEYS:
        raise ValueError(
            f"{name}: unknown key {unknown.pop()!r}, expected {', '.join(sorted(KEYS))}"
            ": rename it or leave it out"
        )
    if isinstance(image, str | pathlib.Path):
        image = str(root / image)
        size = image_size(image)
    elif isinstance(image, bytes):
        size = image_size(image, name=name)
    elif isinstance(image, np.ndarray):
        size = (image.shape[0], image.shape[1])
    else:
        raise ValueError(
            f"{name}: image is {repr(image)[:80]}, expected a path, a file's bytes or "
            "an RGB uint8 array under the key 'image'"
        )
    boxes = _array(d, "boxes", (), np.float64, name)
    labels = _labels(d, name)
    ignore = _array(d, "ignore", [False] * len(labels), bool, name)
    if boxes.size != 4 * len(labels) or ignore.shape != (len(labels),):
        raise ValueError(
            f"{name}: boxes of shape {boxes.shape}, {len(labels)} labels, ignore of "
            f"shape {ignore.shape}: expected [n, 4], n and n; give one label for each "
            "box"
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
    if isinstance(label, int | np.integer) and 0 <= label < len(classes):
        return int(label) + 1
    raise ValueError(
        f"{where}: label {label!r} is not one of {few(classes)} (nor a number "
        f"0..{len(classes) - 1}): add it to data.classes"
    )
