"""What a YAML of a YOLO set says: names, and where the images of each split are.

The text file of an image is found from the image's path alone.
"""

import os
import pathlib
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from frcnn_jax.data.folders import few, folder_of, is_image, tidy

SPLITS = ("train", "val", "valid", "test")


def label_paths(image: str) -> tuple[str, ...]:
    """Where the labels of an image may be: the path of both without a suffix.

    The last folder `images` replaced by `labels`, as Ultralytics does, or beside it;
    `Images` by `Labels`.
    """
    parts = image.split("/")
    places = [i for i, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if not places:
        return (image,)
    known = dict(images="labels", Images="Labels", IMAGES="LABELS")
    parts[places[-1]] = known.get(parts[places[-1]], "labels")
    return "/".join(parts), image


def splits_in(file: pathlib.Path) -> tuple[str, ...]:
    """The splits that a YAML has; none of one that is not YOLO's."""
    try:
        found = read_yaml(file)
    except (OSError, ValueError):
        return ()
    return tuple(k for k in SPLITS if isinstance(found, dict) and found.get(k))


def read_yaml(file: pathlib.Path) -> Any:
    """What the file holds; ValueError names a file that is not YAML."""
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
    """What a path means below the root: from one of `starts`, or by its last parts."""
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
    """The text file of an image, whether it is there or not."""
    paths = [base / f"{p}.txt" for p in label_paths(posixpath.splitext(name)[0])]
    return next((p for p in paths if p.is_file()), paths[0])
