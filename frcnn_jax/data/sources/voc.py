"""PASCAL VOC's XML: the devkit's folders, or the XML files of any annotation tool.

One deep thing behind `load`: one format in the two layouts in which it is met.

    Annotations/*.xml, JPEGImages/*, ImageSets/Main/<split>.txt       the devkit
    annotations/*.xml, images/*          or train/*.xml, train/*.jpg, or all in one

A tool's image is the one of the same name as its XML file, or the one that `<filename>`
names, anywhere below the root; `<path>`, of the machine it was drawn on, is not read.
VOC counts pixels from one and its corners are inclusive: `xmin=1, xmax=640` covers a
picture 640 wide; `conventions` knows. Objects marked difficult are kept as `ignore`.
"""

import math
import os
import pathlib
import posixpath
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from frcnn_jax.data.conventions import to_xyxy
from frcnn_jax.data.folders import (
    IMAGES,
    Folder,
    Found,
    Pictures,
    contains,
    few,
    files_of,
    fill,
    folder_of,
    is_image,
    list_folder,
    stem,
    templates,
    xml_text,
)
from frcnn_jax.data.images import image_size
from frcnn_jax.data.source import Example, Size, Source, below, clean_boxes

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)


class Annotation(NamedTuple):
    """What one XML file says; boxes as they stand there, size None when it is not."""

    size: Size | None
    names: list[str]
    boxes: Float[np.ndarray, "n 4"]
    difficult: list[bool]
    filename: str = ""


def load(
    *,
    split: str,
    root: str = "",
    classes: str | Sequence[str] = (),
    annotations: str = "",
    images: str = "",
    lists: str = "",
) -> Source:
    """The images of a split, with names as image ids.

    `root` holds Annotations/ itself, or VOC2007/ and its like, or VOCdevkit/ with
    those. `split` names a file of ImageSets/Main; `2007_trainval+2012_trainval` joins
    several, the year choosing the folder.
    With `annotations`, a folder below `root`, its XML files are read, whatever made
    them; of `lists`, a file, those it names; in both `{split}` stands for the split's
    name. Images are looked for below `images`.
    `classes` are the names in order, "voc" for the twenty of the challenge, or empty:
    every name found in the XML files of any split, sorted.
    """
    if isinstance(classes, str):
        if classes and classes != "voc":
            raise ValueError(f"data.classes={classes!r}: give 'voc' or a list of names")
        classes = CLASSES if classes else ()
    if annotations:
        return _load_tool(root, split, tuple(classes), annotations, images, lists)
    parts = [_part(root, part) for part in split.split("+")]
    listed = {(folder, i): file for folder, file in parts for i in _names(file)}
    folders = dict.fromkeys(folder for folder, _ in parts)
    classes = tuple(classes) or tuple(sorted(set().union(*map(_class_names, folders))))
    report: list[str] = []
    examples = [
        _example(
            _annotation(folder, name, file),
            lambda _, folder=folder, name=name: _image_file(folder, name),
            name,
            classes,
            report,
        )
        for (folder, name), file in listed.items()
    ]
    return Source(examples, classes, report=report)


def recognise(
    folder: Folder, *, annotations: str = "", lists: str = ""
) -> Found | None:
    """XML files with an `<annotation>`: the devkit with its lists, or a tool's folders.

    `annotations` and `lists` say which, where that is known.
    """
    if not annotations and not lists and (names := _devkit_lists(folder)):
        return Found({}, names, "Annotations and ImageSets/Main")
    files = [f for f in folder.files if f.lower().endswith(".xml")]
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(folder_of(file), []).append(file)
    groups = {
        place: names
        for place, names in groups.items()
        if any(contains(folder.root / n, (_ROOT,), 1 << 16) for n in names[:3])
    }
    if not groups:
        return None
    if annotations:
        sets = {annotations: files_of(Folder(folder.root, tuple(groups)), annotations)}
    else:
        sets = templates(groups)
    (template, found), *others = sets.items()
    if not found:
        return None
    if others:  # folders of no splits: all of them together
        template = posixpath.commonpath(sets) if all(sets) else ""
        found = {"all": template}
    why = f"{sum(map(len, groups.values()))} XML files in {', '.join(groups) or '.'}"
    leaves = dict(annotations=template or ".")
    if len(found) < 2 and (by_name := _find_lists(folder, files, lists)):
        template, named = by_name
        lines = f"{why}, lists {', '.join(named.values())}"
        return Found(dict(leaves, lists=template), tuple(named), lines)
    return Found(leaves, tuple(found), why)


