"""Supervisely projects: meta.json, and folders with ann/ and img/.

    meta.json                        classes
    ds0/ann/0001.jpg.json            objects with classTitle, geometryType and points
    ds0/img/0001.jpg

The folders are the splits if they have names of splits (`train`, `val`). The box of a
rectangle, a polygon or a line is the one around its points. Objects without points
(masks) are left out and reported. Corners are whole pixels, the last one included.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from frcnn_jax.data.folders import (
    Folder,
    Found,
    Pictures,
    contains,
    few,
    fill,
    list_folder,
    read_json,
    stem,
    templates,
)
from frcnn_jax.data.source import Source
from frcnn_jax.data.sources.dicts import from_dicts

_ANNOTATION = re.compile(r"(?:(.*)/)?ann/[^/]+\.json")


def load(
    *,
    split: str,
    root: str = "",
    annotations: str = "{split}",
    classes: Sequence[str] = (),
    convention: str = "inclusive",
) -> Source:
    """The images of a folder of a project and of those below it; names are ids.

    `annotations` is the folder below `root`, "." for all of them; `{split}` in it
    stands for the split's name. `classes` are the names in order; empty: those of
    meta.json.
    """
    folder = list_folder(root)
    place = fill(annotations, split)
    start = "" if place == "." else f"{place}/"
    inside = [f for f in folder.files if f.startswith(start)]
    files = [f for f in inside if _ANNOTATION.fullmatch(f)]
    if not files:
        raise FileNotFoundError(
            f"no ann/*.json in {folder.root / place}: set data.root or data.annotations"
        )
    known = tuple(classes) or _classes(folder.root / "meta.json")
    pictures = Pictures(folder)
    report: list[str] = []
    dicts = [_dict(pictures, f, known, report) for f in files]
    made = from_dicts(dicts, classes=known, convention=convention)
    made.report[:0] = report
    return made


def recognise(folder: Folder) -> Found | None:
    """meta.json with classes, and folders `ann` of JSON files."""
    if "meta.json" not in folder.files:
        return None
    if not contains(folder.root / "meta.json", (rb'"classes"\s*:',)):
        return None
    places = {m[1] or "." for f in folder.files if (m := _ANNOTATION.fullmatch(f))}
    if not places:
        return None
    (template, found), *others = templates(sorted(places)).items()
    why = f"meta.json, and ann in {', '.join(sorted(places)[:5])}"
    if others:
        template, found = ".", {"all": "."}
    return Found(dict(annotations=template), tuple(found), why)


def _classes(file: pathlib.Path) -> tuple[str, ...]:
    found = read_json(file)
    entries = found.get("classes") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        entries = []
    titles = [e.get("title") if isinstance(e, dict) else e for e in entries]
    names = [title for title in titles if isinstance(title, str)]
    if not names or len(names) < len(titles):
        raise ValueError(
            f"{file}: 'classes' is {repr(entries)[:80]}, expected a list with a "
            "'title' each: correct it, or set data.classes"
        )
    return tuple(names)


def _dict(
    pictures: Pictures, file: str, known: tuple[str, ...], report: list[str]
) -> dict[str, Any]:
    """An annotation file for `from_dicts`."""
    where = pictures.root / file
    found = read_json(where)
    objects = found.get("objects") if isinstance(found, dict) else None
    if not isinstance(objects, list):
        raise ValueError(
            f"{where} has no list 'objects' but {repr(objects)[:80]}: correct it, or "
            "export it again"
        )
    name = stem(file)  # 0001.jpg of 0001.jpg.json
    near = re.sub(r"(^|/)ann$", r"\1img", file.rpartition("/")[0])
    image = pictures.find(name, near=near, where=where)
    image = image or pictures.of_stem(name, near=near, where=where)
    if image is None:
        raise FileNotFoundError(
            f"{where}: no image {name} below {pictures.root}: add it, remove the "
            "annotation file, or set data.root"
        )
    boxes, labels = [], []
    for i, entry in enumerate(objects, start=1):
        title = entry.get("classTitle") if isinstance(entry, dict) else None
        if title not in known:
            raise ValueError(
                f"{where}: object {i} has classTitle {title!r}, which is not one of "
                f"{few(known)}: add it to meta.json, or set data.classes"
            )
        points = entry.get("points")
        if not isinstance(points, dict):
            kind = entry.get("geometryType")
            report.append(f"{where}: left out object {i}, a {kind} {title!r}")
            continue
        boxes.append(around(points.get("exterior"), f"{where}: object {i}"))
        labels.append(title)
    return dict(image=str(pictures.root / image), id=image, boxes=boxes, labels=labels)


def around(points: Any, where: str) -> list[float]:
    """The box around points `[[x, y], ...]`; ValueError for anything else."""
    try:
        corners = np.asarray(points, np.float64).reshape(-1, 2)
        if len(corners) < 2 or isinstance(points, str):
            raise ValueError("fewer than two")
    except (TypeError, ValueError, OverflowError) as error:
        shown = repr(points)[:60]
        raise ValueError(
            f"{where} has the points {shown}, expected [[x, y], ...] with two or more "
            f"({error}): correct or remove it"
        ) from None
    return [*corners.min(0).tolist(), *corners.max(0).tolist()]
