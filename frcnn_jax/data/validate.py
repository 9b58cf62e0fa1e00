"""The checks that every source must pass, whoever wrote it.

source = validate(source)            # training, evaluation and check_dataset alike
check_trainable(source, "train")     # what the two roles of a split ask besides
check_evaluable(source, "val")
"""

import collections
import concurrent.futures
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from frcnn_jax.data.source import (
    Example,
    Mapped,
    Source,
    clean_boxes,
    example_size,
    name_of,
)


def validate(source: Source) -> Source:
    """The same source, every example of it checked; the pipeline takes no other.

    Refused with a ValueError that names the image: a class outside 1..C, boxes that are
    not finite or not ordered, areas that are not finite, two images with one id, and
    classes without names of their own. Clipped or dropped, and named in the report as
    the sources do: boxes that reach or lie outside of the image. A list is checked now
    (without reading an image whose example states its size), any other sequence as its
    examples are drawn.
    """
    if source.valid:
        return source
    _check_classes(source)
    if source.repeats is not None and len(source.repeats) != len(source):
        raise ValueError(
            f"the source has {len(source)} examples but {len(source.repeats)} repeats: "
            "give one for each, or None"
        )
    options: Any = dict(num_classes=len(source.classes), report=source.report)
    if isinstance(source.examples, list | tuple):
        examples = _check_list(source.examples, **options)
        check_ids([e.image_id for e in examples])
    else:
        change = functools.partial(check_example, **options)
        examples = Mapped(source.examples, change)
    return dataclasses.replace(source, examples=examples, valid=True)


def check_not_empty(source: Source, split: str) -> None:
    """ValueError where a training split has no image."""
    if not len(source):
        raise ValueError(f"data.train_split={split!r} has no image: name another split")


def check_trainable(source: Source, split: str) -> None:
    """ValueError where a split has no object to learn from; `split` names it."""
    check_not_empty(source, split)
    if not any((~example.ignore).any() for example in source.examples):
        raise ValueError(
            f"data.train_split={split!r} has {len(source)} images but not one object "
            "to learn from: see what its report says was dropped, or name another split"
        )


def check_evaluable(source: Source, split: str) -> None:
    """ValueError where a split cannot be evaluated on: no image, or an id twice."""
    if not len(source):
        raise ValueError(
            f"data.eval_split={split!r} has no image: name another split, or set "
            "data.eval_split='' to train without evaluation"
        )
    if not isinstance(source.examples, list | tuple):  # else checked by `validate`
        check_ids([e.image_id for e in source.examples])


def check_ids(ids: Sequence[int | str]) -> None:
    """ValueError names an image id that occurs more than once."""
    if len(set(ids)) < len(ids):
        twice, n = collections.Counter(ids).most_common(1)[0]
        first, second = [i for i, found in enumerate(ids) if found == twice][:2]
        raise ValueError(
            f"{n} images have the id {twice!r}, as examples {first} and {second}: give "
            "each image an id of its own"
        )


