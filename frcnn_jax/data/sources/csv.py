"""CSV: a table with one box a line, and a folder of images.

    image,x1,y1,x2,y2,label
    photos/1.jpg,10,20,50,80,cat
    photos/2.jpg,,,,,

The first line names the columns, in any order and case; other columns are left alone.

| column | also called | meaning |
| --- | --- | --- |
| `image` | `filename`, `file_name`, `file`, `path`, `image_path` | file below it |
| `x1`, `y1`, `x2`, `y2` | `xmin`, `ymin`, `xmax`, `ymax` | the box, see `convention` |
| `label` | `class`, `class_name`, `name`, `category`, `class_id` | its class |
| `ignore` | `iscrowd`, `difficult` | optional: 1 for neither object nor background |
| `split` | `set`, `subset` | optional: which lines belong to which split |

These are TensorFlow's and Roboflow's (`_annotations.csv`), too. Columns are separated
by commas, semicolons, tabs or bars; the text is utf-8 or else cp1252, or utf-16 as
Excel writes it. With one name in `classes` a table needs no column of labels. A line
without numbers and label is an image without objects. Images are in the order of their
first line; one that is not where the table says is looked for by its name below the
root.

`recognise` knows the columns of Make Sense and of Open Images, and `x`, `y`, `w`, `h`
in place of corners.
"""

import codecs
import csv
import io
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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
from frcnn_jax.data.source import Source, below
from frcnn_jax.data.sources.dicts import from_dicts

ALIASES = dict(
    image=("image", "filename", "file_name", "file", "path", "image_path"),
    x1=("x1", "xmin"),
    y1=("y1", "ymin"),
    x2=("x2", "xmax"),
    y2=("y2", "ymax"),
    label=("label", "class", "class_name", "name", "category", "class_id"),
    ignore=("ignore", "iscrowd", "difficult"),
    split=("split", "set", "subset"),
)
# Columns of other tools, and what the four numbers are there.
OTHERS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "xyxy_normalized",  # Open Images
        dict(image="imageid", label="labelname", ignore="isgroupof"),
    ),
    (
        "xywh",  # Make Sense
        dict(image="image_name", label="label_name", x1="bbox_x", y1="bbox_y")
        | dict(x2="bbox_width", y2="bbox_height"),
    ),
    ("xywh", dict(x1="x", y1="y", x2="w", y2="h")),
)
ONLY = "object"  # the class of a table without labels
ONE = ranges.Rule("one character, or none", lambda text: len(text) < 2)
OPTIONAL = ("ignore", "split")
Rows = list[tuple[str, dict[str, str]]]  # where a line is, its values by our names


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
    them stands for the split's name. A file with a column `split` holds several.
    `classes` in order, or empty: every label of the files of all splits, sorted.
    `columns` maps the names above to your own; `convention` is one of
    `conventions.CONVENTIONS`. `delimiter` separates columns; empty: whichever of comma,
    semicolon, tab and bar the first line has most of.
    """
    ranges.check("data", delimiter=(delimiter, ONE))
    base, name = pathlib.Path(root), fill(annotations, split)
    report: list[str] = []
    known = columns or {}
    where, rows = _table(base / name, known, delimiter, report, len(classes) == 1)
    if "label" not in where:
        rows = [
            (line, dict(r, label=classes[0] if r["x1"] else "")) for line, r in rows
        ]
    if not classes:
        tables = [rows]
        if "{split}" in annotations and root:
            others = files_of(list_folder(base), annotations).values()
            tables += [
                _table(base / other, known, delimiter, [])[1]
                for other in others
                if other != name
            ]
        classes = sorted({r["label"] for table in tables for _, r in table} - {""})
    if "split" in where:
        rows = _of_split(rows, split, base / name)
    find = _finder(base, fill(images, split), folder_of(name), bool(root or images))
    dicts = _dicts(rows, tuple(classes), find)
    made = from_dicts(dicts, classes=tuple(classes), convention=convention)
    made.report[:0] = report
    return made


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
        if box := _box(row, line):
            if row["label"] not in classes:
                raise ValueError(
                    f"{line}: label {row['label']!r} is not one of "
                    f"{few(classes)}: add it to data.classes"
                )
            entry["boxes"].append(box)
            entry["labels"].append(row["label"])
            entry["ignore"].append(row.get("ignore") in ("1", "true", "True"))
    return list(dicts.values())


def recognise(folder: Folder, *, annotations: str = "") -> Found | None:
    """Tables with columns of images, boxes and labels.

    Of several, `annotations` says which are meant.
    """
    files = [f for f in folder.files if f.lower().endswith((".csv", ".tsv"))]
    if annotations:
        found = files_of(Folder(folder.root, tuple(files)), annotations)
        sets, files = {annotations: found} if found else {}, list(found.values())
    headers = {f: found for f in files if (found := _header(folder.root / f))}
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
    if len(found) == 1 and "split" in with_split[first]:
        _, rows = _table(folder.root / first, columns, "", [])
        names = dict.fromkeys(r["split"] for _, r in rows)
        return Found(leaves, tuple(names), f"{why}, and one of splits")
    return Found(leaves, tuple(found), why)


def _header(file: pathlib.Path) -> tuple[dict[str, str], dict[str, Any]] | None:
    """The columns of a table by our names, and leaves; None for any other file."""
    try:
        with file.open("rb") as handle:
            head = handle.read(1 << 16)
        text = head.decode("utf-16" if _is_utf16(head) else "utf-8-sig", "replace")
        text = text.splitlines()[0] if text else ""
        header = next(csv.reader([text], delimiter=_delimiter(text)), [])
    except (OSError, ValueError, csv.Error):
        return None
    for convention, columns in (("", {}), *OTHERS):
        try:
            found = _columns(header, columns, file)
        except ValueError:
            continue
        leaves = dict(columns=columns, convention=convention) if convention else {}
        return found, leaves
    names = {name for names in ALIASES.values() for name in names}
    if {h.strip().lower() for h in header} <= names | {"width", "height"}:
        try:  # boxes and nothing that could be a label
            return _columns(header, {}, file, labelled=False), dict(classes=(ONLY,))
        except ValueError:
            pass
    return None


def _delimiter(text: str) -> str:
    """Whichever of comma, semicolon, tab and bar a table's first line has most of."""
    header = text.partition("\n")[0]
    return max(",;\t|", key=header.count)


