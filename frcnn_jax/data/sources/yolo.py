"""YOLO folders: images, and for each a text file with one object a line.

    names.txt or data.yaml     the names of classes 0, 1, ...
    images/train/0001.jpg
    labels/train/0001.txt      class  x y of the middle, width, height (of 0 to 1)

The splits may be the outer folders (`train/images`, `train/labels`), and the text files
may lie beside the images. A YAML of Ultralytics or Roboflow names the images of each
split: a folder, a text file of paths, or a list of those. Its paths are often of
another machine; they mean the files below the root with the same last parts. A line
with more numbers is a polygon; its box is taken. An image without a text file is an
image without objects.
"""

import collections
import pathlib
import posixpath
from collections.abc import Sequence

import numpy as np

from frcnn_jax.data.conventions import to_xyxy
from frcnn_jax.data.folders import (
    Folder,
    Found,
    contains,
    files_of,
    fill,
    folder_of,
    is_image,
    templates,
)
from frcnn_jax.data.images import image_size
from frcnn_jax.data.source import Example, Source, clean_boxes
from frcnn_jax.data.sources.yolo_yaml import (
    in_list,
    label_paths,
    listed,
    lists_images,
    read_yaml,
    splits_in,
)

LAYOUTS = (("images/{split}", "labels/{split}"), ("{split}/images", "{split}/labels"))
NAMES = (
    *("data.yaml", "names.txt", "classes.txt", "obj.names", "labels/classes.txt"),
    "_darknet.labels",
)


def load(
    *,
    split: str,
    root: str = "",
    images: str = "",
    labels: str = "",
    classes: str | Sequence[str] = (),
    yaml: str = "",
    lists: str = "",
) -> Source:
    """The images of a split by name; their paths, without suffix, are the ids.

    The ids keep the suffix if `1.jpg` and `1.png` lie side by side.

    `images` and `labels` are the folders below `root`, if they are neither of the two
    usual ones; `{split}` in them stands for the split's name. `yaml` is a file below
    `root` that says where the images are; `lists` is a text file of images' paths, with
    `{split}` in its name. Of these two the text files of labels are found as
    Ultralytics does, in `labels` for `images` or beside them. `classes` are the names
    in order, or a file of them (one a line, or a YAML with `names`); empty: those of
    `yaml`, or the first of data.yaml, names.txt, classes.txt and obj.names there is.
    """
    base = pathlib.Path(root)
    if yaml and not (base / yaml).is_file():
        raise FileNotFoundError(f"no file {base / yaml}: set data.root or data.yaml")
    report: list[str] = []
    names = read_names(base, classes or yaml, report)
    if yaml and not (images and labels):
        pictures, pairs = listed(base, base / yaml, split, report)
        where = str(base / yaml)
    elif lists:
        pictures, pairs = base, in_list(base, fill(lists, split))
        where = str(base / fill(lists, split))
    else:
        pictures, texts = _layout(base, split, images, labels)
        files = sorted(p for p in pictures.rglob("*") if is_image(p.name))
        pairs = [
            (p, texts / p.relative_to(pictures).with_suffix(".txt")) for p in files
        ]
        where = str(texts)
    named = _names_file(base, classes or yaml)
    ids = _ids([p.relative_to(pictures) for p, _ in pairs])
    examples = [
        _example(p, t, i, names, named, report)
        for (p, t), i in zip(pairs, ids, strict=True)
    ]
    silent = [p for p, text in pairs if not text.is_file()]
    if pairs and len(silent) == len(pairs):
        raise FileNotFoundError(
            f"none of {len(pairs)} images in {pictures} has a file in {where}: "
            "set data.images and data.labels"
        )
    if silent:
        report.append(
            f"{len(silent)} of {len(pairs)} images have no label file and are taken as "
            f"empty: {', '.join(p.name for p in silent[:3])}"
        )
    return Source(examples, names, report=report)


