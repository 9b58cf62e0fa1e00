"""TFDS: any prepared TensorFlow data set with images and boxes, without TensorFlow.

    data.name=tfds:voc/2007                  a builder of TFDS, from its usual folder
    data.name=tfds:coco/2017 data.root=DIR   or from another
    data.name=tfds data.root=prepared        what `records.write` made

The files must be array_record. TFDS's own builders need TensorFlow once, to prepare a
set; the error for a missing set says the command. TFDS's boxes are (y1, x1, y2, x2)
over height and width, and its classes count from zero.
"""

import collections.abc
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any, overload

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from frcnn_jax.data.conventions import to_xyxy
from frcnn_jax.data.images import image_size
from frcnn_jax.data.source import Example, Source, clean_boxes

IGNORE = ("is_crowd", "is_difficult", "is_group_of")  # whichever a builder has
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # of COCO's category ids 1..90


def load(*, split: str, dataset: str = "", root: str = "") -> Source:
    """A split of a TFDS data set, read record by record.

    `dataset` is TFDS's name with its configuration. It is empty if `root` (or one
    folder below it) is prepared data itself. `split` is any that TFDS takes, such as
    "train+validation" or "train[:10%]".
    """
    with _reading(dataset, root):
        builder = find(dataset, root)
        boxes, label, names = _objects(builder)
    try:
        with _reading(dataset, root):
            records = builder.as_data_source(
                split, decoders={"image": tfds.decode.SkipDecoding()}
            )
    except NotImplementedError as error:  # tfrecord and the like
        raise ValueError(
            f"{builder.data_dir} is not array_record, which alone is read without "
            f"TensorFlow: {_command(dataset or builder.name, root)}"
        ) from error
    with _reading(dataset, root):
        ids = tuple(map(int, (builder.info.metadata or {}).get("category_ids", ())))
    if builder.name == "coco" and len(names) == 80:
        ids = tuple(i for i in range(1, 91) if i not in GAPS)
    report: list[str] = []
    pixels = "voc" if builder.name == "voc" else "xyxy"
    where = root or dataset
    made = Records(records, range(len(records)), boxes, label, pixels, report, where)
    if made:
        made[0]  # fails now if files are missing or do not fit features.json
    return Source(made, names, ids, report)


@dataclasses.dataclass(frozen=True)
class Records(collections.abc.Sequence):
    """The examples at `indices`, read on demand; images stay encoded."""

    records: Any
    indices: range
    objects: str  # the feature with the boxes
    label: str  # the part of it that is the class; empty if there is one class
    pixels: str  # TFDS divides VOC's corners as they stand, counted from one
    report: list[str]
    where: str = ""  # the folder, for errors

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Example | Records":
        if isinstance(index, slice):
            return dataclasses.replace(self, indices=self.indices[index])
        position = self.indices[index]
        with _reading(self.where, ""):
            return self._example(position)

    def _example(self, position: int) -> Example:
        record = self.records[position]
        objects, image = record[self.objects], record["image"]
        name = _text(record.get("image/filename", position + 1))
        if "image/height" in record:
            size = int(record["image/height"]), int(record["image/width"])
        elif isinstance(image, bytes):
            size = image_size(image, name=name)
        else:
            size = image.shape[0], image.shape[1]
        boxes = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
        boxes = to_xyxy(to_xyxy(boxes, "yxyx_normalized", size), self.pixels)
        boxes = boxes.round(3)  # float32 on disk: a whole pixel is whole again
        labels = np.asarray(objects.get(self.label, [0] * len(boxes)), np.int32)
        ignore = np.zeros(len(boxes), bool)
        for key in IGNORE:
            ignore |= np.asarray(objects.get(key, ignore), bool).reshape(-1)
        lines: list[str] = []
        shown = [f"object {i} of class {c}" for i, c in enumerate(labels)]
        boxes, keep = clean_boxes(boxes, size, shown, name, lines)
        self.report.extend(line for line in lines if line not in self.report)
        area = np.asarray(objects.get("area", ()), np.float32)
        known = len(area) == len(boxes) and np.isfinite(area).all()
        return Example(
            image=image,
            image_id=_id(record, name),
            boxes=boxes[keep],
            classes=labels.reshape(-1)[keep] + np.int32(1),
            ignore=ignore[keep],
            size=size,
            area=area[keep] if known else None,
        )


