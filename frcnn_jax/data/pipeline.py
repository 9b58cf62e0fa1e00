"""From a source to batches: shuffle, decode, resize, flip, pad, batch, shard, resume.

The order of training is one stream, fixed by `seed`: one permutation of the examples
for each epoch (`sampling`). Step k takes the next `batch_size` examples, all of one
canvas if there are several. Of n processes each takes its own n-th of them, so that the
same examples make the same batch on any number of processes. The random draws of an
example depend on (seed, epoch, index) alone. An iterator's state is one number; a
resumed run continues with the next batch.

Arguments of `build`, which are the group `data` of a configuration:

    name: a module of `frcnn_jax.data.sources`, or a dotted path to one of your own.
    batch_size: examples per training step over all processes.
    eval_batch_size: the same for evaluation.
    seed: of the order and the flips.
    train_split: the split to train on; `"train[:100]"` is its first hundred.
    eval_split: the split to evaluate on; "" to train without evaluation.
    merge_duplicates: take classes of one name as one class, which is else an error.
    short_side: pixels of an image's short side after resizing,
    max_side: but no more than this for its long side,
    canvas: and no more than the (h, w) of the static shape it is padded to; or a
        list of such shapes, of which each image takes the one that suits it best
        (a batch has images of one; a step is compiled for each).
    max_boxes: slots for ground truth.
    on_overflow: "error", or "drop_smallest" when there are more boxes than slots.
    flip: mirror every other training image.
    augment: keyword arguments of `augment.augment`; none for training as it is.
    sampling: `name` of a function of `sampling`, and its keyword arguments; none
        for every image once an epoch.
    tiles: keyword arguments of `tiles.cut_source`: training sees tiles of the images;
        none for whole images. (In prediction: the group `views`.)
    on_bad_image: "error", or "skip", which warns, reports and replaces the image:
        in training by the next readable one, in evaluation by a slot with
        `valid=False` (so that its objects count as missed).
    cut_short: "error", or "accept" to take a picture whose file ends too early as far
        as it goes; it is named in the report.
    pixel_range: the values of images with more than 8 bits, or signed or floating ones,
        that become 0 and 255, such as (0, 4095); (): 16 bits are divided by 256, and
        other sample formats are an error.
    cache: keep decoded and resized images in memory (of each worker).
    reduced: resize an image that is more than twice too large from means of 2x2,
        4x4 or 8x8 pixels, as which a JPEG is decoded faster; not with `augment`,
        and not where every pixel should be as torchvision's. "smooth": as Pillow's
        bilinear, which Detectron2 uses; not where `augment` resizes.
    proposals: a file of proposals for every image (`data.proposal_files`), whose
        name may hold "{split}" where each split has its own; for a FastRCNN.
    max_proposals: slots for them; the best are taken.
    threads: batches made at the same time and ahead of their use.
    workers: processes that make them; 0 for none but this one.
    process_index: which share of each batch is this process's,
    process_count: of how many.
    sources: both splits, if `load_splits` has loaded them already.
    **source_kwargs: what the source's `load` takes besides `split`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from frcnn_jax import ranges
from frcnn_jax.data import augment as augmentation
from frcnn_jax.data import proposal_files
from frcnn_jax.data import sampling as sampling_order
from frcnn_jax.data.batches import ENDLESS, Batches, Made, Notes, Stream, collect
from frcnn_jax.data.example import (
    eval_row,
    make_steps,
    proposals_of,
    train_row,
)
from frcnn_jax.data.images import (
    SMOOTH,
    Canvas,
    canvases,
    choose_canvas,
    reduced_of,
)
from frcnn_jax.data.named import load_split, load_splits
from frcnn_jax.data.source import Source, example_size
from frcnn_jax.data.tiles import check as tile_rules
from frcnn_jax.data.tiles import cut_source
from frcnn_jax.data.validate import validate


@dataclasses.dataclass(frozen=True)
class Data:
    """The two splits, and this process's share of their batches."""

    train: Source
    eval: Source
    steps_per_epoch: int  # of the global batch; the last may reach into the next epoch
    train_stream: Batches
    eval_stream: Batches

    def train_batches(self) -> Stream:
        """Endless training batches; `get_state` and `set_state` save and restore."""
        return iter(self.train_stream)

    def eval_batches(self) -> Batches:
        """Every example once, in order; the last batch is filled with `valid=False`."""
        return self.eval_stream

    def skipped(self) -> list[str]:
        """What this process has skipped so far and how often, for the end of a run."""
        found = self.train_stream.skipped + self.eval_stream.skipped
        return [f"{line} ({count} times)" for line, count in sorted(found.items())]


