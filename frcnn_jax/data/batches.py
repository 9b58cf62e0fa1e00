"""Batches by number: made by any thread or process, in order, and resumed anywhere.

b images of a batch, on a canvas (h, w).
"""

import collections
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from frcnn_jax.data.example import Row
from frcnn_jax.data.source import Size
from frcnn_jax.types import Batch

log = logging.getLogger(__name__)

ENDLESS = 2**40  # batches, as good as


class Made(NamedTuple):
    """A batch, and lines for the report from the process that made it."""

    batch: Batch
    skipped: tuple[str, ...]  # a line each time an image was skipped
    noted: tuple[str, ...]  # what the source reported meanwhile


class Batches:
    """Batches by number, made by any process: `batches[k]`; or one after another.

    `report` is the source's: whatever is skipped is added to it once, as its batch is
    taken, and warned of; `skipped` counts how often.
    """

    def __init__(
        self,
        make: Callable[[int], Made],
        length: int,
        report: list[str],
        *,
        threads: int = 1,
        workers: int = 0,
    ):
        self._make, self._length, self._report = make, length, report
        self._threads, self._workers = threads, workers
        self._known = set(report)
        self.skipped: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, k: int) -> Batch:
        return self._noted(self._make(range(self._length)[k]))

    def __iter__(self) -> "Stream":
        return Stream(self)

    def open(self, start: int) -> grain.DatasetIterator:
        """An iterator from batch `start` on, made in threads and worker processes."""
        options = grain.ReadOptions(self._threads, prefetch_buffer_size=self._threads)
        numbers = grain.MapDataset.range(start, self._length)
        made = numbers.map(self._make).to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads its own; not every program
                flags.FLAGS.mark_as_parsed()  # that trains has parsed any
            processes = grain.MultiprocessingOptions(num_workers=self._workers)
            made = made.mp_prefetch(processes)
        return iter(made)

    def _noted(self, made: Made) -> Batch:
        self.skipped.update(made.skipped)
        for line in dict.fromkeys(made.noted + made.skipped):
            if line in self._known:
                continue
            self._known.add(line)
            if line not in self._report:  # a source of this process has its own there
                self._report.append(line)
            if line in made.skipped:
                warnings.warn(line, stacklevel=3)
            else:
                log.warning("data: %s", line)
        return made.batch


class Stream:
    """Batches one after another, made ahead of their use.

    The state is the number of batches taken, not of those made. It restores the next
    batch for any number of threads and workers.
    """

    def __init__(self, batches: Batches):
        self._batches, self._taken = batches, 0
        self._made: grain.DatasetIterator | None = None

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        if self._made is None:
            self._made = self._batches.open(self._taken)
        made = next(self._made)
        self._taken += 1
        return self._batches._noted(made)

    def get_state(self) -> dict[str, int]:
        """For `set_state`, of this stream or another; JSON can hold it."""
        return {"next_index": self._taken}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on (or back) to where `get_state` was called."""
        self.close()
        self._taken = int(state["next_index"])

    def close(self) -> None:
        """Ends the processes that make batches; the next batch starts new ones."""
        if self._made is not None:
            self._made.close()
            self._made = None


class Notes:
    """When called, returns the lines added to a report since the last call."""

    def __init__(self, report: list[str]):
        self._report, self._read = report, len(report)

    def __call__(self) -> tuple[str, ...]:  # noqa: D102
        start = self._read  # of two threads both may say a line, neither leaves one out
        new = self._report[start:]
        self._read = start + len(new)
        return tuple(new)


def collect(rows: Sequence[Row], canvas: Size, notes: Notes) -> Made:
    """Rows as one batch, with the lines for the report."""
    skipped = tuple(line for row in rows for line in row.skipped)
    return Made(make_batch([row.row for row in rows], canvas), skipped, notes())


def make_batch(rows: Sequence[Batch], canvas: Size) -> Batch:
    """Rows as one batch, each image at the top left of a canvas of zeros."""
    pixels = np.zeros((len(rows), *canvas, 3), np.uint8)
    for slot, row in zip(pixels, rows, strict=True):
        h, w = row.image.shape[:2]
        slot[:h, :w] = row.image
    rest = stack([row[1:] for row in rows])
    return Batch(pixels, *rest)


def padding_share(batch: Batch) -> float:
    """The part of a batch's pixels that no image fills."""
    b, h, w, _ = batch.image.shape
    return float(1 - np.prod(batch.image_size, axis=-1).sum() / (b * h * w))


def stack(rows: Sequence[Any]) -> Any:
    """Tuples of arrays as a tuple of arrays with one more axis; None stays None."""
    first = rows[0]
    if isinstance(first, tuple):
        columns = map(stack, zip(*rows, strict=True))
        return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)
    return None if first is None else np.stack(rows)