def find(dataset: str, root: str) -> Any:
    """The read-only builder of prepared data; FileNotFoundError says how to prepare."""
    if not dataset:
        files = sorted(pathlib.Path(root).rglob("dataset_info.json")) if root else []
        if len(files) != 1:
            raise FileNotFoundError(
                f"data.root={root!r} holds {len(files)} prepared data sets "
                "(dataset_info.json), expected one: name one as data.name=tfds:NAME, "
                "or write one with scripts/make_records.py"
            )
        _check_features(files[0].parent)
        return tfds.builder_from_directory(str(files[0].parent))
    name, _, config = dataset.partition("/")
    options = dict(config=config) if config else {}
    try:
        for folder in (pathlib.Path(root or constants.DATA_DIR) / name).rglob("*"):
            if folder.is_dir():
                _check_features(folder)
        return read_only_builder.builder_from_files(
            name, data_dir=root or None, **options
        )
    except tfds.core.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{dataset} is not prepared in {root or 'the usual folder of TFDS'}: "
            f"{_command(dataset, root)}"
        ) from error


@contextlib.contextmanager
def _reading(dataset: str, root: str) -> Iterator[None]:
    """Errors of TFDS about its own files become a ValueError that names them."""
    try:
        yield
    except (FileNotFoundError, NotImplementedError):
        raise
    except Exception as error:
        where = root or dataset
        if isinstance(error, ValueError) and "features.json" in str(error):
            raise
        raise ValueError(
            f"{where}: cannot read dataset_info.json, features.json or the rest of a "
            f"prepared set ({type(error).__name__}: {error}): prepare it anew"
        ) from error


def _check_features(folder: pathlib.Path) -> None:
    """ValueError if a prepared set names other classes than TFDS's features.

    TFDS imports whatever module a name in features.json begins with.
    """
    file = folder / "features.json"
    if not file.is_file():
        return
    try:
        names = set(_class_names(json.loads(file.read_bytes())))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is not JSON: {error}: prepare the set anew"
        ) from error
    if foreign := sorted(n for n in names if not n.startswith("tensorflow_datasets.")):
        raise ValueError(
            f"{file} names {foreign[0]!r}, which is no feature of TFDS and would be "
            "imported: prepare the set anew, or read its files by another source"
        )


def _class_names(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for key in ("pythonClassName", "python_class_name", "type", "proto_cls"):
            if isinstance(tree.get(key), str) and "." in tree[key]:
                yield tree[key]
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            yield from _class_names(value)


def _command(dataset: str, root: str) -> str:
    """The command to run once. (The program `tfds build` also needs Apache Beam.)"""
    folder = f"data_dir={root!r}, " if root else ""
    return (
        "prepare it once, with TensorFlow (pip install '.[prepare]'): "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({dataset!r}, {folder}file_format='array_record')"
        '.download_and_prepare()"'
    )


def _objects(builder: Any) -> tuple[str, str, tuple[str, ...]]:
    """The feature with the boxes, the one in it with the class, and class names."""
    features = dict(builder.info.features)
    for name in sorted(features):
        inner: Any = getattr(features[name], "feature", None)
        if not isinstance(inner, tfds.features.FeaturesDict) or "bbox" not in inner:
            continue
        for label in ("label", "type"):
            if label in inner:
                kind: Any = inner[label]
                return name, label, tuple(kind.names)
        return name, "", ("object",)
    raise ValueError(
        f"{builder.name} has no boxes: its features are "
        f"{', '.join(sorted(features))}, none of them a sequence with a bbox: name a "
        "set for detection"
    )


def _id(record: Any, name: str) -> int | str:
    """The id of an image in its builder if that is a number, else its file's name."""
    given = record.get("image/id", name)
    if np.issubdtype(np.asarray(given).dtype, np.integer):
        return int(given)
    return pathlib.PurePath(name).stem


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
