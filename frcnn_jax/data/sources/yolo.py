"""YOLO folders: images, and beside each a text file with one object a line.

    names.txt or data.yaml     the names of classes 0, 1, ...
    images/train/0001.jpg
    labels/train/0001.txt      class  x y of the middle, width, height (of 0 to 1)

The splits may be the outer folders as well (`train/images`, `train/labels`). A line
with more numbers is a polygon, whose box is taken. An image without a text file is an
image without objects.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
import yaml

from frcnn_jax.data.conventions import to_xyxy
from frcnn_jax.data.images import image_size
from frcnn_jax.data.source import Example, Source, clean_boxes

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
LAYOUTS = (("images/{split}", "labels/{split}"), ("{split}/images", "{split}/labels"))
NAMES = ("data.yaml", "names.txt", "classes.txt", "obj.names", "labels/classes.txt")


def load(
    *,
    split: str,
    root: str = "",
    images: str = "",
    labels: str = "",
    classes: str | Sequence[str] = (),
) -> Source:
    """The images of a split by name, with paths below their folder as ids.

    `images` and `labels` are the folders below `root`, where these are neither of the
    two usual ones; `{split}` in them stands for the split's name. `classes` are the
    names in order, or a file of them (one a line, or a YAML with `names`); empty: the
    first of data.yaml, names.txt, classes.txt and obj.names there is.
    """
    base = pathlib.Path(root)
    layouts = [(images, labels)] if images and labels else LAYOUTS
    folders = [tuple(base / p.format(split=split) for p in pair) for pair in layouts]
    found = [pair for pair in folders if all(p.is_dir() for p in pair)]
    if not found:
        raise FileNotFoundError(
            "looked for "
            + ", or ".join(f"{a} with {b}" for a, b in folders)
            + ": set data.root, or data.images and data.labels"
        )
    pictures, texts = found[0]
    names = read_names(base, classes)
    report: list[str] = []
    files = sorted(p for p in pictures.rglob("*") if p.suffix.lower() in SUFFIXES)
    pairs = [(p, texts / p.relative_to(pictures).with_suffix(".txt")) for p in files]
    examples = [_example(p, t, pictures, names, report) for p, t in pairs]
    silent = [p for p, text in pairs if not text.is_file()]
    if files and len(silent) == len(files):
        raise FileNotFoundError(
            f"none of {len(files)} images in {pictures} has a file in {texts}: "
            "set data.labels"
        )
    if silent:
        report.append(
            f"{len(silent)} of {len(files)} images have no label file and are taken as "
            f"empty: {', '.join(p.name for p in silent[:3])}"
        )
    return Source(examples, names, report=report)


def read_names(base: pathlib.Path, classes: str | Sequence[str]) -> tuple[str, ...]:
    """The class names given, in the file given, or in a file where they usually are."""
    if not isinstance(classes, str) and classes:
        return tuple(classes)
    candidates = [classes] if isinstance(classes, str) and classes else NAMES
    files = [base / c for c in candidates if (base / c).is_file()]
    if not files:
        raise FileNotFoundError(
            f"no class names: none of {', '.join(candidates)} in {base}: set "
            "data.classes to a list of names, or to a file of them"
        )
    text = files[0].read_text(encoding="utf-8-sig")
    if files[0].suffix not in (".yaml", ".yml"):
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{files[0]} is not YAML: {error}") from error
    names = found.get("names") if isinstance(found, dict) else None
    if isinstance(names, dict) and all(i in names for i in range(len(names))):
        names = [names[i] for i in range(len(names))]
    plain = str | int | float  # lists of lists of lists may be endless when written out
    if isinstance(names, list) and names and all(isinstance(n, plain) for n in names):
        return tuple(map(str, names))
    raise ValueError(
        f"{files[0]}: names is a {type(names).__name__}, expected a list of names, or "
        "a dict of them by 0, 1, ..."
    )


def parse(file: pathlib.Path, num_classes: int) -> tuple[list[int], np.ndarray]:
    """Classes 1..C and boxes `[n, 4]` (middle and size, of 0 to 1) of a text file."""
    found, boxes = [], []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            values = [float(v) for v in line.split()]
        except ValueError:
            raise ValueError(f"{where}: {line!r} has more than numbers") from None
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise ValueError(
                f"{where}: {len(values)} numbers, expected a class and x, y, width, "
                "height, or a class and the corners of a polygon"
            )
        if values[0] not in range(num_classes):
            raise ValueError(
                f"{where}: class {values[0]:g}, but there are {num_classes} names, "
                f"0 to {num_classes - 1}: correct it, or add the name"
            )
        if max(values[1:]) > 2:
            raise ValueError(
                f"{where}: {line!r} looks like pixels, expected numbers of 0 to 1: "
                "divide by the image's width and height"
            )
        found.append(int(values[0]) + 1)
        corners = np.array(values[1:]).reshape(-1, 2)
        if len(corners) > 2:  # a polygon
            low, high = corners.min(0), corners.max(0)
            corners = np.stack([(low + high) / 2, high - low])
        boxes.append(corners.ravel())
    return found, np.array(boxes, np.float64).reshape(-1, 4)


def _example(
    picture: pathlib.Path,
    text: pathlib.Path,
    folder: pathlib.Path,
    names: tuple[str, ...],
    report: list[str],
) -> Example:
    size = image_size(str(picture))
    found, boxes = parse(text, len(names)) if text.is_file() else ([], np.zeros((0, 4)))
    shown = [
        f"{names[c - 1]} ({', '.join(f'{v:g}' for v in b)})"
        for c, b in zip(found, boxes, strict=True)
    ]
    boxes = to_xyxy(boxes, "center_normalized", size)
    boxes, keep = clean_boxes(boxes, size, shown, text.name, report)
    return Example(
        image=str(picture),
        image_id=str(picture.relative_to(folder).with_suffix("")),
        boxes=boxes[keep],
        classes=np.array(found, np.int32)[keep],
        ignore=np.zeros(int(keep.sum()), bool),
        size=size,
    )