def recognise(folder: Folder, *, yaml: str = "", lists: str = "") -> Found | None:
    """A YAML with names and splits, or text files that are named as the images are.

    Of several YAMLs `yaml` says which is meant. Text files of images' paths (`lists`)
    are the splits if the folders are none.
    """
    yamls = [f for f in folder.files if f.endswith((".yaml", ".yml"))]
    named = [f for f in yamls if contains(folder.root / f, (_NAMES,), 1 << 20)]
    files = [f for f in ([yaml] if yaml else named) if splits_in(folder.root / f)]
    if len(files) > 1:
        raise ValueError(
            f"{folder.root} has several YOLO files, {', '.join(files)}: name one, "
            "--config.data.yaml=..."
        )
    if files:
        found = splits_in(folder.root / files[0])
        return Found(dict(yaml=files[0]), found, f"{files[0]}: names and splits")
    usual = {posixpath.basename(n) for n in NAMES}
    known = [f for f in folder.files if posixpath.basename(f) in usual]
    known += [f for f in folder.files if f.endswith(".names")]
    names = min([*known, *named], key=lambda f: (f.count("/"), f), default="")
    known = {f: posixpath.splitext(f)[0] for f in folder.files}
    texts = {stem for f, stem in known.items() if f.endswith(".txt")}
    places: dict[str, str] = {}  # the folder of labels by that of the images
    for file, path in known.items():
        place = folder_of(file)
        if is_image(file) and place not in places:
            for text in label_paths(path):
                if text in texts:
                    places[place] = folder_of(text)
    if not places or not names:
        return None
    found = _found(places, names)
    return _with_lists(folder, found, names, lists) or found


_NAMES = rb"(?m)^\s*['\"]?names\b"


def _found(places: dict[str, str], names: str) -> Found:
    """The leaves for folders of images and their folders of labels."""
    why = f"{names}, and labels in {', '.join(dict.fromkeys(places.values())) or '.'}"
    sets = templates(places)
    (template, found), *others = sets.items()
    labels = {next(iter(templates([places[p]]))) for p in found.values()}
    if others or len(labels) > 1:
        template = posixpath.commonpath(places) if all(places) else ""
        inside = list(places.values())
        labels = {posixpath.commonpath(inside) if all(inside) else ""}
        found = {"all": template}
    leaves = dict(images=template or ".", labels=labels.pop() or ".", classes=names)
    return Found(leaves, tuple(found), why)


def _with_lists(folder: Folder, found: Found, names: str, lists: str) -> Found | None:
    """`found` with the splits of text files of images' paths; None without any."""
    if len(found.splits) > 1 and not lists:
        return None
    texts = [f for f in folder.files if f.endswith(".txt")]
    sets = {lists: files_of(folder, lists)} if lists else templates(texts)
    for template, files in sets.items():
        if lists or ("{split}" in template and len(files) > 1):
            if all(lists_images(folder.root, file) for file in files.values()):
                leaves = dict(lists=template, classes=names)
                why = f"{found.why}, lists {', '.join(files.values())}"
                return Found(leaves, tuple(files), why)
    return None


def _layout(
    base: pathlib.Path, split: str, images: str, labels: str
) -> tuple[pathlib.Path, pathlib.Path]:
    """The folders of images and labels of a split."""
    layouts = [(images, labels)] if images and labels else LAYOUTS
    folders = [tuple(base / fill(p, split) for p in pair) for pair in layouts]
    found = [pair for pair in folders if all(p.is_dir() for p in pair)]
    if not found:
        raise FileNotFoundError(
            "looked for "
            + ", or ".join(f"{a} with {b}" for a, b in folders)
            + ": set data.root, or data.images and data.labels"
        )
    pictures, texts = found[0]
    return pictures, texts


# ------------------------------------------------------------------------- names, files


def read_names(
    base: pathlib.Path, classes: str | Sequence[str], report: list[str] | None = None
) -> tuple[str, ...]:
    """The class names: those given, or those of a given file or of a usual one.

    The report says if the `nc` of a YAML is not the number of its names.
    """
    if not isinstance(classes, str) and classes:
        return tuple(classes)
    file = _names_file(base, classes)
    if file.suffix not in (".yaml", ".yml"):
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is no list of names ({error}): save it as utf-8, or set "
                "data.classes"
            ) from error
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    found = read_yaml(file)
    names = found.get("names") if isinstance(found, dict) else None
    if isinstance(names, dict) and all(i in names for i in range(len(names))):
        names = [names[i] for i in range(len(names))]
    plain = str | int | float  # lists of lists of lists may be endless when written out
    if isinstance(names, list) and names and all(isinstance(n, plain) for n in names):
        count = found.get("nc")
        if isinstance(count, plain) and count != len(names) and report is not None:
            report.append(
                f"{file}: nc is {count} but there are {len(names)} names, which "
                "are taken"
            )
        return tuple(map(str, names))
    raise ValueError(
        f"{file}: names is a {type(names).__name__}, expected a list of names, or "
        "a dict of them by 0, 1, ...: correct it, or set data.classes"
    )


