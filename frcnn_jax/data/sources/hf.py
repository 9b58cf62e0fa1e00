"""Hugging Face: image folders with metadata.jsonl or .csv, and sets of the hub.

    train/metadata.jsonl     {"file_name": "1.jpg", "objects": {"bbox": [[x, y, w, h]],
    train/1.jpg                                                 "categories": [0]}}

    data.name=hf:OWNER/NAME  a set of the hub, through the package `datasets`

A metadata.csv has `objects` as the text of that dict, as JSON or as Python prints it.
The key of the classes may be `category`, `categories`, `label` or `labels`. It holds
names, or numbers from 0 on. `classes` or the features of a set of the hub name the
numbers. Code of a set is never run. Images of the hub stay as the bytes of their files.
"""

import ast
import csv
import importlib
import io
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from frcnn_jax.data.folders import (
    Folder,
    Found,
    Pictures,
    contains,
    few,
    files_of,
    fill,
    folder_of,
    list_folder,
    templates,
)
from frcnn_jax.data.source import Source
from frcnn_jax.data.sources.dicts import from_dicts

_LABELS = ("categories", "category", "labels", "label", "class_labels")
_IGNORE = ("iscrowd", "is_crowd", "ignore")


def load(
    *,
    split: str,
    dataset: str = "",
    root: str = "",
    annotations: str = "{split}/metadata.jsonl",
    config: str = "",
    classes: Sequence[str] = (),
    convention: str = "xywh",
) -> Source:
    """The images of a metadata.jsonl or .csv below `root`, or of a set of the hub.

    `dataset` is OWNER/NAME, `config` the name of one of its configurations. `classes`
    are the names in order. If they are empty, they are those of the hub, or all names
    in the files of all splits, sorted, or the numbers. `convention` is that of `bbox`.
    """
    names: tuple[str, ...] = ()
    every: list[dict[str, Any]] = []
    if dataset:
        rows, names = _hub(dataset, config, split)
        dicts = [_dict(row, f"{dataset} {split}, row {i}") for i, row in rows]
    else:
        folder = list_folder(root)
        dicts = _folder(folder, fill(annotations, split))
        if not classes:
            others = files_of(folder, annotations).values()
            every = [d for f in others for d in _folder(folder, f, images=False)]
    classes = tuple(classes) or names or _names([*dicts, *every])
    for d in dicts:
        where = d.pop("where")
        d["labels"] = [_label(label, classes, where) for label in d["labels"]]
    return from_dicts(dicts, classes=classes, convention=convention)


def recognise(folder: Folder) -> Found | None:
    """Files metadata.jsonl or metadata.csv whose lines have `objects`."""
    files = [f for f in folder.files if _has_objects(folder.root / f)]
    if not files:
        return None
    (template, found), *others = templates(files).items()
    if others:
        raise ValueError(
            f"{folder.root} has several files of metadata, {', '.join(files[:5])}, in "
            "folders of no splits: name one, --config.data.annotations=..."
        )
    why = f"{', '.join(found.values())}: file names and objects"
    return Found(dict(annotations=template), tuple(found), why)


def splits(*, dataset: str, config: str = "", **_: Any) -> tuple[str, ...]:
    """The names of the splits of a set of the hub."""
    return tuple(_package().get_dataset_split_names(dataset, config or None))


def _package() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ValueError(
            "data.name=hf:OWNER/NAME needs the package datasets: pip install datasets, "
            f"or give a folder with metadata.jsonl as data.root ({error})"
        ) from None


def _hub(
    dataset: str, config: str, split: str
) -> tuple[Iterable[tuple[int, Mapping[str, Any]]], tuple[str, ...]]:
    """The rows of a split with their numbers, and the names of its classes."""
    package = _package()
    table = package.load_dataset(dataset, config or None, split=split)
    if "image" not in table.features or "objects" not in table.features:
        raise ValueError(
            f"{dataset} has the columns {', '.join(table.features)}, expected image "
            "and objects: rename them and read the set by data.name=dicts:..."
        )
    table = table.cast_column("image", package.Image(decode=False))
    feature, names = table.features["objects"], ()
    while hasattr(feature, "feature"):
        feature = feature.feature
    for key in _LABELS:
        if isinstance(feature, Mapping) and key in feature:
            inner = feature[key]
            while hasattr(inner, "feature"):
                inner = inner.feature
            names = tuple(getattr(inner, "names", None) or ())
    return enumerate(table, start=1), names


def _has_objects(file: pathlib.Path) -> bool:
    """Whether a file is a metadata.jsonl or .csv with names of files and objects."""
    if file.name == "metadata.jsonl":
        return contains(file, (rb'"file_name"\s*:', rb'"objects"\s*:'), 1 << 22)
    if file.name != "metadata.csv":
        return False
    try:
        with file.open("rb") as handle:
            line = handle.readline(1 << 16).decode("utf-8-sig")
        header = next(csv.reader([line]), [])
    except (OSError, ValueError, csv.Error):
        return False
    return {"file_name", "objects"} <= set(header)