def check_example(
    example: Example, *, num_classes: int, report: list[str] | None = None
) -> Example:
    """One example as the pipeline wants it: arrays of the right type, boxes inside.

    Raises ValueError, and adds to `report`, as `validate` says.
    """
    report = [] if report is None else report
    image_id, image = _plain_id(example), example.image
    image = str(image) if isinstance(image, pathlib.Path) else image
    example = example._replace(image_id=image_id, image=image)
    name = _where(example)
    if not isinstance(image, str | bytes | np.ndarray):
        raise ValueError(
            f"{name} has an image of type {type(image).__name__}: expected a path, a "
            "file's bytes, or an RGB array"
        )
    if example.size is not None and np.shape(example.size) != (2,):
        raise ValueError(f"{name} has size {example.size!r}: expected (h, w), or None")
    boxes = _array(example.boxes, "boxes", name)
    boxes = boxes.reshape(-1, 4) if not boxes.size else boxes
    n = len(boxes)
    if boxes.shape != (n, 4) or boxes.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} has boxes of shape {boxes.shape}, {boxes.dtype}: expected numbers "
            "[n, 4], a row x1, y1, x2, y2"
        )
    found = _array(example.classes, "classes", name)
    ignore = _array(example.ignore, "ignore", name)
    area = None if example.area is None else _array(example.area, "area", name, float)
    for key, values in (("classes", found), ("ignore", ignore), ("area", area)):
        if values is not None and values.shape != (n,):
            raise ValueError(
                f"{name} has {n} boxes but {key} of shape {values.shape}: expected one "
                "for each box"
            )
    _check_numbers(boxes, found, area, num_classes, name)
    boxes = boxes.astype(np.float32)
    example = example._replace(
        boxes=boxes,
        classes=found.astype(np.int32),
        ignore=ignore.astype(bool),
        area=area,
    )
    return _inside(_with_size(example), report)


def _check_numbers(
    boxes: np.ndarray,
    found: np.ndarray,
    area: np.ndarray | None,
    num_classes: int,
    name: str,
) -> None:
    """ValueError names the first box with a wrong number."""
    finite = np.all(np.isfinite(boxes), axis=1)
    disordered = (boxes[:, 2:] < boxes[:, :2]).any(1)
    for i in np.flatnonzero(~finite | disordered)[:1]:
        what = "ends before it begins" if finite[i] else "is not finite"
        raise ValueError(
            f"{name}: box {i} {boxes[i].tolist()} {what}: expected x1, y1, x2, y2 in "
            "pixels with x1 < x2 and y1 < y2; correct it or leave it out "
            "(data.conventions.to_xyxy reads x, y, width, height)"
        )
    if found.size and found.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has classes of type {found.dtype}: expected whole numbers 1.."
            f"{num_classes}"
        )
    for i in np.flatnonzero((found < 1) | (found > num_classes))[:1]:
        why = (
            "0 is the background, which is never written: count classes from 1"
            if found[i] == 0
            else "correct it, or add the name to the source's classes"
        )
        raise ValueError(
            f"{name}: box {i} has class {found[i]}, expected 1..{num_classes}: {why}"
        )
    if area is not None:
        for i in np.flatnonzero(~np.isfinite(area) | (area < 0))[:1]:
            raise ValueError(
                f"{name}: box {i} has area {area[i]}: expected a finite number of "
                "pixels; correct it, or give area=None to take the boxes' own"
            )


def _inside(example: Example, report: list[str]) -> Example:
    """The example with its boxes clipped to the image, if its size is known."""
    if example.size is None or not len(example.boxes):
        return example
    h, w = example.size
    boxes = example.boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    if boxes.min() >= 0 and (boxes[:, 2:] <= (w, h)).all() and sides.min() > 0:
        return example
    labels = [
        f"box {i}, class {c} ({', '.join(f'{v:g}' for v in box)})"
        for i, (c, box) in enumerate(zip(example.classes, boxes, strict=True))
    ]
    lines: list[str] = []
    boxes, keep = clean_boxes(boxes, (h, w), labels, name_of(example), lines)
    report.extend(line for line in lines if line not in report)
    return example._replace(
        boxes=boxes[keep],
        classes=example.classes[keep],
        ignore=example.ignore[keep],
        area=None if example.area is None else example.area[keep],
    )