def _names_file(base: pathlib.Path, classes: str | Sequence[str]) -> pathlib.Path:
    """The file of the class names; `data.classes` if the names are given."""
    if classes and not isinstance(classes, str):
        return pathlib.Path("data.classes")
    candidates = [str(classes)] if classes else NAMES
    files = [base / c for c in candidates if (base / c).is_file()]
    if not files:
        raise FileNotFoundError(
            f"no class names: none of {', '.join(candidates)} in {base}: set "
            "data.classes to a list of names, or to a file of them"
        )
    return files[0]


def parse(
    file: pathlib.Path, num_classes: int, named: object = "data.classes"
) -> tuple[list[int], np.ndarray]:
    """Classes 1..C and boxes `[n, 4]` (middle and size, of 0 to 1) of a text file.

    `named` is the file with the names of the classes, for errors.
    """
    found, boxes = [], []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is no text ({error}): export it again, or remove it"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            values = [float(v) for v in line.split()]
        except ValueError:
            raise ValueError(
                f"{where}: {line[:80]!r} has more than numbers, expected a class and "
                "x, y, width, height: correct it or remove the line"
            ) from None
        if len(values) == 6:
            raise ValueError(
                f"{where}: 6 numbers, expected a class and x, y, width, height: is the "
                "sixth a score? Then these are detections and no labels; correct it "
                "or remove the sixth number"
            )
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise ValueError(
                f"{where}: {len(values)} numbers, expected a class and x, y, width, "
                "height, or a class and the corners of a polygon: correct it or remove "
                "the line"
            )
        if values[0] not in range(num_classes):
            raise ValueError(
                f"{where}: class {values[0]:g}, but there are {num_classes} names, "
                f"0 to {num_classes - 1}: correct it, or add the name to {named}"
            )
        if max(values[1:]) > 2:
            raise ValueError(
                f"{where}: {line[:80]!r} looks like pixels, expected numbers of 0 to "
                "1: divide by the image's width and height"
            )
        found.append(int(values[0]) + 1)
        corners = np.array(values[1:]).reshape(-1, 2)
        if len(corners) > 2:  # a polygon
            low, high = corners.min(0), corners.max(0)
            corners = np.stack([(low + high) / 2, high - low])
        boxes.append(corners.ravel())
    return found, np.array(boxes, np.float64).reshape(-1, 4)


def _ids(paths: Sequence[pathlib.Path]) -> list[str]:
    """Paths without suffix; with it if `1.jpg` and `1.png` are two images."""
    short = [str(path.with_suffix("")) for path in paths]
    count = collections.Counter(short)
    return [s if count[s] == 1 else str(p) for s, p in zip(short, paths, strict=True)]


def _example(
    picture: pathlib.Path,
    text: pathlib.Path,
    image_id: str,
    names: tuple[str, ...],
    named: object,
    report: list[str],
) -> Example:
    size = image_size(str(picture))
    found, boxes = [], np.zeros((0, 4))
    if text.is_file():
        found, boxes = parse(text, len(names), named)
    shown = [
        f"{names[c - 1]} ({', '.join(f'{v:g}' for v in b)})"
        for c, b in zip(found, boxes, strict=True)
    ]
    boxes = to_xyxy(boxes, "center_normalized", size)
    boxes, keep = clean_boxes(boxes, size, shown, text.name, report)
    return Example(
        image=str(picture),
        image_id=image_id,
        boxes=boxes[keep],
        classes=np.array(found, np.int32)[keep],
        ignore=np.zeros(int(keep.sum()), bool),
        size=size,
    )
