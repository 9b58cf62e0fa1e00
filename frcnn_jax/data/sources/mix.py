"""Mix: several data sets as one, by weight, with a shared list of classes.

    data.name=mix
    data.datasets=dict(
        cells=dict(name="voc", root="bccd", weight=3.0),
        ours=dict(name="yolo", root="lab", rename=dict(leukocyte="WBC", debris="")),
    )

An epoch has as many images as all sets together. `weight` is a set's share of it,
whatever the set's size; without weights each image is seen once. `rename` maps a set's
class names to the shared ones; an empty name makes the objects of a class neither
object nor background. `splits` maps the name of a split to the set's own name for it.
"""

import collections.abc
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from frcnn_jax import ranges
from frcnn_jax.data import named
from frcnn_jax.data.folders import few
from frcnn_jax.data.source import Example, Source


def load(
    *,
    split: str,
    datasets: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str] = (),
) -> Source:
    """The images of all sets, one after the other; ids are `set/id`.

    Each of `datasets` has a `name`, the arguments of that source's `load`, and
    optionally `weight`, `rename` and `splits`. `classes` are the shared names in order.
    If they are empty, they are all names after renaming, in order of appearance.
    """
    if not datasets:
        raise ValueError("data.datasets is empty: give at least one data set")
    parts = {key: _part(key, split, options) for key, options in datasets.items()}
    found = itertools.chain.from_iterable(names for _, names, _ in parts.values())
    classes = tuple(classes) or tuple(c for c in dict.fromkeys(found) if c)
    mixed = []
    for key, (source, names, _) in parts.items():
        if unknown := set(names) - set(classes) - {""}:
            raise ValueError(
                f"data.datasets.{key} has the class {unknown.pop()!r}, which is not in "
                f"data.classes: add it, or set rename=dict(...), '' to ignore it"
            )
        table = [classes.index(n) + 1 if n else 0 for n in names]
        mixed.append(Renamed(source.examples, key, tuple(table)))
    lengths = [len(source) for source, _, _ in parts.values()]
    weights = [w for _, _, w in parts.values() if w is not None]
    if len(weights) not in (0, len(parts)):
        given = {key: w for key, (_, _, w) in parts.items()}
        raise ValueError(
            f"data.datasets: weights {given}: give every set a weight, or none"
        )
    repeats = None
    if weights:
        shares = np.array(weights, np.float64) / sum(weights) * sum(lengths)
        repeats = np.repeat(shares / np.maximum(lengths, 1), lengths)
    report = [f"{k}: {line}" for k, (s, _, _) in parts.items() for line in s.report]
    return Source(Joined(tuple(mixed)), classes, report=report, repeats=repeats)


def _part(
    key: str, split: str, options: Mapping[str, Any]
) -> tuple[Source, tuple[str, ...], float | int | None]:
    """A set, the shared name of each of its classes, and its weight."""
    group, options = f"data.datasets.{key}", dict(options)
    name, weight = options.pop("name", ""), options.pop("weight", None)
    ranges.check(group, name=(name, ranges.WORDS))
    if weight is not None:
        ranges.check(group, weight=(weight, ranges.POSITIVE))
    rename, splits = (options.pop(k, None) or {} for k in ("rename", "splits"))
    source = named.load_source(name, split=splits.get(split, split), **options)
    if unknown := set(rename) - set(source.classes):
        raise ValueError(
            f"{group}.rename: {name} has no class {unknown.pop()!r}, but "
            f"{few(source.classes)}: correct the name"
        )
    return source, tuple(rename.get(c, c) for c in source.classes), weight


@dataclasses.dataclass(frozen=True)
class Renamed(collections.abc.Sequence):
    """The examples of a set with shared classes; boxes of class 0 are ignored."""

    examples: Sequence[Example]
    key: str
    table: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:  # pyright: ignore
        example = self.examples[index]
        classes = np.array(self.table, np.int32)[example.classes - 1]
        return example._replace(
            image_id=f"{self.key}/{example.image_id}",
            classes=np.maximum(classes, 1),  # the class of an ignored box is not read
            ignore=example.ignore | (classes == 0),
        )


@dataclasses.dataclass(frozen=True)
class Joined(collections.abc.Sequence):
    """Sequences one after the other."""

    parts: tuple[Sequence[Example], ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        for part in self.parts:
            if at < len(part):
                return part[at]
            at -= len(part)
        raise IndexError(index)