_ROOT = rb"<annotation[\s>]"


def _devkit_lists(folder: Folder) -> tuple[str, ...]:
    """The lists of ImageSets/Main, with the year where there are several."""
    pattern = r"(?:(?:.*/)?VOC(\d{4})/)?(?:.*/)?ImageSets/Main/([^/]+)\.txt"
    found = [m for f in folder.files if (m := re.fullmatch(pattern, f))]
    if len({m[1] for m in found}) > 1:
        return tuple(sorted({f"{m[1]}_{m[2]}" for m in found if "_" not in m[2]}))
    return tuple(sorted({m[2] for m in found if "_" not in m[2]}))  # not class by class


def _find_lists(
    folder: Folder, files: Sequence[str], lists: str
) -> tuple[str, dict[str, str]] | None:
    """Text files that name XML files or their images, one a split."""
    texts = [f for f in folder.files if f.endswith(".txt")]
    sets = {lists: files_of(folder, lists)} if lists else templates(texts)
    stems = {stem(f) for f in files}
    for template, found in sets.items():
        if lists or ("{split}" in template and len(found) > 1):
            named = [_names(folder.root / f)[:20] for f in found.values()]
            if all(part and set(map(_listed, part)) <= stems for part in named):
                return template, found
    return None


def _listed(line: str) -> str:
    """The stem of the file that a line of a list names first."""
    first = line.split()[0]
    name = first if is_image(first) else line
    known = is_image(name) or name.lower().endswith(".xml")
    return stem(name) if known else posixpath.basename(name)


def _load_tool(
    root: str,
    split: str,
    classes: tuple[str, ...],
    annotations: str,
    images: str,
    lists: str,
) -> Source:
    """The XML files of a folder; their names below it, without suffix, are the ids."""
    folder = list_folder(root)
    wanted, every = ("" if t == "." else t for t in (fill(annotations, split), ""))
    start = f"{wanted}/" if wanted else ""
    xml = [f for f in folder.files if f.lower().endswith(".xml")]
    files = [f for f in xml if f.startswith(start)]
    if not files:
        raise FileNotFoundError(
            f"no XML file in {folder.root / wanted}: set data.root or data.annotations"
        )
    if lists:
        kept = {_listed(n) for n in _names(folder.root / fill(lists, split))}
        files = [f for f in files if stem(f) in kept]
    if not classes:
        before, braces, _ = annotations.partition("{split}")
        every = before if braces else start
        names = (parse(folder.root / f).names for f in xml if f.startswith(every))
        classes = tuple(sorted({name for part in names for name in part}))
    pictures = Pictures(folder, fill(images, split))
    report: list[str] = []
    examples = []
    for file in files:

        def find(annotation, file=file):
            return _picture(pictures, file, annotation.filename)

        name = file.removeprefix(start)[: -len(".xml")]
        examples.append(_example(folder.root / file, find, name, classes, report))
    return Source(examples, classes, report=report)


def _picture(pictures: Pictures, file: str, filename: str) -> str:
    """The image of an XML file: of its own name, or else of the name it states."""
    near, where = folder_of(file), pictures.root / file
    suffix = posixpath.splitext(filename)[1].lower()
    name = f"{stem(file)}{suffix if suffix in IMAGES else ''}"
    found = pictures.find(name, near=near, where=where)
    found = found or pictures.of_stem(stem(file), near=near, where=where)
    if found is None and filename:
        found = pictures.find(filename, near=near, where=where)
    if found is None:
        raise FileNotFoundError(
            f"{where}: no image {stem(file)} with any suffix, nor {filename!r}, below "
            f"{pictures.root}: set data.root or data.images"
        )
    return str(pictures.root / found)


