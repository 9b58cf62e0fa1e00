"""Annotation and detection files in COCO's JSON format, checked on every way in and out.

    annotations {"images":      [{"id", "file_name", "height", "width"}, ...],
                 "categories":  [{"id", "name"}, ...],
                 "annotations": [{"image_id", "category_id", "bbox", "iscrowd"}, ...]}
    detections  [{"image_id", "category_id", "bbox", "score"}, ...]

| name | meaning |
| --- | --- |
| bbox | `[x, y, width, height]`, pixels of the original image, continuous |
| image_id | int or str; both files must write it alike (`7` is not `"7"`) |
| category_id | the file's own id, any int: class c of the network is `category_ids[c - 1]` |
| iscrowd, ignore, area, id | optional: 0, 0, width * height and the position |

A file that does not fit raises `ValueError`: which entry, which key, what was expected,
and the cure. Files are written under another name and renamed: a reader never sees half
a file, and a failed write keeps the old one.
"""  # noqa: E501

import json
import math
import os
import pathlib
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from frcnn_jax.types import Detections

PathLike = str | os.PathLike[str]


class Table(NamedTuple):
    """The entries of a file as arrays: ids become positions, bboxes become corners."""

    image: Int[np.ndarray, " n"]  # position among the sorted image ids
    category: Int[np.ndarray, " n"]  # position in annotations["categories"]
    boxes: Float[np.ndarray, "n 4"]  # (x1, y1, x2, y2)


def read_annotations(path: PathLike) -> dict:
    """Read and check a COCO annotation file; raises ValueError naming what is wrong."""
    annotations = _read_json(path)
    check_annotations(annotations, source=str(path))
    return annotations


def write_annotations(path: PathLike, annotations: dict) -> None:
    """Check annotations and write them atomically, making the folder if need be."""
    check_annotations(annotations)
    _write_json(path, annotations)


def read_detections(path: PathLike, annotations: dict | None = None) -> list[dict]:
    """Read and check a COCO results file, against its annotations where given."""
    detections = _read_json(path)
    check_detections(detections, annotations, source=str(path))
    return detections


def write_detections(
    path: PathLike, detections: list[dict], annotations: dict | None = None
) -> None:
    """Check detections and write them atomically, making the folder if need be."""
    check_detections(detections, annotations)
    _write_json(path, detections)


def to_results(
    detections: Detections,
    image_id: int | str,
    image_size: Sequence[int] | np.ndarray,
    original_size: Sequence[int] | np.ndarray,
    category_ids: Sequence[int],
) -> list[dict]:
    """Turn one image's detections into COCO results in pixels of the original image.

    `x = x_network * original_width / width`, likewise y, clipped to the image.

    Args:
        detections: of ONE image (`boxes [n, 4]`, the others `[n]`), in network pixels;
            rows that are not valid are left out, whatever they hold.
        image_id: the image's id in the annotations.
        image_size: (h, w) in the network, before padding.
        original_size: (h, w) of the image on disk.
        category_ids: the annotations' id of class 1, 2, ...

    Raises:
        ValueError: a valid row has a class outside 1..C.

    >>> found = Detections(
    ...     boxes=np.array([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 0.0, 0.0]]),
    ...     scores=np.array([0.5, 0.0]),
    ...     classes=np.array([2, 0]),
    ...     valid=np.array([True, False]),
    ... )
    >>> to_results(found, 7, (100, 100), (50, 200), category_ids=(3, 18))
    [{'image_id': 7, 'category_id': 18, 'bbox': [20.0, 10.0, 40.0, 20.0], 'score': 0.5}]
    """
    valid = np.asarray(detections.valid)
    classes = np.asarray(detections.classes)[valid]
    scores = np.asarray(detections.scores)[valid]
    if classes.size and not 1 <= classes.min() <= classes.max() <= len(category_ids):
        raise ValueError(
            f"image {image_id!r}: found classes {classes.min()}..{classes.max()} among "
            f"the valid detections, expected 1..{len(category_ids)}: category_ids must "
            "list one id for each class of the network"
        )
    height, width = (float(s) for s in original_size)
    scale = np.array([width, height]) / np.asarray(image_size, float)[::-1]
    boxes = np.asarray(detections.boxes, float)[valid] * np.tile(scale, 2)
    boxes = np.clip(boxes, 0.0, [width, height, width, height])
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[c - 1]),
            "bbox": box,
            "score": float(score),
        }
        for c, box, score in zip(classes, boxes.tolist(), scores, strict=True)
    ]


