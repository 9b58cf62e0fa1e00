r"""A share of a data set by a hash of names: the same on every machine, in any order.

    data.train_split="all[:80%]" data.eval_split="all[80%:]"

Images of one origin stay together: copies that Roboflow has augmented
(`a_jpg.rf.HASH1.jpg`, `a_jpg.rf.HASH2.jpg`), images of one name in several folders,
and what `data.group`, a regular expression, finds to be the same in their paths:
`video_\d+` keeps the frames of a video together.
"""

import collections.abc
import dataclasses
import hashlib
import pathlib
import re
import unicodedata
from collections.abc import Sequence
from typing import overload

from frcnn_jax.data.source import Example, Source


def share(
    source: Source, start: int, stop: int, *, group: str = "", root: str = ""
) -> Source:
    """The images of a source from `start` to `stop` percent, in their order.

    Images of one origin form a group (`group_of`). Groups are sorted by the hash of
    their names and counted up; a group is taken if its last image lies in
    `(start, stop]` percent. So both parts of an 80 to 20 split have images if there
    are two groups or more. `group` is searched in the paths below `root`. The report
    says how many images were taken.
    """
    if not 0 <= start < stop <= 100:
        raise ValueError(f"a split of {start}% to {stop}%: expected 0 to 100, in order")
    keys = [group_of(example, group, root) for example in source.examples]
    counts = collections.Counter(keys)
    ordered = sorted(counts, key=lambda key: hashlib.sha256(key.encode()).digest())
    taken, end = set(), 0
    for key in ordered:
        end += counts[key]
        if start * len(keys) < 100 * end <= stop * len(keys):
            taken.add(key)
    indices = tuple(i for i, key in enumerate(keys) if key in taken)
    line = (
        f"{len(indices)} of {len(keys)} images, {start}% to {stop}% by a hash of "
        f"{len(counts)} names"
    )
    examples = source.examples
    chosen: Sequence[Example] = Chosen(examples, indices)
    if isinstance(examples, list | tuple):
        chosen = [examples[i] for i in indices]
    repeats = None if source.repeats is None else source.repeats[list(indices)]
    return dataclasses.replace(
        source, examples=chosen, repeats=repeats, report=[line, *source.report]
    )


def group_of(example: Example, group: str = "", root: str = "") -> str:
    """The name that an image shares with others of the same origin.

    This is the file's name without folder, suffix and Roboflow's hash, or the image's
    id if it has no file. With the expression `group` it is the match in the path below
    `root` (the first pair of parentheses, if the expression has one).
    """
    if not isinstance(example.image, str):
        return str(example.image_id)
    path = pathlib.PurePath(example.image)
    if root and path.is_relative_to(root):
        path = path.relative_to(root)
    if group:
        try:
            match = re.search(group, path.as_posix())
        except re.error as error:
            message = f"data.group={group!r} is no regular expression: {error}"
            raise ValueError(message) from None
        if match:
            return match[1 if match.re.groups else 0] or ""
    return source_name(path.name)


def source_name(name: str) -> str:
    """The name of the photograph that a file was made from.

    >>> source_name("a_jpg.rf.0f1e2d.jpg"), source_name("b.c.png")
    ('a_jpg', 'b.c')
    """
    stem = pathlib.PurePath(name).stem
    return unicodedata.normalize("NFC", re.sub(r"\.rf\.[0-9A-Za-z_-]+$", "", stem))


@dataclasses.dataclass(frozen=True)
class Chosen(collections.abc.Sequence):
    """Some of the examples of a sequence that makes them on demand."""

    examples: Sequence[Example]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Chosen": ...
    def __getitem__(self, index: int | slice) -> "Example | Chosen":
        if isinstance(index, slice):
            return dataclasses.replace(self, indices=self.indices[index])
        return self.examples[self.indices[index]]
