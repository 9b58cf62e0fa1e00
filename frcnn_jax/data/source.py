"""What a data set is: annotated images by position, class names, and a report.

A format's module has one function, `load(*, split, root="", ...) -> Source`. Your own
data need no module at all: `Source(examples, classes)` with a list of `Example`s.

Boxes here are `(x1, y1, x2, y2)` in continuous pixels of the image on disk; classes are
1..C, so `classes[c - 1]` names class c and `category_ids[c - 1]` is its id in files.
"""

import collections.abc
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, UInt8

from frcnn_jax.data.images import Size, image_size


class Example(NamedTuple):
    """One annotated image; `ignore` marks boxes that are neither object nor background.

    `size` is (h, w) as the annotation states it, `area` what a metric should take for
    the objects' areas (COCO's are those of the masks); both may be unknown. `window` is
    (x1, y1, x2, y2) of the pixels that are taken of a larger image (`tiles`); the boxes
    are in its pixels then, and `size` is that of the larger image.
    """

    image: str | bytes | UInt8[np.ndarray, "h w 3"]  # a path, a file's bytes, or RGB
    image_id: int | str
    boxes: Float32[np.ndarray, "n 4"]
    classes: Int32[np.ndarray, "n"]
    ignore: Bool[np.ndarray, "n"]
    size: Size | None = None
    area: Float32[np.ndarray, "n"] | None = None
    window: tuple[int, int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set: any sequence of examples (a list, or one that makes them on demand).

    `report` says what was dropped, clipped or skipped and why, by file name; `repeats`
    how often an epoch visits each example, once by default.
    """

    examples: Sequence[Example]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...] = ()  # empty: 1..C
    report: list[str] = dataclasses.field(default_factory=list)
    repeats: Float[np.ndarray, "n"] | None = None
    valid: bool = False  # `validate` has seen it

    def __post_init__(self):
        ids = tuple(self.category_ids) or tuple(range(1, len(self.classes) + 1))
        if len(ids) != len(self.classes):
            raise ValueError(
                f"{len(self.classes)} classes but {len(ids)} category_ids: give one id "
                "for each class, or none"
            )
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "category_ids", ids)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def subset(source: Source, part: slice) -> Source:
    """Some of the examples of a source: `subset(source, slice(0, 100))`."""
    repeats = None if source.repeats is None else source.repeats[part]
    return dataclasses.replace(source, examples=source.examples[part], repeats=repeats)


@dataclasses.dataclass(frozen=True)
class Mapped(collections.abc.Sequence):
    """Examples that are changed as they are drawn."""

    examples: Sequence[Example]
    change: Callable[[Example], Example]

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Mapped": ...
    def __getitem__(self, index: int | slice) -> "Example | Mapped":
        if isinstance(index, slice):
            return dataclasses.replace(self, examples=self.examples[index])
        return self.change(self.examples[index])


def merge_duplicates(source: Source) -> Source:
    """The source with classes of one name made one; the first one's id stands for all.

    >>> merged = merge_duplicates(Source([], ("cat", "dog", "cat"), (3, 5, 9)))
    >>> merged.classes, merged.category_ids
    (('cat', 'dog'), (3, 5))
    """
    names = tuple(dict.fromkeys(source.classes))
    if len(names) == len(source.classes):
        return source
    numbers = [names.index(c) + 1 for c in source.classes]
    table = np.array([0, *numbers, len(names) + 1], np.int32)
    change = functools.partial(_renumber, table=table)
    listed = isinstance(source.examples, list | tuple)
    examples = Mapped(source.examples, change)
    source.report.append(f"merged {len(source.classes)} classes into {len(names)}")
    return dataclasses.replace(
        source,
        examples=list(examples) if listed else examples,
        classes=names,
        category_ids=tuple(
            source.category_ids[source.classes.index(name)] for name in names
        ),
    )


def _renumber(example: Example, *, table: np.ndarray) -> Example:
    """The example with its classes mapped by a table of 0..C+1.

    0 and C+1 stand for classes out of range, which `validate` refuses.
    """
    found = np.clip(np.asarray(example.classes), 0, len(table) - 1).astype(int)
    return example._replace(classes=table[found])


def name_of(example: Example) -> str:
    """The path of its image, or its id where it has none."""
    return example.image if isinstance(example.image, str) else str(example.image_id)


def example_size(example: Example) -> Size:
    """(h, w) as annotated, or of the image itself; of a tile that of its window."""
    image = example.image
    if example.window is not None:
        x1, y1, x2, y2 = example.window
        return y2 - y1, x2 - x1
    if example.size is not None:
        return example.size
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    return image_size(image, name=name_of(example))


def below(folder: pathlib.Path, name: str, where: object) -> pathlib.Path:
    """The file `name` in a folder; ValueError where the name leads out of it.

    `where` says which file states the name. Links in the folder are followed: the user
    made them.

    >>> below(pathlib.Path("photos"), "1/a.jpg", "cats.csv").as_posix()
    'photos/1/a.jpg'
    """
    parts = pathlib.PurePath(name)
    if parts.is_absolute() or parts.drive or ".." in parts.parts or "\0" in name:
        raise ValueError(
            f"{where} names the file {name!r}, which leads out of {folder}: "
            "give names below that folder"
        )
    return folder / parts


def image_ids(source: Source) -> list[int]:
    """The integer id of every image in annotation and result files.

    The source's own ids when all of them are integers, otherwise (VOC's are names) the
    position counted from one.
    """
    ids = [example.image_id for example in source.examples]
    if all(isinstance(i, int) for i in ids):
        return [int(i) for i in ids]
    return list(range(1, len(ids) + 1))


def clean_boxes(
    boxes: Float[np.ndarray, "n 4"],
    size: Size,
    labels: Sequence[str],
    file: str,
    report: list[str],
    *,
    min_size: float = 0.0,
) -> tuple[Float32[np.ndarray, "n 4"], Bool[np.ndarray, "n"]]:
    """Boxes clipped to the image, and which of them can be trained on.

    Dropped and reported, each under its file's name and its own label: boxes that are
    not finite, not wider and higher than `min_size`, or entirely outside the image.
    Clipped boxes are counted in the report. Rows that are not kept are meaningless.
    """
    h, w = size
    limit = np.array([w, h, w, h], boxes.dtype)
    finite = np.all(np.isfinite(boxes), axis=1)
    boxes = np.where(finite[:, None], boxes, 0)
    clipped = np.clip(boxes, 0, limit)
    proper = np.all(boxes[:, 2:] - boxes[:, :2] > min_size, axis=1)
    inside = np.all(clipped[:, 2:] > clipped[:, :2], axis=1)
    for i, label in enumerate(labels):
        if not finite[i]:
            report.append(f"{file}: dropped {label}: not finite")
        elif not proper[i]:
            report.append(f"{file}: dropped {label}: no area")
        elif not inside[i]:
            report.append(f"{file}: dropped {label}: outside the image of {w}x{h}")
    keep = finite & proper & inside
    if count := int(np.sum(keep & np.any(clipped != boxes, axis=1))):
        plural = "es" if count > 1 else ""
        report.append(f"{file}: clipped {count} box{plural} to the image of {w}x{h}")
    return clipped.astype(np.float32), keep
