"""Where the results of an evaluation lie: files that carry the name of their split.

    annotations_test.json   the ground truth, COCO; `info` has split, step, checkpoint
    detections_test.json    COCO results
    pictures_test/          annotated images

So an evaluation of one split never overwrites, or is read as, that of another.
"""

import pathlib
import re
from typing import Any, NamedTuple


class Paths(NamedTuple):
    """The files of one split in a folder."""

    annotations: pathlib.Path
    detections: pathlib.Path
    pictures: pathlib.Path


def file_name(split: str) -> str:
    """A split's name as a part of a file's.

    >>> file_name("test"), file_name("val[:40]"), file_name("all[80%:]")
    ('test', 'val_0-40', 'all_80%-end')
    """
    if match := re.fullmatch(r"(.+)\[([^:\]]*):([^:\]]*)\]", split):
        split = f"{match[1]}_{match[2] or 0}-{match[3] or 'end'}"
    return re.sub(r"[^\w.+%-]+", "_", split)


def paths(folder: str | pathlib.Path, split: str) -> Paths:
    """The files of a split's results in `folder`."""
    folder, name = pathlib.Path(folder), file_name(split)
    return Paths(
        folder / f"annotations_{name}.json",
        folder / f"detections_{name}.json",
        folder / f"pictures_{name}",
    )


def found(folder: str | pathlib.Path) -> dict[str, Paths]:
    """The splits that have results in `folder`, as in the files' names, newest first.

    The files of older versions, which carry no name, are those of the split "".
    """
    folder = pathlib.Path(folder)
    there: dict[str, Paths] = {}
    for path in folder.glob("annotations_*.json"):
        name = path.stem.removeprefix("annotations_")
        there[name] = paths(folder, name)
    old = Paths(
        folder / "annotations.json", folder / "detections.json", folder / "pictures"
    )
    there[""] = old
    whole = {k: p for k, p in there.items() if all(x.exists() for x in p[:2])}
    return dict(
        sorted(whole.items(), key=lambda kv: -kv[1].detections.stat().st_mtime_ns)
    )


def about(annotations: dict[str, Any]) -> dict[str, Any]:
    """What annotations say of where they come from: split, step, checkpoint."""
    info = annotations.get("info")
    return info if isinstance(info, dict) else {}