def parse(file: pathlib.Path) -> Annotation:
    """Reads one annotation file; ValueError, naming it, for anything but plain XML."""
    try:
        text = xml_text(file.read_bytes())
        if re.search("<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
            raise ValueError(
                "it declares a document type or entities, which are refused"
            )
        root = ElementTree.fromstring(text)
        objects = [_object(e, i) for i, e in enumerate(root.findall("object"), start=1)]
        w, h = (_whole(root, f"size/{k}", "the image") for k in ("width", "height"))
        filename = (root.findtext("filename") or "").strip()
    except FileNotFoundError:
        message = f"no annotation file {file}: add it, or set data.root"
        raise FileNotFoundError(message) from None
    except (ValueError, OverflowError, ElementTree.ParseError) as error:
        raise ValueError(
            f"cannot read the annotation {file}: {error}: correct or remove it"
        ) from error
    names, boxes, difficult = zip(*objects, strict=True) if objects else ((), (), ())
    return Annotation(
        size=(h, w) if h > 0 and w > 0 else None,
        names=list(names),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        difficult=list(difficult),
        filename=filename,
    )


def _object(element: ElementTree.Element, i: int) -> tuple[str, list[float], bool]:
    sides, who = ("xmin", "ymin", "xmax", "ymax"), f"object {i}"
    paths = [f"bndbox/{side}" for side in sides]
    box = [_number(_text(element, path, who), path, who) for path in paths]
    difficult = _whole(element, "difficult", who) == 1
    return _text(element, "name", who), box, difficult


def _text(element: ElementTree.Element, path: str, who: str) -> str:
    value = element.findtext(path)
    if value is None or not value.strip():
        raise ValueError(f"{who} has no {path}")
    return value.strip()


def _number(text: str, path: str, who: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{who} has {path} {text!r}, expected a number") from None


def _whole(element: ElementTree.Element, path: str, who: str) -> int:
    """A whole number, 0 where there is none."""
    value = _number(element.findtext(path) or "0", path, who)
    if not math.isfinite(value):
        raise ValueError(f"{who} has {path} {value}, expected a number")
    return int(value)


def _example(
    file: pathlib.Path,
    find_image: Callable[[Annotation], str],
    name: str,
    classes: tuple[str, ...],
    report: list[str],
) -> Example:
    found = parse(file)
    image = find_image(found)
    size = found.size or image_size(image)
    for c in found.names:
        if c not in classes:
            raise ValueError(
                f"{file} has an object of class {c!r}, which is not one of "
                f"{few(classes)}: add it to data.classes, or leave data.classes "
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
        raise FileNotFoundError(
            f"no split file {file}; there are: {known}; set data.train_split and "
            "data.eval_split to some of these"
        )
    return folders[0], file


def _annotation(folder: pathlib.Path, name: str, file: pathlib.Path) -> pathlib.Path:
    """The XML file of a name in a list."""
    found = below(folder / "Annotations", f"{name}.xml", file)
    if not os.path.isfile(found):
        raise FileNotFoundError(
            f"{file} names {name!r}: no annotation file {found}; add it, or remove the "
            "name from the list"
        )
    return found


def _names(file: pathlib.Path) -> list[str]:
    """The names of a list; ValueError where it is no text."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is no list of names ({error}): save it as utf-8"
        ) from error
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no split file {file}: set data.lists, or another split"
        ) from None
    lines = [line.strip() for line in lines if line.strip()]
    column = re.compile(r"\s+-?[01]$")  # of class-wise lists, in each line
    if all(map(column.search, lines)):
        lines = [column.sub("", line) for line in lines]
    names = [line.strip('"').strip() for line in lines]  # CVAT quotes those with spaces
    return [name for name in names if name]


def _class_names(folder: pathlib.Path) -> set[str]:
    files = sorted((folder / "Annotations").rglob("*.xml"))
    return {name for file in files for name in parse(file).names}


def _image_file(folder: pathlib.Path, name: str) -> str:
    base = folder / "JPEGImages" / name
    for suffix in _SUFFIXES:
        if os.path.isfile(f"{base}{suffix}"):
            return f"{base}{suffix}"
    raise FileNotFoundError(
        f"no image {base}{_SUFFIXES[0]}, nor one of another suffix: add it, or remove "
        "the name from the lists in ImageSets/Main"
    )


_SUFFIXES = (".jpg", *sorted(IMAGES - {".jpg"}), *sorted(s.upper() for s in IMAGES))