# ---------------------------------------------------------------- the whole pipeline

# Arguments of `build` that go to both streams as they are.
OF_BOTH = (
    *("short_side", "max_side", "max_boxes", "on_overflow", "on_bad_image"),
    *("cut_short", "pixel_range", "cache", "threads", "workers"),
    *("process_index", "process_count"),
)


def build(
    name: str,
    *,
    batch_size: int,
    eval_batch_size: int,
    seed: int,
    train_split: str,
    eval_split: str,
    short_side: int,
    max_side: int,
    canvas: Canvas,
    max_boxes: int = 100,
    on_overflow: str = "error",
    flip: bool = True,
    augment: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    tiles: Mapping[str, Any] | None = None,
    on_bad_image: str = "error",
    cut_short: str = "error",
    pixel_range: Sequence[float | int] = (),
    merge_duplicates: bool = False,
    cache: bool = False,
    reduced: bool | str = True,
    proposals: str = "",
    max_proposals: int = 2000,
    threads: int = 4,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    sources: tuple[Source, Source] | None = None,
    **source_kwargs: Any,
) -> Data:
    """Both splits of a source as batches; the module's head lists the arguments."""
    given = locals()
    check_ranges(given)
    train, evaluation = sources or load_splits(
        name,
        train_split,
        eval_split,
        merge_duplicates=merge_duplicates,
        **source_kwargs,
    )
    if tiles:
        train = cut_source(train, **tiles)
    common: dict[str, Any] = {name: given[name] for name in OF_BOTH}
    common |= dict(canvas=canvases(canvas), reduced=reduced_of(reduced, augment))
    own: list[dict[str, Any]] = [{}, {}]  # what only one of the splits has
    if proposals:
        common["max_proposals"] = max_proposals
        both = (train_split, train), (eval_split, evaluation)
        own = [dict(proposals=read_proposals(proposals, *s)) for s in both]
    drawn = {name: given[name] for name in ("seed", "flip", "augment", "sampling")}
    train_stream = train_dataset(
        train, batch_size=batch_size, **drawn, **common, **own[0]
    )
    eval_stream = eval_dataset(
        evaluation, batch_size=eval_batch_size, **common, **own[1]
    )
    steps = -(-round(sum(sampling_order.repeats(train, sampling))) // batch_size)
    return Data(train, evaluation, steps, train_stream, eval_stream)


def check_ranges(values: Mapping[str, Any]) -> None:
    """ValueError names the first argument of `build` that is out of its range."""
    rules = dict(
        name=ranges.WORDS,
        batch_size=ranges.COUNT,
        eval_batch_size=ranges.COUNT,
        seed=ranges.COUNT_OR_NONE,
        train_split=ranges.WORDS,
        eval_split=ranges.TEXT,
        short_side=ranges.COUNT,
        max_side=ranges.COUNT,
        canvas=ranges.either(
            ranges.several(ranges.COUNT, 2),
            ranges.several(ranges.several(ranges.COUNT, 2)),
        ),
        max_boxes=ranges.COUNT,
        merge_duplicates=ranges.TRUTH,
        cut_short=ranges.one_of("error", "accept"),
        pixel_range=ranges.either(
            ranges.several(ranges.FINITE, 2), ranges.several(ranges.FINITE, 0)
        ),
        on_overflow=ranges.one_of("error", "drop_smallest"),
        flip=ranges.TRUTH,
        on_bad_image=ranges.one_of("error", "skip"),
        cache=ranges.TRUTH,
        reduced=ranges.either(ranges.TRUTH, ranges.one_of(SMOOTH)),
        proposals=ranges.TEXT,
        max_proposals=ranges.COUNT,
        threads=ranges.COUNT,
        workers=ranges.COUNT_OR_NONE,
    )
    ranges.check("data", **{name: (values[name], rules[name]) for name in rules})
    if values["augment"]:
        augmentation.check(**values["augment"])
    sampling_order.check(values.get("sampling"))
    if values.get("tiles"):
        tile_rules(**values["tiles"])


def split_of(data: Mapping[str, Any], split: str) -> Source:
    """One split, validated, of what the group `data` of a configuration describes."""
    return load_split(data["name"], split=split, **_of_the_source(data))


def splits_of(data: Mapping[str, Any]) -> tuple[Source, Source]:
    """Both splits, as `load_splits` returns them, that the group `data` describes."""
    return load_splits(
        data["name"], data["train_split"], data["eval_split"], **_of_the_source(data)
    )


def _of_the_source(data: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `load_split` in a group `data`."""
    known = set(inspect.signature(build).parameters) - {"merge_duplicates"}
    return {k: v for k, v in data.items() if k not in known}


def read_proposals(
    path: str, split: str, source: Source
) -> dict[str, proposal_files.Scored]:
    """The proposals of `path`, in which "{split}" stands for the split's name.

    A range in `split` is no part of its name. KeyError where the file lacks an image of
    the source, if those are known before they are drawn.
    """
    path = path.replace("{split}", split.split("[")[0])
    found = proposal_files.read(path)
    for example in source.examples if isinstance(source.examples, list | tuple) else ():
        proposals_of(example, found)
    return found


def train_dataset(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    flip: bool = True,
    augment: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    threads: int = 1,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    **shape: Any,
) -> Batches:
    """Endless batches of `batch_size / process_count`; `shape` as in `eval_dataset`."""
    share = _share(batch_size, process_index, process_count)
    if not len(source):
        raise ValueError("there is no image to train on: the split is empty")
    source = validate(source)
    read, pad = make_steps(source, **shape, whole=bool(augment))
    change = None
    if augment:
        sides = {k: shape[k] for k in ("short_side", "max_side")}
        known = inspect.signature(augmentation.augment)  # a misspelt key fails here
        known.bind(None, None, None, canvas=None, **sides, **augment)
        change = functools.partial(augmentation.augment, **sides, **augment)
    order = train_order(source, batch_size, seed, sampling=sampling, **_sides(shape))
    make = functools.partial(train_row, read, pad, change, seed, flip)
    batch = functools.partial(
        _train_batch,
        order,
        canvases(shape["canvas"]),
        slice(share * process_index, share * (process_index + 1)),
        make,
        Notes(source.report),
    )
    return Batches(batch, ENDLESS, source.report, threads=threads, workers=workers)


def eval_dataset(
    source: Source,
    *,
    batch_size: int,
    threads: int = 1,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    **shape: Any,
) -> Batches:
    """Each example once, in order within its canvas; as many batches on every process.

    `shape` are `short_side`, `max_side`, `canvas`, `max_boxes`, `on_overflow`,
    `on_bad_image`, `cut_short`, `pixel_range`, `cache` and `reduced`, as for `build`.
    """
    share = _share(batch_size, process_index, process_count)
    source = validate(source)
    read, pad = make_steps(source, **shape)
    buckets = find_buckets(source, **_sides(shape))
    rows = sampling_order.eval_batches(buckets, batch_size)
    batch = functools.partial(
        _eval_batch,
        rows[:, share * process_index : share * (process_index + 1)],
        [canvases(shape["canvas"])[buckets[row[0]]] for row in rows],
        functools.partial(eval_row, read, pad),
        Notes(source.report),
    )
    return Batches(batch, len(rows), source.report, threads=threads, workers=workers)


def train_order(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    sampling: Mapping[str, Any] | None = None,
    **sides: Any,
) -> sampling_order.Order:
    """The order of training; `sides` are `short_side`, `max_side` and `canvas`."""
    return sampling_order.Order(
        sampling_order.repeats(source, sampling),
        find_buckets(source, **sides),
        batch_size,
        seed,
    )


def find_buckets(
    source: Source, *, short_side: int, max_side: int, canvas: Canvas
) -> Int[np.ndarray, "n"]:
    """The position in `canvas` of the one that suits each example (0 if there is one).

    An image without a stated size is opened for it. One that cannot be read gets 0.
    """
    options = canvases(canvas)
    found = np.zeros(len(source), int)
    if len(options) > 1:
        for i, example in enumerate(source.examples):
            try:
                size = example_size(example)
            except (OSError, ValueError):  # met again, and dealt with, when it is used
                continue
            found[i] = choose_canvas(size, short_side, max_side, options)
    return found


def _sides(shape: Mapping[str, Any]) -> dict[str, Any]:
    return {k: shape[k] for k in ("short_side", "max_side", "canvas")}


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} of {process_count}")
    if batch_size <= 0 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of the number of "
            f"processes, {process_count}"
        )
    return batch_size // process_count


def _train_batch(order, canvas, part, make, notes, k: int) -> Made:
    """This process's part of batch k."""
    bucket, visits = order[k]
    n = len(order.repeats)
    rows = [make(canvas[bucket], n, visit) for visit in visits[part]]
    return collect(rows, canvas[bucket], notes)


def _eval_batch(rows, canvas, make, notes, k: int) -> Made:
    return collect([make(canvas[k], int(index)) for index in rows[k]], canvas[k], notes)