def _folder(folder: Folder, file: str, images: bool = True) -> list[dict[str, Any]]:
    """The lines of a file for `from_dicts`; without `images`, the labels alone."""
    path = folder.root / file
    if file not in folder.files:
        raise FileNotFoundError(f"no file {path}: set data.root or data.annotations")
    pictures = Pictures(folder) if images else None
    dicts = []
    for where, row in (_table if file.endswith(".csv") else _lines)(path):
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise ValueError(
                f"{where} has no 'file_name' with a text, but {repr(row)[:80]}: add "
                "the name of the image"
            )
        image = None
        if pictures is not None:
            image = pictures.find(name, near=folder_of(file), where=where)
            if image is None:
                raise FileNotFoundError(
                    f"{where}: no image {name} below {folder.root}: add it, remove the "
                    "line, or set data.root"
                )
            row = dict(row, image=str(folder.root / image), image_id=image)
        dicts.append(_dict(row, where))
    return dicts


def _lines(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """What the lines of a metadata.jsonl hold, each with where it stands."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{where} is not JSON: {error}: correct the line or remove it"
            ) from error


def _table(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a metadata.csv with what `objects` holds, each with where it is."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error}): save it as utf-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            yield where, dict(row, objects=_objects(row.get("objects") or "", where))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error}: expected a row of a table; "
            "correct its quotes"
        ) from error


def _objects(text: str, where: str) -> Any:
    """What a cell holds, as JSON or as Python prints it; None of an empty one."""
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise ValueError(
            f"{where}: 'objects' is {text[:80]!r}, neither JSON nor a dict as Python "
            f"prints it ({error}): write it as JSON, or use a metadata.jsonl"
        ) from None


def _dict(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """One row for `from_dicts`; ValueError says where it stands."""
    objects = row.get("objects") or dict(bbox=[])
    if isinstance(objects, list) and all(isinstance(o, Mapping) for o in objects):
        keys = dict.fromkeys(k for o in objects for k in o)
        objects = {k: [o.get(k) for o in objects] for k in keys} or dict(bbox=[])
    if not isinstance(objects, Mapping) or not isinstance(objects.get("bbox"), list):
        raise ValueError(
            f"{where}: 'objects' is {str(objects)[:80]}, expected a dict with a list "
            "'bbox': correct it"
        )
    boxes = objects["bbox"]
    key = next((k for k in _LABELS if k in objects), "")
    labels = objects[key] if key else None if boxes else []
    if not isinstance(labels, list) or not all(type(i) in (int, str) for i in labels):
        raise ValueError(
            f"{where}: 'objects' has no list of names or numbers under any of "
            f"{', '.join(_LABELS)}, but {few(objects)}: name it so"
        )
    numbers = all(
        isinstance(b, list | tuple)
        and len(b) == 4
        and all(type(v) is float or (type(v) is int and abs(v) < 2**63) for v in b)
        for b in boxes
    )
    if not numbers or len(boxes) != len(labels):
        raise ValueError(
            f"{where}: {len(boxes)} boxes and {len(labels)} labels, expected one label "
            "for each box of four numbers: correct the line"
        )
    image = row.get("image")
    if isinstance(image, Mapping):  # as `datasets` has it, not decoded
        image = image.get("bytes") or image.get("path")
    name = row.get("image_id", where)
    found = dict(image=image, id=name, boxes=boxes, labels=labels, where=where)
    crowds = next((objects[k] for k in _IGNORE if k in objects), None)
    if isinstance(crowds, list) and len(crowds) == len(labels):
        found["ignore"] = [bool(c) for c in crowds]
    return found


def _names(dicts: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The classes' names: texts sorted, or numbers from 0 to the highest."""
    found = {label for d in dicts for label in d["labels"]}
    numbers = [i for i in found if isinstance(i, int)]
    if numbers and max(numbers) < 10_000:
        return tuple(map(str, range(max(numbers) + 1)))
    return tuple(sorted(map(str, found)))


def _label(label: int | str, classes: tuple[str, ...], where: str) -> int | str:
    """A label that `from_dicts` knows; ValueError for one that is no class."""
    if isinstance(label, int) and not 0 <= label < len(classes):
        raise ValueError(
            f"{where}: class {label}, but there are {len(classes)} names, 0 to "
            f"{len(classes) - 1}: correct it, or set data.classes"
        )
    if isinstance(label, str) and label not in classes:
        raise ValueError(
            f"{where}: label {label!r} is not one of {few(classes)}: add it to "
            "data.classes"
        )
    return label