def _is_utf16(raw: bytes) -> bool:
    """Whether the mark at the beginning is that of utf-16."""
    return raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _table(
    file: pathlib.Path,
    columns: Mapping[str, str],
    delimiter: str,
    report: list[str],
    one_class: bool = False,
) -> tuple[dict[str, str], Rows]:
    """The table's columns by our names, and its rows, each with where it stands.

    With `one_class` the column of labels may be missing.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"no annotation file {file}: set data.root or data.annotations"
        )
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-16" if _is_utf16(raw) else "utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is neither utf-8 nor cp1252 ({error}): save it as utf-8"
            ) from None
        report.append(f"{file}: read as cp1252, it is no utf-8")
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, delimiter=delimiter or _delimiter(text))
    try:
        header = reader.fieldnames or ()
        where = _columns(header, columns, file, labelled=not one_class)
    except csv.Error as error:
        raise _no_row(file, reader, error) from error
    return where, list(_rows(reader, where, file))


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
    """The file `name` in a folder, None where the name leads out of it."""
    try:
        return below(folder, name, "")
    except ValueError:
        return None


def _rows(
    reader: csv.DictReader, where: Mapping[str, str], file: pathlib.Path
) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each line is, and its values by our names; what is left out is empty."""
    try:
        for row in reader:
            line = f"{file}, line {reader.line_num}"
            yield (
                line,
                {name: (row[column] or "").strip() for name, column in where.items()},
            )
    except csv.Error as error:
        raise _no_row(file, reader, error) from error


def _no_row(file: pathlib.Path, reader: csv.DictReader, error: csv.Error) -> ValueError:
    """The error for a line that is no row of a table."""
    return ValueError(
        f"{file}, line {reader.line_num}: {error}: expected a row of a table; correct "
        "its quotes, or set data.delimiter"
    )


def _columns(
    header: Sequence[str],
    given: Mapping[str, str],
    file: pathlib.Path,
    labelled: bool = True,
) -> dict[str, str]:
    """The table's own name of each column; ValueError names what is missing."""
    if unknown := set(given) - set(ALIASES):
        raise ValueError(
            f"data.columns: {unknown.pop()!r} is none of {', '.join(ALIASES)}: map one "
            "of these to the table's own name, as data.columns=dict(x1='left')"
        )
    own = {name.strip().lower(): name for name in reversed(header)}
    found = {}
    for name, aliases in ALIASES.items():
        names = (given[name],) if name in given else aliases
        present = [own[n.lower()] for n in names if n.lower() in own]
        if present:
            found[name] = present[0]
        elif name in given or name not in (*OPTIONAL, *["label"] * (not labelled)):
            raise ValueError(
                f"{file} has no column {' or '.join(names)}, but {', '.join(header)}: "
                f"set data.columns=dict({name}=...), or the first line is no header"
            )
    return found


def _box(row: Mapping[str, str], line: str) -> list[float] | None:
    """The four numbers of a line; None where all of them are empty."""
    texts = [row[k] for k in ("x1", "y1", "x2", "y2")]
    if not any(texts) and not row["label"]:
        return None
    try:
        return [float(t.replace(",", ".")) for t in texts]  # 10,5 beside semicolons
    except ValueError:
        raise ValueError(
            f"{line}: box {texts}, expected four numbers: correct them, or leave box "
            "and label empty for an image without objects"
        ) from None
