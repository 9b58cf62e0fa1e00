"""LabelMe: a JSON file with shapes for each image, beside it or elsewhere.

    0001.json      shapes with label, points and shape_type; imagePath
    0001.jpg

The box of a rectangle, a polygon, a line or a circle is the one around it. Points and
masks are left out and reported. The image below the root has the JSON file's name, or
is the one that `imagePath` names. Without such a file it is what `imageData` holds.
Coordinates are continuous.
"""

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from frcnn_jax.data.folders import (
    Folder,
    Found,
    Pictures,
    contains,
    files_of,
    fill,
    folder_of,
    list_folder,
    read_json,
    stem,
    templates,
)
from frcnn_jax.data.source import Source
from frcnn_jax.data.sources.dicts import from_dicts
from frcnn_jax.data.sources.supervisely import around

_SHAPES = {"rectangle", "polygon", "circle", "line", "linestrip"}
_KEYS = (rb'"shapes"\s*:\s*\[', rb'"imagePath"\s*:')


def load(
    *,
    split: str,
    root: str = "",
    annotations: str = "{split}",
    images: str = "",
    classes: Sequence[str] = (),
) -> Source:
    """The images of a folder's JSON files, whose names are the ids.

    `annotations` is the folder below `root`, "." for all; `{split}` in it stands for
    the split's name. Images are looked for below `images`. `classes` are the names in
    order. If they are empty, they are all labels in the folders of all splits, sorted.
    """
    folder = list_folder(root)
    place = fill(annotations, split)
    found = _read(folder, place)
    if not found:
        raise FileNotFoundError(
            f"no LabelMe file in {folder.root / place}: set data.root or "
            "data.annotations"
        )
    if not classes:
        every = dict(found)
        if "{split}" in annotations:
            places = tuple(dict.fromkeys(map(folder_of, folder.files)))
            for other in files_of(Folder(folder.root, places), annotations).values():
                every |= _read(folder, other)
        labels = (s["label"] for f in every.values() for s in f["shapes"])
        classes = sorted(set(labels))
    pictures = Pictures(folder, fill(images, split))
    report: list[str] = []
    dicts = [_dict(pictures, name, f, report) for name, f in found.items()]
    made = from_dicts(dicts, classes=tuple(classes))
    made.report[:0] = report
    return made


def recognise(folder: Folder) -> Found | None:
    """JSON files with `shapes` and `imagePath`."""
    places: dict[str, list[str]] = {}
    for file in folder.files:
        if file.endswith(".json"):
            places.setdefault(folder_of(file), []).append(file)
    places = {
        place: files
        for place, files in places.items()
        if any(contains(folder.root / f, _KEYS) for f in files[:3])
    }
    if not places:
        return None
    (template, found), *others = templates(places).items()
    if others:
        template, found = ".", {"all": "."}
    count = sum(map(len, places.values()))
    why = f"{count} JSON files with shapes in {', '.join(list(places)[:5]) or '.'}"
    return Found(dict(annotations=template or "."), tuple(found), why)


def _read(folder: Folder, place: str) -> dict[str, dict[str, Any]]:
    """LabelMe's files of a folder and of those below it; other JSON is left alone."""
    start = "" if place == "." else f"{place}/"
    found = {}
    for file in folder.files:
        if file.endswith(".json") and file.startswith(start):
            read = read_json(folder.root / file)
            if isinstance(read, dict) and "shapes" in read:
                _check(read, folder.root / file)
                found[file] = read
    return found


def _check(read: dict[str, Any], where: Any) -> None:
    shapes = read["shapes"]
    if not isinstance(shapes, list):
        raise ValueError(
            f"{where}: 'shapes' is {repr(shapes)[:80]}, expected a list of shapes: "
            "correct it, or save the file again in LabelMe"
        )
    for i, shape in enumerate(shapes, start=1):
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str) or not label:
            raise ValueError(
                f"{where}: shape {i} has no text 'label': {str(shape)[:80]}; name it "
                "or remove it"
            )


def _dict(
    pictures: Pictures, file: str, read: dict[str, Any], report: list[str]
) -> dict[str, Any]:
    """One file for `from_dicts`."""
    where = pictures.root / file
    boxes, labels = [], []
    for i, shape in enumerate(read["shapes"], start=1):
        kind = str(shape.get("shape_type", "polygon"))
        if kind not in _SHAPES:
            report.append(f"{where}: left out shape {i}, a {kind} {shape['label']!r}")
            continue
        points = shape.get("points")
        box = around(points, f"{where}: shape {i}")
        if kind == "circle":  # its centre, and a point on it
            (x, y), (x2, y2) = np.asarray(points, np.float64).reshape(-1, 2)[:2]
            r = math.hypot(x2 - x, y2 - y)
            box = [x - r, y - r, x + r, y + r]
        boxes.append(box)
        labels.append(shape["label"])
    image = _image(pictures, file, read)
    return dict(image=image, id=file.removesuffix(".json"), boxes=boxes, labels=labels)


def _image(pictures: Pictures, file: str, read: dict[str, Any]) -> str | bytes:
    where, near, path = pictures.root / file, folder_of(file), read.get("imagePath")
    found = pictures.of_stem(stem(file), near=near, where=where)
    if found is None and isinstance(path, str):
        found = pictures.find(path, near=near, where=where)
    if found is not None:
        return str(pictures.root / found)
    if isinstance(data := read.get("imageData"), str):
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(
                f"{where}: imageData is no base64 ({error}): save the file again in "
                "LabelMe, or put the image beside it"
            ) from None
    raise FileNotFoundError(
        f"{where}: no image {stem(file)} with any suffix, nor {path!r}, below "
        f"{pictures.root}: set data.root or data.images"
    )
