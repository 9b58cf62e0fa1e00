"""CSV: a table with one box a line, and a folder of images.

    image,x1,y1,x2,y2,label
    photos/1.jpg,10,20,50,80,cat
    photos/2.jpg,,,,,

The first line names the columns, in any order; other columns are left alone.

| column | also called | meaning |
| --- | --- | --- |
| `image` | `filename`, `file_name`, `path`, `image_path` | file below the folder |
| `x1`, `y1`, `x2`, `y2` | `xmin`, `ymin`, `xmax`, `ymax` | the box, see `convention` |
| `label` | `class`, `class_name`, `name` | name of its class |
| `ignore` | `iscrowd`, `difficult` | optional: 1 for neither object nor background |
| `split` | | optional: which lines belong to which split |

A line without numbers and label is an image without objects. Images are in the order of
their first line.
"""

import csv
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from frcnn_jax.data.source import Source, below
from frcnn_jax.data.sources.dicts import from_dicts

ALIASES = dict(
    image=("image", "filename", "file_name", "path", "image_path"),
    x1=("x1", "xmin"),
    y1=("y1", "ymin"),
    x2=("x2", "xmax"),
    y2=("y2", "ymax"),
    label=("label", "class", "class_name", "name"),
    ignore=("ignore", "iscrowd", "difficult"),
    split=("split",),
)
OPTIONAL = ("ignore", "split")


def load(
    *,
    split: str,
    root: str = "",
    annotations: str = "{split}.csv",
    images: str = "",
    classes: Sequence[str] = (),
    convention: str = "xyxy",
    columns: Mapping[str, str] | None = None,
    delimiter: str = ",",
) -> Source:
    """The images of a table; their paths are their ids.

    `annotations` and `images` are the file and the folder below `root`; `{split}` in
    them stands for the split's name. A file with a column `split` holds several.
    `classes` in order, or empty: every label of the file, sorted. `columns` maps the
    names above to your own; `convention` is one of `conventions.CONVENTIONS`.
    """
    file = pathlib.Path(root) / annotations.format(split=split)
    if not file.is_file():
        raise FileNotFoundError(
            f"no annotation file {file}: set data.root or data.annotations"
        )
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter)
        where = _columns(reader.fieldnames or (), columns or {}, file)
        rows = list(_rows(reader, where, file))
    classes = tuple(classes) or tuple(sorted({r["label"] for _, r in rows} - {""}))
    if "split" in where:
        known = dict.fromkeys(r["split"] for _, r in rows)
        if split not in known:
            raise ValueError(f"{file} has no split {split!r}: {', '.join(known)}")
        rows = [(line, r) for line, r in rows if r["split"] == split]
    folder = pathlib.Path(root) / images.format(split=split)
    dicts: dict[str, dict] = {}
    for line, row in rows:
        if root or images:  # else paths are the user's own
            below(folder, row["image"], line)
        entry = dicts.setdefault(
            row["image"],
            dict(image=row["image"], id=row["image"], boxes=[], labels=[], ignore=[]),
        )
        if box := _box(row, line):
            entry["boxes"].append(box)
            entry["labels"].append(row["label"])
            entry["ignore"].append(row.get("ignore") in ("1", "true", "True"))
    return from_dicts(
        list(dicts.values()),
        root=str(folder),
        classes=classes,
        convention=convention,
    )


def _rows(
    reader: csv.DictReader, where: Mapping[str, str], file: pathlib.Path
) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each line is, and its values by our names; what is left out is empty."""
    try:
        for row in reader:
            line = f"{file}, line {reader.line_num}"
            yield line, {name: row[column] or "" for name, column in where.items()}
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}") from error


def _columns(
    header: Sequence[str], given: Mapping[str, str], file: pathlib.Path
) -> dict[str, str]:
    """The table's own name of each column; ValueError names what is missing."""
    if unknown := set(given) - set(ALIASES):
        raise ValueError(f"data.columns: {unknown.pop()!r} is none of {list(ALIASES)}")
    found = {}
    for name, aliases in ALIASES.items():
        names = (given[name],) if name in given else aliases
        present = [n for n in names if n in header]
        if present:
            found[name] = present[0]
        elif name in given or name not in OPTIONAL:
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
        return [float(t) for t in texts]
    except ValueError:
        raise ValueError(f"{line}: box {texts}, expected four numbers") from None