def to_table(entries: list[dict], annotations: dict) -> Table:
    """Gather checked annotation or detection entries into arrays, in the file's order.

    Images are counted in the order of their ids (text after numbers), in which COCO's
    evaluation breaks ties between equal scores.
    """
    ids = (image["id"] for image in annotations["images"])
    images = {i: n for n, i in enumerate(sorted(ids, key=lambda i: (_is_text(i), i)))}
    categories = {c["id"]: n for n, c in enumerate(annotations["categories"])}
    boxes = np.array([e["bbox"] for e in entries], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Table(
        image=np.array([images[e["image_id"]] for e in entries], int),
        category=np.array([categories[e["category_id"]] for e in entries], int),
        boxes=boxes,
    )


# ---------------------------------------------------------------------------- checks


def check_annotations(annotations: Any, *, source: str = "annotations") -> None:
    """Raise ValueError unless this is a COCO annotation dict, whole and consistent."""
    if not isinstance(annotations, dict):
        raise ValueError(
            f"{source}: expected an object with images, categories and annotations, "
            f"found {_describe(annotations)}: is this a detections file?"
        )
    for key in ("images", "categories", "annotations"):
        if not isinstance(annotations.get(key), list):
            raise ValueError(
                f"{source}: '{key}' should be a list, found "
                f"{_describe(annotations.get(key))}: write a COCO annotation file"
            )
    images = _unique(annotations["images"], "id", f"{source}.images")
    categories = _unique(annotations["categories"], "id", f"{source}.categories")
    _unique(annotations["categories"], "name", f"{source}.categories")
    for n, entry in enumerate(annotations["annotations"]):
        where = f"{source}.annotations[{n}]"
        _check_keys(entry, ("image_id", "category_id", "bbox"), where)
        _check_known(entry, "image_id", images, where)
        _check_known(entry, "category_id", categories, where)
        _check_box(entry["bbox"], where)
        if not _is_number(entry.get("area", 0)):
            raise ValueError(
                f"{where}: area should be a finite number, found {entry['area']!r}: "
                "correct it, or leave it out to have width * height"
            )


def check_detections(
    detections: Any, annotations: dict | None = None, *, source: str = "detections"
) -> None:
    """Raise ValueError unless this is a COCO results list (of these annotations)."""
    if not isinstance(detections, list):
        raise ValueError(
            f"{source}: expected a list of results, each with image_id, category_id, "
            f"bbox and score, found {_describe(detections)}: is it an annotation file?"
        )
    known = annotations or {}
    images = {i["id"] for i in known["images"]} if known else None
    categories = {c["id"] for c in known["categories"]} if known else None
    for n, entry in enumerate(detections):
        where = f"{source}[{n}]"
        _check_keys(entry, ("image_id", "category_id", "bbox", "score"), where)
        _check_known(entry, "image_id", images, where)
        _check_known(entry, "category_id", categories, where)
        _check_box(entry["bbox"], where)
        if not _is_number(entry["score"]):
            raise ValueError(
                f"{where}: score should be a finite number, found {entry['score']!r}: "
                "look for NaN in the network that wrote it (a diverged training?)"
            )


def _unique(entries: list, key: str, where: str) -> set:
    seen = set()
    for n, entry in enumerate(entries):
        _check_keys(entry, (key,), f"{where}[{n}]")
        _check_id(entry[key], key, f"{where}[{n}]")
        if entry[key] in seen:
            raise ValueError(
                f"{where}[{n}]: {key} {entry[key]!r} is there twice: give each entry "
                f"its own {key}"
            )
        seen.add(entry[key])
    return seen


def _check_keys(entry: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(
            f"{where}: expected an object with {', '.join(keys)}, "
            f"found {_describe(entry)}: write one object for each entry"
        )
    for key in keys:
        if key not in entry:
            found = ", ".join(map(str, entry)) or "none"
            raise ValueError(
                f"{where}: key '{key}' is missing (found {found}): every entry needs it"
            )


def _check_id(value: Any, key: str, where: str) -> None:
    if not isinstance(value, int | str | np.integer):
        raise ValueError(
            f"{where}: {key} should be an int or str, found {_describe(value)}: "
            "write ids as the annotation file has them"
        )


def _check_known(entry: dict, key: str, known: Container | None, where: str) -> None:
    value = entry[key]
    _check_id(value, key, where)
    if known is None or value in known:
        return
    other = str(value)
    if not _is_text(value):
        twin = other
    else:
        twin = int(other) if other.lstrip("-").isdecimal() else None
    raise ValueError(
        f"{where}: {key} {value!r} is not in the annotations: "
        + (
            f"they have {twin!r}, so write {key} as {type(twin).__name__}"
            if twin is not None and twin in known
            else "use the annotations of the same split and data set"
        )
    )


def _check_box(box: Any, where: str) -> None:
    if not isinstance(box, list | tuple | np.ndarray) or len(box) != 4:
        raise ValueError(
            f"{where}: bbox should be [x, y, width, height], found {_describe(box)}: "
            "write four numbers"
        )
    if not all(map(_is_number, box)) or box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"{where}: bbox should be four finite numbers, width and height >= 0, "
            f"found {list(box)}: drop the box, or look for NaN in what wrote it"
        )


def _is_number(value: Any) -> bool:
    number = isinstance(value, float | int | np.floating | np.integer)
    return number and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with keys {', '.join(map(str, value)) or '(none)'}"[:200]
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return (
        "nothing (null)" if value is None else f"{type(value).__name__} {value!r:.60}"
    )


# ------------------------------------------------------------------------------ JSON


def _read_json(path: PathLike) -> Any:
    path = pathlib.Path(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file: check the path") from error
    except ValueError as error:  # broken JSON and broken UTF-8
        raise ValueError(
            f"{path}: not valid JSON ({error}): the file may have been cut off; "
            "write it again"
        ) from error


def _write_json(path: PathLike, content: Any) -> None:
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, default=_plain)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"cannot write {value!r} ({type(value).__name__}) to JSON")
