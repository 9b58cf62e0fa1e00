"""PASCAL VOC folders: Annotations/*.xml, JPEGImages/*, ImageSets/Main/<split>.txt.

VOC counts pixels from one and its corners are inclusive: `xmin=1, xmax=640` covers a
picture 640 wide; `conventions` knows. Objects marked difficult are kept as `ignore`.
"""

import pathlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from frcnn_jax.data.conventions import to_xyxy
from frcnn_jax.data.images import image_size
from frcnn_jax.data.source import Example, Size, Source, below, clean_boxes

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG", ".BMP")


class Annotation(NamedTuple):
    """What one XML file says; boxes as they stand there, size None when it is not."""

    size: Size | None
    names: list[str]
    boxes: Float[np.ndarray, "n 4"]
    difficult: list[bool]


def load(*, split: str, root: str = "", classes: str | Sequence[str] = ()) -> Source:
    """The images of a split, with names as image ids.

    `root` holds Annotations/ itself, or VOC2007/ and its like, or VOCdevkit/ with
    those. `split` names a file of ImageSets/Main; `2007_trainval+2012_trainval` joins
    several, the year choosing the folder. `classes` are the names in order, "voc" for
    the twenty of the challenge, or empty: every name found in Annotations, sorted.
    """
    parts = [_part(root, part) for part in split.split("+")]
    listed = dict.fromkeys((folder, i) for folder, file in parts for i in _names(file))
    folders = dict.fromkeys(folder for folder, _ in parts)
    if isinstance(classes, str):
        if classes and classes != "voc":
            raise ValueError(f"data.classes={classes!r}: give 'voc' or a list of names")
        classes = CLASSES if classes else ()
    classes = tuple(classes) or tuple(sorted(set().union(*map(_class_names, folders))))
    report: list[str] = []
    examples = [_example(folder, i, classes, report) for folder, i in listed]
    return Source(examples, classes, report=report)


def parse(file: pathlib.Path) -> Annotation:
    """Reads one annotation file; ValueError, naming it, for anything but plain XML."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if re.search("<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
            raise ValueError(
                "it declares a document type or entities, which are refused"
            )
        root = ElementTree.fromstring(text)
        objects = [_object(element) for element in root.findall("object")]
        w, h = (
            int(float(root.findtext(f"size/{k}") or 0)) for k in ("width", "height")
        )
    except FileNotFoundError:
        raise FileNotFoundError(f"no annotation file {file}") from None
    except (ValueError, OverflowError, ElementTree.ParseError) as error:
        raise ValueError(f"cannot read the annotation {file}: {error}") from error
    names, boxes, difficult = zip(*objects, strict=True) if objects else ((), (), ())
    return Annotation(
        size=(h, w) if h > 0 and w > 0 else None,
        names=list(names),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        difficult=list(difficult),
    )


def _object(element: ElementTree.Element) -> tuple[str, list[float], bool]:
    sides = ("xmin", "ymin", "xmax", "ymax")
    box = [float(_text(element, f"bndbox/{side}")) for side in sides]
    difficult = int(element.findtext("difficult") or 0) == 1
    return _text(element, "name"), box, difficult


def _text(element: ElementTree.Element, path: str) -> str:
    value = element.findtext(path)
    if value is None or not value.strip():
        raise ValueError(f"an object without {path}")
    return value.strip()


def _example(
    folder: pathlib.Path, name: str, classes: tuple[str, ...], report: list[str]
) -> Example:
    file = below(folder / "Annotations", f"{name}.xml", "ImageSets/Main")
    found = parse(file)
    image = _image_file(folder, name)
    size = found.size or image_size(image)
    for c in found.names:
        if c not in classes:
            raise ValueError(
                f"{file} has an object of class {c!r}, which is not one of "
                f"{', '.join(classes)}: add it to data.classes, or leave data.classes "
                "empty to take every class found"
            )
    labels = [
        f"{c} ({', '.join(f'{v:g}' for v in box)})"
        for c, box in zip(found.names, found.boxes, strict=True)
    ]
    # One pixel wide in VOC's counting means equal corners: a click, not an object.
    boxes, keep = clean_boxes(
        to_xyxy(found.boxes, "voc"), size, labels, file.name, report, min_size=1.0
    )
    return Example(
        image=image,
        image_id=name,
        boxes=boxes[keep],
        classes=np.array([classes.index(c) + 1 for c in found.names], np.int32)[keep],
        ignore=np.array(found.difficult, bool)[keep],
        size=size,
    )


def _part(root: str, part: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The folder and the list file of one part of a split."""
    if not root:
        raise ValueError("data.root is empty: give the folder with Annotations/")
    base = pathlib.Path(root)
    match = re.fullmatch(r"(\d{4})_(.+)", part)
    if match and not (base / "ImageSets" / "Main" / f"{part}.txt").is_file():
        pattern, name = f"VOC{match[1]}", match[2]
    else:
        pattern, name = "VOC[0-9]*", part
    folders = [base, *base.glob(pattern), *base.glob(f"VOCdevkit/{pattern}")]
    folders = [f for f in folders if (f / "Annotations").is_dir()]
    if len(folders) != 1:
        found = ", ".join(str(f) for f in folders) or "nothing"
        raise FileNotFoundError(
            f"looked for a folder with Annotations/ in {base}, {base / pattern} and "
            f"{base / 'VOCdevkit' / pattern} and found {found}: set data.root, and "
            "name the year in the split ('2007_trainval') where there are several"
        )
    file = folders[0] / "ImageSets" / "Main" / f"{name}.txt"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in file.parent.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"no split file {file}; there are: {known}")
    return folders[0], file


def _names(file: pathlib.Path) -> list[str]:
    # Class-wise lists carry a second column (1, 0, -1).
    return [line.split()[0] for line in file.read_text().splitlines() if line.strip()]


def _class_names(folder: pathlib.Path) -> set[str]:
    files = sorted((folder / "Annotations").glob("*.xml"))
    return {name for file in files for name in parse(file).names}


def _image_file(folder: pathlib.Path, name: str) -> str:
    for suffix in SUFFIXES:
        if (file := folder / "JPEGImages" / f"{name}{suffix}").is_file():
            return str(file)
    raise FileNotFoundError(f"no image {folder / 'JPEGImages' / name}{SUFFIXES[0]}")