def _check_list(
    examples: Sequence[Example], num_classes: int, report: list[str]
) -> list[Example]:
    """Checks every example; one that needs no change is kept as it is.

    All numbers are tested at once first, so that large sets stay fast.
    """
    right = np.array([_has_right_types(e) for e in examples], bool)
    plain = [e for e, fine in zip(examples, right, strict=True) if fine]
    counts = [len(e.boxes) for e in plain]
    boxes = np.concatenate([_NO_BOX, *(e.boxes for e in plain)])
    found = np.concatenate([np.zeros(0, np.int32), *(e.classes for e in plain)])
    area = [np.ones(len(e.boxes)) if e.area is None else e.area for e in plain]
    area = np.concatenate([np.ones(0), *area])
    sizes = np.array([e.size for e in plain], np.float32).reshape(-1, 2)
    fine = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)  # no NaN
    fine &= (boxes[:, 2:] <= np.repeat(sizes[:, ::-1], counts, axis=0)).all(1)
    fine &= (found >= 1) & (found <= num_classes) & np.isfinite(area) & (area >= 0)
    owner = np.repeat(np.flatnonzero(right), counts)
    right[owner[~fine]] = False
    out, rest = list(examples), np.flatnonzero(~right).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # sizes in files' headers
        sized = list(pool.map(_with_size, [out[i] for i in rest]))
    for i, example in zip(rest, sized, strict=True):
        out[i] = check_example(example, num_classes=num_classes, report=report)
    return out


_NO_BOX = np.zeros((0, 4), np.float32)


def _has_right_types(e: Example) -> bool:
    """Whether no array needs to be converted and the size is known."""
    n = len(e.boxes)
    return (
        type(e.image_id) in (int, str)
        and isinstance(e.image, str | bytes | np.ndarray)
        and isinstance(e.size, tuple)
        and len(e.size) == 2
        and all(
            isinstance(values, np.ndarray)
            and (values.dtype, values.shape) == (np.dtype(kind), shape)
            for values, kind, shape in (
                (e.boxes, np.float32, (n, 4)),
                (e.classes, np.int32, (n,)),
                (e.ignore, bool, (n,)),
            )
        )
        and (e.area is None or isinstance(e.area, np.ndarray) and e.area.shape == (n,))
    )


def _with_size(example: Example) -> Example:
    """The example with its size, read from the image if need be; or as it is.

    An image that cannot be read raises no error here, but when it is used.
    """
    try:
        h, w = example_size(example)
        return example._replace(size=(int(h), int(w)))
    except (OSError, ValueError, TypeError):
        return example


def _array(values: Any, key: str, name: str, kind: Any = None) -> np.ndarray:
    """An array; ValueError names the image and the field that is none."""
    try:
        return np.asarray(values, np.float32 if kind is float else kind)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: {key} is {repr(values)[:80]}, expected an array, a row for each "
            f"box ({error}): correct it"
        ) from None


def _plain_id(example: Example) -> int | str:
    image_id = example.image_id
    if isinstance(image_id, str):
        return image_id
    if isinstance(image_id, int | np.integer) and not isinstance(image_id, bool):
        return int(image_id)
    raise ValueError(
        f"{_where(example)}: image_id is of type {type(image_id).__name__}, expected a "
        "whole number or a text"
    )


def _where(example: Example) -> str:
    """An image's id in quotes if it is a text, and its path."""
    path = f" ({example.image})" if isinstance(example.image, str) else ""
    return f"image {example.image_id!r}{path}"


def _check_classes(source: Source) -> None:
    names, ids = source.classes, source.category_ids
    if not names:
        raise ValueError("the source has no classes: name at least one")
    if wrong := [c for c in names if not isinstance(c, str) or not c.strip()]:
        raise ValueError(
            f"class name {wrong[0]!r} of the source: expected a text that is not empty"
        )
    if wrong := [i for i in ids if not isinstance(i, int | np.integer)]:
        raise ValueError(
            f"category id {wrong[0]!r} of the source: expected a whole number"
        )
    for what, values, cure in (
        (
            "the name",
            names,
            "rename one, or set data.merge_duplicates=True to take them as one class",
        ),
        ("the category id", ids, "give each class an id of its own"),
    ):
        value, n = collections.Counter(values).most_common(1)[0]
        if n > 1:
            raise ValueError(f"{n} classes have {what} {value!r}: {cure}")
