"""The lines of a table by our names of its columns, whatever the table calls them.

The encoding and the character between columns are found, too. `sources/csv.py` says
what a table may hold.
"""

import codecs
import csv
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from frcnn_jax.data.sources.csv_cells import SIDES, spread

ALIASES = dict(
    image=(
        *("image", "filename", "file_name", "file", "path", "image_path", "filepath"),
        *("file_path", "img_path", "image_name", "img_name", "img", "image_id"),
        "patientid",
    ),
    x1=("x1", "xmin", "x_min", "left", "roi.x1"),
    y1=("y1", "ymin", "y_min", "top", "roi.y1"),
    x2=("x2", "xmax", "x_max", "right", "roi.x2"),
    y2=("y2", "ymax", "y_max", "bottom", "roi.y2"),
    box=(
        *("box", "bbox", "boxes", "bboxes", "bounding_box", "boundingbox"),
        *("bounding box", "boxesstring"),
    ),
    label=(
        *("label", "class", "class_name", "name", "category", "categories", "labels"),
        *("classname", "class_id", "classid", "target"),
    ),
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
    ("xywh", dict(x1="x", y1="y", x2="width", y2="height")),
    ("xywh", dict(x1="left", y1="top", x2="width", y2="height")),
)
# Columns that are no labels: sides of the picture, where it comes from.
UNLABELLED = frozenset({"width", "height", "source", "domain"})
ONLY = "object"  # the class of a table without labels
OPTIONAL = ("ignore", "split")
Rows = list[tuple[str, dict[str, str]]]  # where a line is, its values by our names


def header_of(
    file: pathlib.Path, given: Mapping[str, str] | None = None, delimiter: str = ""
) -> tuple[dict[str, str], dict[str, Any]] | None:
    """The columns of a table by our names, and leaves; None for any other file.

    `given` are names that are known already, `delimiter` as in `csv.load`.
    """
    try:
        with file.open("rb") as handle:
            head = handle.read(1 << 16)
        text = head.decode("utf-16" if _is_utf16(head) else "utf-8-sig", "replace")
        text = text.splitlines()[0] if text else ""
        header = next(csv.reader([text], delimiter=delimiter or _delimiter(text)), [])
    except (OSError, ValueError, csv.Error):
        return None
    for convention, columns in (("", given or {}), *OTHERS):
        try:
            found = _columns(header, columns, file)
        except ValueError:
            continue
        leaves = dict(columns=columns, convention=convention) if convention else {}
        return found, leaves
    names = {name for names in ALIASES.values() for name in names}
    if {h.strip().lower() for h in header} <= names | UNLABELLED:
        try:  # boxes and nothing that could be a label
            return _columns(header, {}, file, labelled=False), dict(classes=(ONLY,))
        except ValueError:
            pass
    return None


def _delimiter(text: str) -> str:
    """The one of comma, semicolon, tab and bar that the first line has most of."""
    header = text.partition("\n")[0]
    return max(",;\t|", key=header.count)


def _is_utf16(raw: bytes) -> bool:
    """Whether the text begins with the mark of utf-16."""
    return raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(
    file: pathlib.Path,
    columns: Mapping[str, str],
    delimiter: str,
    report: list[str],
    one_class: bool = False,
) -> tuple[dict[str, str], Rows]:
    """The table's columns by our names, and its rows, each with its file and line.

    If `one_class`, the column of labels may be missing.
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


def _rows(
    reader: csv.DictReader, where: Mapping[str, str], file: pathlib.Path
) -> Iterator[tuple[str, dict[str, str]]]:
    """The place of each line, and its values by our names; missing ones are empty."""
    try:
        for row in reader:
            line = f"{file}, line {reader.line_num}"
            known = {k: (row[column] or "").strip() for k, column in where.items()}
            for part in spread(known, line) if "box" in known else (known,):
                yield line, part
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
    found: dict[str, str] = {}
    if _holds(own, given, "box") and not all(_holds(own, given, k) for k in SIDES):
        wanted = {k: v for k, v in ALIASES.items() if k not in SIDES}
    else:
        wanted = {k: v for k, v in ALIASES.items() if k != "box"}
    for name, aliases in wanted.items():
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


def _holds(own: Mapping[str, str], given: Mapping[str, str], name: str) -> bool:
    """Whether a table has a column that is called `name` or one of its aliases."""
    names = (given[name],) if name in given else ALIASES[name]
    return any(n.lower() in own for n in names)


def box_of(row: Mapping[str, str], line: str) -> list[float] | None:
    """The four numbers of a line; None if all of them are empty."""
    texts = [row[side] for side in SIDES]
    if not any(texts):
        return None
    try:
        return [float(t.replace(",", ".")) for t in texts]  # 10,5 beside semicolons
    except ValueError:
        raise ValueError(
            f"{line}: box {texts}, expected four numbers: correct them, or leave all "
            "four empty for an image without objects"
        ) from None
