"""The YAML of a YOLO set: the names of classes, and the images of each split.

The path of an image alone tells the path of its text file.
"""

import itertools
import os
import pathlib
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from frcnn_jax.data.folders import few, folder_of, is_image, tidy

SPLITS = ("train", "val", "valid", "test")


def label_paths(image: str) -> tuple[str, ...]:
    """The paths, without suffix, that the labels of an image may have.

    The last folder `images` is replaced by `labels`, as Ultralytics does (`Images` by
    `Labels`), or the labels lie beside the image.
    """
    parts = image.split("/")
    places = [i for i, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if not places:
        return (image,)
    known = dict(images="labels", Images="Labels", IMAGES="LABELS")
    parts[places[-1]] = known.get(parts[places[-1]], "labels")
    return "/".join(parts), image


def splits_in(file: pathlib.Path) -> tuple[str, ...]:
    """The splits that a YAML has; none if it is not YOLO's."""
    try:
        found = read_yaml(file)
    except (OSError, ValueError):
        return ()
    return tuple(k for k in SPLITS if isinstance(found, dict) and found.get(k))


def read_yaml(file: pathlib.Path) -> Any:
    """The content of a file; ValueError names a file that is not YAML."""
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: set data.yaml or data.classes")
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{file} is not YAML ({said}): correct it, or set data.classes, "
            "data.images and data.labels"
        ) from error


def listed(
    base: pathlib.Path, file: pathlib.Path, split: str, report: list[str]
) -> tuple[pathlib.Path, list[tuple[pathlib.Path, pathlib.Path]]]:
    """The images that a YAML names for a split, each with its text file."""
    found = read_yaml(file)
    there = [k for k in SPLITS if isinstance(found, dict) and found.get(k)]
    if split not in there:
        raise ValueError(
            f"{file} has no split {split!r}: there are {few(there)}; add the key "
            f"{split!r}, or set data.train_split and data.eval_split to some of these"
        )
    path = found.get("path") or ""
    places = {k: _places(base, file, str(path), k, found[k]) for k in there}
    for other in there:
        if other != split and found[other] != found[split]:
            if both := set(places[other]) & set(places[split]):
                raise ValueError(
                    f"{file}: {split}: {found[split]} and {other}: {found[other]} both "
                    f"come to {both.pop()}: correct the paths"
                )
    names: list[str] = []
    for place in places[split]:
        if (base / place).is_dir():
            inside = (base / place).rglob("*")
            names += sorted(
                p.relative_to(base).as_posix() for p in inside if is_image(p.name)
            )
        else:
            names += _lines(base, place)
    if not names:
        raise FileNotFoundError(
            f"{file}: {split}: {found[split]} has no images: correct the path, or add "
            "images there"
        )
    return base, [(base / name, _text(base, name)) for name in dict.fromkeys(names)]


def in_list(base: pathlib.Path, file: str) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """The images that a text file below the root names, each with its text file."""
    if not (base / file).is_file():
        raise FileNotFoundError(
            f"no list of images {base / file}: set data.lists, data.root, or another "
            "split"
        )
    names = dict.fromkeys(_lines(base, file))
    if not names:
        raise ValueError(f"{base / file} names no image: add the paths, one a line")
    return [(base / name, _text(base, name)) for name in names]


def lists_images(base: pathlib.Path, file: str) -> bool:
    """Whether the first lines of a text file name images below the root."""
    try:
        with (base / file).open(encoding="utf-8-sig") as handle:
            lines = [line.strip() for line in itertools.islice(handle, 20)]
    except (OSError, ValueError):
        return False
    starts = (folder_of(file), "")
    found = [is_image(n) and _find(base, n, starts, os.path.isfile) for n in lines if n]
    return bool(found) and all(found)


def _places(
    base: pathlib.Path, file: pathlib.Path, path: str, split: str, value: Any
) -> list[str]:
    """Folders and text files below the root that an entry of a YAML means."""
    entries = value if isinstance(value, list) else [value]
    if not entries or not all(isinstance(e, str) and e for e in entries):
        raise ValueError(
            f"{file}: {split} is {repr(value)[:80]}, expected a folder, a text file of "
            "paths, or a list of those: correct it"
        )
    beside = posixpath.dirname(file.relative_to(base).as_posix())
    found = []
    for entry in entries:
        starts = (posixpath.join(beside, tidy(path)), tidy(path), beside, "")
        place = _find(base, entry, starts)
        if place is None:
            raise FileNotFoundError(
                f"{file}: {split}: {entry!r} is neither a folder nor a file below "
                f"{base}: correct it, or set data.images and data.labels"
            )
        found.append(place)
    return found


def _find(
    base: pathlib.Path,
    name: str,
    starts: Sequence[str],
    there: Callable[[pathlib.Path], bool] = os.path.exists,
) -> str | None:
    """The file below the root that a path means, from `starts` or by its end."""
    parts = tidy(name).split("/")
    for first in range(len(parts)):
        end = "/".join(parts[first:])
        for start in dict.fromkeys(starts if first == 0 else ("",)):
            place = posixpath.join(start, end)
            if end and there(base / place):
                return place
    return None


def _lines(base: pathlib.Path, place: str) -> list[str]:
    """The images that a text file names, below the root."""
    file = base / place
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is no list of images ({error}): save it as utf-8"
        ) from error
    names = []
    for number, line in enumerate(lines, start=1):
        if line := line.strip():
            name = _find(base, line, (folder_of(place), ""), os.path.isfile)
            if name is None:
                raise FileNotFoundError(
                    f"{file}, line {number}: no image {line!r} below {base}: correct "
                    "the path, remove the line, or set data.root"
                )
            names.append(name)
    return names


def _text(base: pathlib.Path, name: str) -> pathlib.Path:
    """The path of an image's text file, which need not be there."""
    paths = [base / f"{p}.txt" for p in label_paths(posixpath.splitext(name)[0])]
    return next((p for p in paths if p.is_file()), paths[0])
