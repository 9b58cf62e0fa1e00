"""CSV: a table with one box a line, and a folder of images.

    image,x1,y1,x2,y2,label
    photos/1.jpg,10,20,50,80,cat
    photos/2.jpg,,,,,

The first line names the columns, in any order and case. Other columns are not read.

| column | also called | meaning |
| --- | --- | --- |
| `image` | `filename`, `file_name`, `file`, `path`, `image_path` | file below it |
| `x1`, `y1`, `x2`, `y2` | `xmin`, `x_min`, `left`, ... | the box, see `convention` |
| `box` | `bbox`, `boxes`, `bounding_box` | all four numbers, or several boxes |
| `label` | `class`, `class_name`, `name`, `category`, `class_id` | its class |
| `ignore` | `iscrowd`, `difficult` | optional: 1 for neither object nor background |
| `split` | `set`, `subset` | optional: which lines belong to which split |

`csv_table.ALIASES` has all names. TensorFlow's and Roboflow's tables have these columns
(`_annotations.csv`). Columns are separated by commas, semicolons, tabs or bars. The
text is utf-8 or else cp1252, or utf-16 as Excel writes it. A table needs no column of
labels if `classes` has one name. A line without numbers is an image without objects;
the report counts such lines that have a label. Images are in the order of their first
line. An image that is not where the table says is looked for by its name below the
root.

`recognise` knows the columns of Make Sense and of Open Images, and `x`, `y`, `w`, `h`
in place of corners. It tells what the numbers of a column `box` are
(`csv_cells.convention_of`).
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from frcnn_jax import ranges
from frcnn_jax.data.folders import (
    Folder,
    Found,
    Pictures,
    few,
    files_of,
    fill,
    folder_of,
    list_folder,
    templates,
)
from frcnn_jax.data.images import image_size
from frcnn_jax.data.source import Source, below
from frcnn_jax.data.sources.csv_cells import SIDES, convention_of
from frcnn_jax.data.sources.csv_table import Rows, box_of, header_of, read
from frcnn_jax.data.sources.dicts import from_dicts

ONE = ranges.Rule("one character, or none", lambda text: len(text) < 2)
LOOK = 1000  # boxes that tell what the numbers of a column `box` are


def load(
    *,
    split: str,
    root: str = "",
    annotations: str = "{split}.csv",
    images: str = "",
    classes: Sequence[str] = (),
    convention: str = "xyxy",
    columns: Mapping[str, str] | None = None,
    delimiter: str = "",
) -> Source:
    """The images of a table; their paths are their ids.

    `annotations` and `images` are the file and the folder below `root`; `{split}` in
    them stands for the split's name. A file with a column `split` holds several splits.
    `classes` are the names in order. If they are empty, they are all labels in the
    files of all splits, sorted. `columns` maps the names above to your own;
    `convention` is one of `conventions.CONVENTIONS`. `delimiter` separates columns. If
    it is empty, it is the one of comma, semicolon, tab and bar that the first line has
    most of.
    """
    ranges.check("data", delimiter=(delimiter, ONE))
    base, name = pathlib.Path(root), fill(annotations, split)
    report: list[str] = []
    known = columns or {}
    where, rows = read(base / name, known, delimiter, report, len(classes) == 1)
    if "label" not in where:
        rows = [
            (line, dict(r, label=classes[0] if r["x1"] else "")) for line, r in rows
        ]
    rows = _without_boxes(rows, base / name, report)
    if not classes:
        tables = [rows]
        if "{split}" in annotations and root:
            others = files_of(list_folder(base), annotations).values()
            tables += [
                _without_boxes(read(base / other, known, delimiter, [])[1], other, [])
                for other in others
                if other != name and header_of(base / other, known, delimiter)
            ]
        classes = sorted({r["label"] for table in tables for _, r in table} - {""})
    if "split" in where:
        rows = _of_split(rows, split, base / name)
    find = _finder(base, fill(images, split), folder_of(name), bool(root or images))
    dicts = _dicts(rows, tuple(classes), find)
    made = from_dicts(dicts, classes=tuple(classes), convention=convention)
    made.report[:0] = report
    return made


def _without_boxes(rows: Rows, file: object, report: list[str]) -> Rows:
    """The rows, with no label in those that have no number; the report counts these."""
    found, names = [], []
    for line, row in rows:
        if row["label"] and not any(row[side] for side in SIDES):
            names.append(row["label"])
            row = dict(row, label="")
        found.append((line, row))
    if names:
        shown = few(map(repr, dict.fromkeys(names)), 3)
        report.append(
            f"{file}: {len(names)} lines have a label but no box ({shown}): they are "
            "taken as images without objects"
        )
    return found


def _of_split(rows: Rows, split: str, file: pathlib.Path) -> Rows:
    known = dict.fromkeys(r["split"] for _, r in rows)
    if split not in known and split != "all":
        raise ValueError(
            f"{file} has no split {split!r} in its column of splits, but {few(known)}: "
            "set data.train_split and data.eval_split to some of these"
        )
    return [(line, r) for line, r in rows if split in (r["split"], "all")]


def _dicts(
    rows: Rows, classes: tuple[str, ...], find: Callable[[str, str], str]
) -> list[dict[str, Any]]:
    """The rows of each image as a dict for `from_dicts`."""
    dicts: dict[str, dict[str, Any]] = {}
    for line, row in rows:
        if row["image"] not in dicts:
            image = find(row["image"], line)
            dicts[row["image"]] = dict(image=image, id=row["image"])
            dicts[row["image"]] |= dict(boxes=[], labels=[], ignore=[])
        entry = dicts[row["image"]]
        if box := box_of(row, line):
            if row["label"] not in classes:
                raise ValueError(
                    f"{line}: label {row['label']!r} is not one of "
                    f"{few(classes)}: add it to data.classes"
                )
            entry["boxes"].append(box)
            entry["labels"].append(row["label"])
            entry["ignore"].append(row.get("ignore") in ("1", "true", "True"))
    return list(dicts.values())


def recognise(
    folder: Folder, *, annotations: str = "", convention: str = ""
) -> Found | None:
    """Tables with columns of images, boxes and labels.

    Of several, `annotations` says which are meant. ValueError if a column holds whole
    boxes, no `convention` is given, and the boxes do not tell it.
    """
    files = [f for f in folder.files if f.lower().endswith((".csv", ".tsv"))]
    if annotations:
        found = files_of(Folder(folder.root, tuple(files)), annotations)
        sets, files = {annotations: found} if found else {}, list(found.values())
    headers = {f: found for f in files if (found := header_of(folder.root / f))}
    with_split = {f: where for f, (where, _) in headers.items()}
    if not annotations:
        sets = templates(with_split)
    if several := [t for t in sets if len(sets[t]) > 1]:
        sets = {t: sets[t] for t in several}
    if not sets or not with_split:
        return None
    if len(sets) > 1:
        raise ValueError(
            f"{folder.root} has several tables, {', '.join(sorted(sets)[:5])}: "
            "name one, --config.data.annotations=..., with {split} for a split's name"
        )
    ((template, found),) = sets.items()
    shown = ", ".join(found.values())
    why = f"{shown}: columns of images, boxes and labels"
    if left := sorted(set(with_split) - set(found.values())):
        why += f" ({', '.join(left)} left aside)"
    (first, *_) = found.values()
    columns = headers[first][1].get("columns", {})
    leaves = dict(annotations=template, **headers[first][1])
    if "box" in with_split[first] and not convention:
        leaves["convention"], reason = _convention(folder, first)
        why += f", of {leaves['convention']} ({reason})"
    if len(found) == 1 and "split" in with_split[first]:
        _, rows = read(folder.root / first, columns, "", [])
        names = dict.fromkeys(r["split"] for _, r in rows)
        return Found(leaves, tuple(names), f"{why}, and one of splits")
    return Found(leaves, tuple(found), why)


def _convention(folder: Folder, file: str) -> tuple[str, str]:
    """What the numbers of a column of whole boxes are, and the reason."""
    path = folder.root / file
    where, rows = read(path, {}, "", [], one_class=True)
    find = _finder(folder.root, "", folder_of(file), True)
    boxes, sizes, known = [], [], {}
    for line, row in rows:
        if box := box_of(row, line):
            image = row["image"]
            if image not in known:
                known[image] = image_size(find(image, line))
            boxes.append(box)
            sizes.append(known[image])
        if len(boxes) == LOOK:
            break
    found, reason = convention_of(np.array(boxes, float).reshape(-1, 4), sizes)
    if not found:
        raise ValueError(
            f"{path}: what are the four numbers in its column {where['box']!r}? "
            f"{reason}: say --config.data.convention=xywh, xyxy or another "
            f"(docs/data.md), with --config.data.annotations={file}"
        )
    return found, reason


def _finder(
    base: pathlib.Path, images: str, near: str, limited: bool
) -> Callable[[str, str], str]:
    """A function from an image's name in the table, and its line, to its path."""
    pictures: list[Pictures] = []

    def find(name: str, line: str) -> str:
        if not limited:  # without a root paths are the user's own
            return name
        usual = _below_or_none(base / images, name)
        if usual is not None and usual.is_file():
            return str(usual)
        if not pictures:
            pictures.append(Pictures(list_folder(base), images))
        found = pictures[0].find(name, near=near, where=line)
        found = found or pictures[0].of_stem(name, near=near, where=line)
        if found is None:
            below(base / images, name, line)
            raise FileNotFoundError(
                f"{line}: no image file {base / images / name}, nor one of this name "
                f"below {base / images}: set data.root or data.images"
            )
        return str(base / found)

    return find


def _below_or_none(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The file `name` in a folder; None if the name leads out of it."""
    try:
        return below(folder, name, "")
    except ValueError:
        return None
