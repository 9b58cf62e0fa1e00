"""PASCAL VOC's XML: the devkit's folders, or the XML files of any annotation tool.

    Annotations/*.xml, JPEGImages/*, ImageSets/Main/<split>.txt       the devkit
    annotations/*.xml, images/*          or train/*.xml, train/*.jpg, or all in one

The image of a tool's XML file has the same name, or is the one that `<filename>` names,
anywhere below the root. `<path>` is of the machine of the annotator and is not read.
VOC counts pixels from one and its corners are inclusive: `xmin=1, xmax=640` covers a
picture 640 wide (`conventions`). Objects marked difficult are kept as `ignore`. A
rotated box and a polygon become the upright box around them, which is reported.
"""

import os
import pathlib
import posixpath
import re
from collections.abc import Callable, Sequence

import numpy as np

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
)
from frcnn_jax.data.images import image_size
from frcnn_jax.data.source import Example, Source, below, clean_boxes
from frcnn_jax.data.sources.voc_xml import Annotation, parse

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)


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

    `root` holds Annotations/, or VOC2007/ and its like, or VOCdevkit/ with those; these
    may also lie deeper. `split` names a file of ImageSets/Main.
    `2007_trainval+2012_trainval` joins several; the year chooses the folder.
    `annotations` is a folder below `root` with the XML files of any tool; `lists` is a
    file that names those of a split. In both `{split}` stands for the split's name.
    Images are looked for below `images`.
    `classes` are the names in order, or "voc" for the twenty of the challenge. If they
    are empty, they are all names in the XML files of all splits, sorted.
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
    found = [
        (
            _annotation(folder, name, file),
            lambda _, folder=folder, name=name: _image_file(folder, name),
            name,
        )
        for (folder, name), file in listed.items()
    ]
    return Source(_examples(found, classes, report), classes, report=report)


def recognise(
    folder: Folder, *, annotations: str = "", lists: str = ""
) -> Found | None:
    """XML files with an `<annotation>`: the devkit with its lists, or a tool's folders.

    `annotations` and `lists` are the leaves of `load`, if they are given.
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
    """The lists of ImageSets/Main, with the year if there are several years."""
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
    found = [
        (
            folder.root / file,
            lambda known, file=file: _picture(pictures, file, known.filename),
            file.removeprefix(start)[: -len(".xml")],
        )
        for file in files
    ]
    return Source(_examples(found, classes, report), classes, report=report)


def _picture(pictures: Pictures, file: str, filename: str) -> str:
    """The image of an XML file: of the file's name, or else of the name in it."""
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


def _examples(
    files: Sequence[tuple[pathlib.Path, Callable[[Annotation], str], str]],
    classes: tuple[str, ...],
    report: list[str],
) -> list[Example]:
    """The examples of XML files, each with the function of its image, and its name."""
    examples, around = [], []
    for file, find_image, name in files:
        found = parse(file)
        around += [file.name] * found.around
        examples.append(_example(file, found, find_image, name, classes, report))
    if around:
        report.append(
            f"{len(around)} rotated boxes or polygons have the upright box around "
            f"them: {few(dict.fromkeys(around), 3)}"
        )
    return examples


def _example(
    file: pathlib.Path,
    found: Annotation,
    find_image: Callable[[Annotation], str],
    name: str,
    classes: tuple[str, ...],
    report: list[str],
) -> Example:
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
    if not folders:  # deeper, as archives are unpacked: every one that has the list
        folders = [f for f in _deeper(base) if match is None or f.match(pattern)]
        listed = [f for f in folders if (f / _LISTS / f"{name}.txt").is_file()]
        folders = listed or folders
    if len(folders) != 1:
        found = ", ".join(str(f) for f in folders) or "nothing"
        raise FileNotFoundError(
            f"looked for a folder with Annotations/ in {base}, {base / pattern}, "
            f"{base / 'VOCdevkit' / pattern} and below, and found {found}: set "
            "data.root, and name the year in the split ('2007_trainval') if there are "
            "several"
        )
    file = folders[0] / "ImageSets" / "Main" / f"{name}.txt"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in file.parent.glob("*.txt"))) or "none"
        raise FileNotFoundError(
            f"no split file {file}; there are: {known}; set data.train_split and "
            "data.eval_split to some of these"
        )
    return folders[0], file


_LISTS = pathlib.PurePath("ImageSets") / "Main"


def _deeper(base: pathlib.Path) -> list[pathlib.Path]:
    """The folders below the root that have Annotations/ and ImageSets/Main/."""
    if not base.is_dir():
        return []
    places = {folder_of(f) for f in list_folder(base).files}
    ends = [p.removesuffix("ImageSets/Main") for p in places]
    inside = [base / e for e, p in zip(ends, places, strict=True) if e != p]
    return sorted(f for f in inside if (f / "Annotations").is_dir())


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
    """The names of a list; ValueError if it is no text."""
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
