"""The order of training: which examples make batch k, from (seed, k) alone.

An epoch visits every example `repeats` times on average (once, except for long tails
and mixtures), in its own random order. Each bucket (canvas) has an endless stream of
visits, cut into batches; batches are ordered by their last visit. So a batch has one
bucket, no visit is lost at the end of an epoch, and every process and every resumed run
computes the same order without a state.

How often an example is visited, `data.sampling=dict(name=..., ...)`, is a function
below: `repeat_factors` or `class_balanced`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from frcnn_jax import ranges
from frcnn_jax.data.source import Source


class Visit(NamedTuple):
    """One visit of an example: what its random draws are seeded with."""

    epoch: int
    index: int
    repeat: int  # how often the epoch has visited it before


class Epoch(NamedTuple):
    """The visits of an epoch in their order."""

    index: Int[np.ndarray, "m"]
    repeat: Int[np.ndarray, "m"]
    members: tuple[Int[np.ndarray, "_"], ...]  # of each bucket, its visits' positions
    ends: Int[np.ndarray, "k 2"]  # bucket and place in its stream of each batch's last


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """Batches by number: `bucket, visits = order[k]`."""

    repeats: Float[np.ndarray, "n"]  # visits an epoch
    buckets: Int[np.ndarray, "n"]
    batch_size: int
    seed: int
    counts: tuple[int, ...] = ()  # visits an epoch of each bucket
    _cache: dict[int, Epoch] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self):
        sums = np.bincount(self.buckets, weights=self.repeats)
        counts = np.where(sums > 0, np.maximum(np.rint(sums), 1), 0).astype(int)
        object.__setattr__(self, "counts", tuple(counts.tolist()))

    def __getitem__(self, k: int) -> tuple[int, list[Visit]]:
        size = self.batch_size
        number = k * size // sum(self.counts)
        while self.batches_before(number + 1) <= k:
            number += 1
        bucket, last = self.epoch(number).ends[k - self.batches_before(number)].tolist()
        places = range(last - size + 1, last + 1)
        return bucket, [self._visit(bucket, place) for place in places]

    def batches_before(self, epoch: int) -> int:
        """The number of batches that are complete when an epoch begins."""
        return sum(epoch * count // self.batch_size for count in self.counts)

    def epoch(self, number: int) -> Epoch:
        """The visits of an epoch, drawn from (seed, number)."""
        if number not in self._cache:
            while len(self._cache) > 8:
                self._cache.pop(next(iter(self._cache)), None)
            self._cache[number] = self._draw(number)
        return self._cache[number]

    def _visit(self, bucket: int, place: int) -> Visit:
        number, rank = divmod(place, self.counts[bucket])
        epoch = self.epoch(number)
        at = epoch.members[bucket][rank]
        return Visit(number, int(epoch.index[at]), int(epoch.repeat[at]))

    def _draw(self, number: int) -> Epoch:
        rng = np.random.default_rng((self.seed, number))
        shuffled = rng.permutation(len(self.repeats))
        start = rng.random()
        times = np.zeros(len(shuffled), int)
        for bucket, count in enumerate(self.counts):
            mine = self.buckets[shuffled] == bucket
            if count:
                times[mine] = systematic(self.repeats[shuffled[mine]], count, start)
        index = np.repeat(shuffled, times)
        first = np.repeat(np.cumsum(times) - times, times)
        repeat = np.arange(len(index)) - first
        if (times != 1).any():  # else they are shuffled already
            mixed = rng.permutation(len(index))
            index, repeat = index[mixed], repeat[mixed]
        found, place = self.buckets[index], np.zeros(len(index), int)
        members = [np.flatnonzero(found == b) for b in range(len(self.counts))]
        for mine in members:
            place[mine] = number * len(mine) + np.arange(len(mine))
        last = np.flatnonzero((place + 1) % self.batch_size == 0)
        ends = np.stack([found[last], place[last]], axis=1)
        return Epoch(index, repeat, tuple(members), ends)


def systematic(
    weights: Float[np.ndarray, "n"], count: int, start: float
) -> Int[np.ndarray, "n"]:
    """`count` draws in proportion to `weights`, as evenly as whole numbers can be.

    Each entry is drawn its expected number of times, rounded down or up; the mean over
    a uniform `start` in [0, 1) is exact.

    >>> systematic(np.array([1.0, 2.5, 0.5]), 4, 0.6).tolist()
    [1, 3, 0]
    """
    edges = np.cumsum(np.asarray(weights, np.float64))
    edges = np.concatenate([[0.0], edges * (count / edges[-1])])
    edges[-1] = count
    return np.diff(np.floor(edges + start)).astype(int)


def eval_batches(
    buckets: Int[np.ndarray, "n"], batch_size: int
) -> Int[np.ndarray, "k b"]:
    """Every example once, bucket by bucket and in order; -1 fills their last batches.

    >>> eval_batches(np.array([0, 1, 0, 0]), 2).tolist()
    [[0, 2], [3, -1], [1, -1]]
    """
    rows = [np.zeros((0, batch_size), int)]
    for bucket in np.unique(buckets):
        mine = np.flatnonzero(buckets == bucket)
        fill = np.full(-len(mine) % batch_size, -1)
        rows.append(np.concatenate([mine, fill]).reshape(-1, batch_size))
    return np.concatenate(rows)


# --------------------------------------------------------------- visits of an example


def repeats(
    source: Source, sampling: Mapping[str, Any] | None = None
) -> Float[np.ndarray, "n"]:
    """Visits an epoch of every example: those of the source, times `sampling`'s.

    `sampling` is the `name` of a function below and its keyword arguments.
    """
    given = source.repeats
    base = np.ones(len(source)) if given is None else np.asarray(given, np.float64)
    if not sampling:
        return base
    check(sampling)
    options = dict(sampling)
    return base * FUNCTIONS[options.pop("name")](source, **options)


def check(sampling: Mapping[str, Any] | None) -> None:
    """ValueError or TypeError names what is wrong in `data.sampling`; reads no data."""
    if not sampling:
        return
    options = dict(sampling)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in FUNCTIONS:
        raise ValueError(
            f"data.sampling.name={name!r}: expected one of {list(FUNCTIONS)}"
        )
    inspect.signature(FUNCTIONS[name]).bind(None, **options)
    rules = dict(threshold=ranges.NOT_NEGATIVE)
    ranges.check("data.sampling", **{k: (v, rules[k]) for k, v in options.items()})


def repeat_factors(source: Source, *, threshold: float | int) -> Float[np.ndarray, "n"]:
    """Repeat-factor sampling (LVIS, appendix B.2): images of rare classes more often.

    `r = max(1, max over its classes of sqrt(threshold / f))`, where f is the share of
    images that have the class.
    """
    ranges.check("data.sampling", threshold=(threshold, ranges.NOT_NEGATIVE))
    present = presence(source)
    share = np.maximum(present.mean(0), 1e-12)
    factors = np.sqrt(threshold / share)
    return np.maximum(1.0, np.where(present, factors, 0.0).max(1, initial=0.0))


def class_balanced(source: Source) -> Float[np.ndarray, "n"]:
    """Class-aware sampling: a class at random, then an image that has it.

    `r = m / C * sum over its classes of 1 / n`, of C classes, m images with objects and
    n with the class. Images without objects are visited once, and an epoch is as long
    as without.
    """
    present = presence(source)
    counts = present.sum(0)
    used = counts > 0
    shares = (present[:, used] / counts[used]).sum(1) / max(1, used.sum())
    some = present.any(1)
    return np.where(some, shares * some.sum(), 1.0)


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = dict(
    repeat_factors=repeat_factors, class_balanced=class_balanced
)


def presence(source: Source) -> np.ndarray:
    """Whether each image has an object of each class, `[n, C]`; crowds do not count."""
    out = np.zeros((len(source), len(source.classes)), bool)
    for i, example in enumerate(source.examples):
        out[i, example.classes[~example.ignore] - 1] = True
    return out
