"""From a source to batches: shuffle, decode, resize, flip, pad, batch, shard, resume.

The order of training is one stream, fixed by `seed`: a permutation of the examples per
epoch, one after another (`sampling`). Step k takes the `batch_size` next ones, all of
one canvas where there are several, and of these process p of n takes the p-th n-th
part: the same examples make the same batch, in the same order, on any number of
processes. What is random about an example is drawn from (seed, epoch, index) alone. An
iterator's state is a number; a resumed run continues with the very next batch.
"""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pathlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from frcnn_jax.data import augment as augmentation
from frcnn_jax.data import proposal_files
from frcnn_jax.data import sampling as sampling_order
from frcnn_jax.data.augment import Resized, mirror
from frcnn_jax.data.images import (
    Canvas,
    canvases,
    check_canvas,
    choose_canvas,
    fit,
    image_size,
    load_image,
    resize,
)
from frcnn_jax.data.source import Example, Size, Source, subset
from frcnn_jax.types import Batch, Proposals


class Batches:
    """A grain dataset of batches as an iterable with a length; a pass starts anew."""

    def __init__(self, dataset: grain.MapDataset, threads: int, workers: int):
        self._dataset, self._threads, self._workers = dataset, threads, workers

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> grain.DatasetIterator:
        options = grain.ReadOptions(self._threads, prefetch_buffer_size=self._threads)
        batches = self._dataset.to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads its own; not every program
                flags.FLAGS.mark_as_parsed()  # that trains has parsed any
            processes = grain.MultiprocessingOptions(num_workers=self._workers)
            batches = batches.mp_prefetch(processes)
        return iter(batches)


@dataclasses.dataclass(frozen=True)
class Data:
    """The two splits, and this process's share of their batches."""

    train: Source
    eval: Source
    steps_per_epoch: int  # of the global batch; the last may reach into the next epoch
    train_stream: Batches
    eval_stream: Batches

    def train_batches(self) -> grain.DatasetIterator:
        """Endless training batches; `get_state` and `set_state` save and restore."""
        return iter(self.train_stream)

    def eval_batches(self) -> Batches:
        """Every example once, in order; the last batch is filled with `valid=False`."""
        return self.eval_stream


# ---------------------------------------------------------------- the whole pipeline


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
    on_bad_image: str = "error",
    cache: bool = False,
    proposals: str = "",
    max_proposals: int = 2000,
    threads: int = 4,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    **source_kwargs: Any,
) -> Data:
    """Both splits of a source, loaded by `load_source`, as batches.

    Args:
        name: a module of `frcnn_jax.data`, or a dotted path to one of your own.
        batch_size: examples per training step over all processes.
        eval_batch_size: the same for evaluation.
        seed: of the order and the flips.
        train_split: the split to train on; `"train[:100]"` is its first hundred.
        eval_split: the split to evaluate on.
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
        on_bad_image: "error", or "skip", which warns, reports and replaces the image:
            in training by the next readable one, in evaluation by a slot with
            `valid=False` (so that its objects count as missed).
        cache: keep decoded and resized images in memory (of each worker).
        proposals: a file of proposals for every image (`data.proposal_files`), whose
            name may hold "{split}" where each split has its own; for a FastRCNN.
        max_proposals: slots for them; the best are taken.
        threads: batches made at the same time and ahead of their use.
        workers: processes that make them; 0 for none but this one.
        process_index: which share of each batch is this process's,
        process_count: of how many.
        **source_kwargs: what the source's `load` takes besides `split`.
    """
    train = load_source(name, split=train_split, **source_kwargs)
    evaluation = load_source(name, split=eval_split, **source_kwargs)
    if train.classes != evaluation.classes:
        raise ValueError(
            f"{train_split!r} has the classes {train.classes}, {eval_split!r} has "
            f"{evaluation.classes}: both need the same, in the same order"
        )
    common: dict[str, Any] = dict(
        short_side=short_side,
        max_side=max_side,
        canvas=canvases(canvas),
        max_boxes=max_boxes,
        on_overflow=on_overflow,
        on_bad_image=on_bad_image,
        cache=cache,
        process_index=process_index,
        process_count=process_count,
    )
    found = (None, None)
    if proposals:
        common["max_proposals"] = max_proposals
        found = [
            read_proposals(proposals, split, source)
            for split, source in ((train_split, train), (eval_split, evaluation))
        ]
    train_stream = train_dataset(
        train,
        batch_size=batch_size,
        seed=seed,
        flip=flip,
        augment=augment,
        sampling=sampling,
        proposals=found[0],
        **common,
    )
    eval_stream = eval_dataset(
        evaluation, batch_size=eval_batch_size, proposals=found[1], **common
    )
    visits = sampling_order.repeats(train, sampling)
    return Data(
        train=train,
        eval=evaluation,
        steps_per_epoch=-(-round(sum(visits)) // batch_size),
        train_stream=Batches(train_stream, threads, workers),
        eval_stream=Batches(eval_stream, threads, workers),
    )


def load_source(name: str, *, split: str, **kwargs: Any) -> Source:
    """`load` of the module `name`, of `frcnn_jax.data` or a dotted path.

    What follows a colon is its argument `dataset`: "tfds:voc/2007".
    `split` may end in a range of positions: "train[:100]", "val[50:]".
    """
    name, colon, dataset = name.partition(":")
    if colon:
        kwargs["dataset"] = dataset
    path = name if "." in name else f"frcnn_jax.data.{name}"
    if "." not in name and importlib.util.find_spec(path) is None:
        raise ValueError(
            f"no data source {name!r}: there are {', '.join(_sources())}, or give the "
            "dotted path of a module with a function load"
        )
    match = re.fullmatch(r"(.+?)(?:\[(-?\d*):(-?\d*)\])?", split)
    if not match:
        raise ValueError(f"split={split!r}: give a name, or a part: 'train[:100]'")
    start, stop = (int(v) if v else None for v in match.group(2, 3))
    source = importlib.import_module(path).load(split=match[1], **kwargs)
    return subset(source, slice(start, stop)) if match[2] is not None else source


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
        _proposals_of(example, found)
    return found


def _proposals_of(
    example: Example, found: Mapping[str, proposal_files.Scored]
) -> proposal_files.Scored:
    if str(example.image_id) not in found:
        raise KeyError(
            f"data.proposals has {len(found)} images but not {example.image_id!r}: "
            "make it for this data set and split (scripts/make_proposals.py)"
        )
    return found[str(example.image_id)]


def train_dataset(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    flip: bool = True,
    augment: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    **shape: Any,
) -> grain.MapDataset:
    """Endless batches of `batch_size / process_count`; `shape` as in `eval_dataset`."""
    share = _share(batch_size, process_index, process_count)
    if not len(source):
        raise ValueError("there is no image to train on: the split is empty")
    read, pad = _steps(source, **shape, whole=bool(augment))
    change = None
    if augment:
        sides = {k: shape[k] for k in ("short_side", "max_side")}
        known = inspect.signature(augmentation.augment)  # a misspelt key fails here
        known.bind(None, None, None, canvas=None, **sides, **augment)
        change = functools.partial(augmentation.augment, **sides, **augment)
    order = train_order(source, batch_size, seed, sampling=sampling, **_sides(shape))
    make = functools.partial(_train_example, read, pad, change, seed, flip)
    batch = functools.partial(
        _train_batch,
        order,
        canvases(shape["canvas"]),
        slice(share * process_index, share * (process_index + 1)),
        make,
    )
    return grain.MapDataset.range(2**40).map(batch)  # as good as endless


def eval_dataset(
    source: Source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    **shape: Any,
) -> grain.MapDataset:
    """Each example once, in order within its canvas; as many batches on every process.

    `shape` are `short_side`, `max_side`, `canvas`, `max_boxes`, `on_overflow`,
    `on_bad_image` and `cache`, as for `build`.
    """
    share = _share(batch_size, process_index, process_count)
    read, pad = _steps(source, **shape)
    buckets = find_buckets(source, **_sides(shape))
    rows = sampling_order.eval_batches(buckets, batch_size)
    batch = functools.partial(
        _eval_batch,
        rows[:, share * process_index : share * (process_index + 1)],
        [canvases(shape["canvas"])[buckets[row[0]]] for row in rows],
        functools.partial(_eval_example, read, pad),
    )
    return grain.MapDataset.range(len(rows)).map(batch)


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

    An image whose size can only be learnt by reading it is read; one that cannot be
    read is 0's.
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


def example_size(example: Example) -> Size:
    """(h, w) as annotated, or of the image itself."""
    image = example.image
    if example.size is not None:
        return example.size
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    return image_size(image, name=_name(example))


def _sides(shape: Mapping[str, Any]) -> dict[str, Any]:
    return {k: shape[k] for k in ("short_side", "max_side", "canvas")}


def _sources() -> list[str]:
    """The modules beside this one that have a function `load`; none is imported."""
    files = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    return [f.stem for f in files if "\ndef load(" in f.read_text(encoding="utf-8")]


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} of {process_count}")
    if batch_size <= 0 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of the number of "
            f"processes, {process_count}"
        )
    return batch_size // process_count


# ------------------------------------------------------------------------ one example


def _steps(
    source: Source,
    *,
    short_side: int,
    max_side: int,
    canvas: Canvas,
    max_boxes: int = 100,
    on_overflow: str = "error",
    on_bad_image: str = "error",
    cache: bool = False,
    proposals: Mapping[str, proposal_files.Scored] | None = None,
    max_proposals: int = 0,
    whole: bool = False,
):
    """The two halves of making an example, `read` and `pad`; bad settings raise here.

    `whole` reads images at their original size, to be augmented.
    """
    check_canvas(short_side, max_side, canvas)
    for key, value, known in (
        ("on_overflow", on_overflow, ("error", "drop_smallest")),
        ("on_bad_image", on_bad_image, ("error", "skip")),
    ):
        if value not in known:
            raise ValueError(f"data.{key}={value!r}: expected one of {known}")
    if isinstance(source.examples, list | tuple):  # nothing is drawn or decoded
        for example in source.examples:
            if pick_boxes(example, max_boxes, on_overflow).size < len(example.boxes):
                source.report.append(
                    f"{_name(example)}: dropped the smallest of {len(example.boxes)} "
                    f"boxes (data.max_boxes={max_boxes})"
                )
    read = functools.partial(
        _attempt,
        source,
        on_bad_image == "skip",
        functools.partial(
            _read,
            sides=None if whole else (short_side, max_side),
            cache={} if cache else None,
            proposals=proposals,
        ),
    )
    pad = functools.partial(
        pad_example,
        max_boxes=max_boxes,
        on_overflow=on_overflow,
        max_proposals=max_proposals,
    )
    return read, pad


def _train_batch(order, canvas, part, make, k: int) -> Batch:
    """This process's part of batch k."""
    bucket, visits = order[k]
    n = len(order.repeats)
    rows = [make(canvas[bucket], n, visit) for visit in visits[part]]
    return make_batch(rows, canvas[bucket])


def _eval_batch(rows, canvas, make, k: int) -> Batch:
    return make_batch([make(canvas[k], int(index)) for index in rows[k]], canvas[k])


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


def _train_example(read, pad, change, seed, flip, canvas, n: int, visit) -> Batch:
    """Reads (in place of what is to be skipped the next), augments, mirrors, pads."""
    rng = np.random.default_rng((seed, *visit))
    for candidate in range(visit.index, visit.index + n):
        candidate %= n
        example, resized = read(candidate, canvas)
        if resized is not None:
            if change:
                example, resized = change(rng, example, resized, canvas=canvas)
            flipped = mirror(resized) if flip and rng.random() < 0.5 else resized
            return pad(example, flipped, index=candidate)
    raise ValueError("none of the images can be read")


def _eval_example(read, pad, canvas, index: int) -> Batch:
    """Reads and pads; what is skipped, or no example (-1), is not `valid`."""
    if index >= 0:
        example, resized = read(index, canvas)
        if resized is not None:
            return pad(example, resized, index=index)
    blank = _blank()
    resized = Resized(decode(blank), blank.boxes, (1, 1))
    row = pad(blank, resized, index=max(0, index))
    return row._replace(valid=np.bool_(False))


def _blank() -> Example:
    """One black pixel and no box: what an unused slot of a batch is made from."""
    none = np.zeros(0, np.int32)
    image, boxes = np.zeros((1, 1, 3), np.uint8), np.zeros((0, 4), np.float32)
    return Example(image, 0, boxes, none, none.astype(bool))


def _attempt(
    source: Source, skip: bool, read, index: int, canvas: Size
) -> tuple[Example, Resized | None]:
    """The example, and its image unless that is bad and to be skipped."""
    example = source[index]
    try:
        return example, read(index, example, canvas)
    except (OSError, ValueError) as error:
        if not skip:
            error.add_note("or go on without it: data.on_bad_image='skip'")
            raise
        line = f"{_name(example)}: skipped: {error}"
        if line not in source.report:
            source.report.append(line)
            warnings.warn(line, stacklevel=1)
        return example, None


def _read(
    index: int, example: Example, canvas: Size, *, sides, cache, proposals
) -> Resized:
    """Decodes and resizes, or takes what was decoded and resized before.

    `sides` are (short_side, max_side); with None the image keeps its size.
    """
    key = index, canvas
    if cache is not None and key in cache:
        return cache[key]
    image = decode(example)
    original = (image.shape[0], image.shape[1])
    h, w = fit(original, sides[0], sides[1], canvas) if sides else original
    scale = np.array([w / original[1], h / original[0]] * 2, np.float32)
    resized = Resized(resize(image, (h, w)), example.boxes * scale, original)
    if proposals is not None:
        found = _scaled(_proposals_of(example, proposals), scale, (h, w))
        resized = resized._replace(proposals=found)
    if cache is not None:
        cache[key] = resized
    return resized


def decode(example: Example) -> UInt8[np.ndarray, "h w 3"]:
    """The image of an example, in the frame that its boxes were drawn in.

    That is upright, as its EXIF tag says; but as stored where only that has the size
    that the annotation states. ValueError where neither has.
    """
    if isinstance(example.image, np.ndarray):
        if example.image.dtype != np.uint8 or example.image.shape[2:] != (3,):
            found = f"{example.image.dtype} {example.image.shape}"
            raise ValueError(f"{_name(example)} is {found}, expected uint8 (h, w, 3)")
        return example.image
    name = _name(example)
    image = load_image(example.image, name=name)
    if example.size is None or image.shape[:2] == tuple(example.size):
        return image
    stored = load_image(example.image, orient=False, name=name)
    if stored.shape[:2] == tuple(example.size):
        return stored
    (h, w), (want_h, want_w) = image.shape[:2], example.size
    raise ValueError(
        f"{name} is {w}x{h} but its annotation says {want_w}x{want_h}: "
        "its boxes would be wrong; correct one of them"
    )


def _scaled(found: proposal_files.Scored, scale, size: Size) -> proposal_files.Scored:
    """Proposals in a resized image of (h, w), less what lies outside of it."""
    h, w = size
    boxes = np.clip(found.boxes * scale, 0, np.array([w, h, w, h], np.float32))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return proposal_files.Scored(boxes[keep], found.scores[keep])


def pick_boxes(example: Example, max_boxes: int, on_overflow: str) -> np.ndarray:
    """Positions of the boxes that fit into `max_boxes` slots: all, or the largest.

    ValueError where there are more and `on_overflow` is "error".
    """
    n = len(example.boxes)
    if n <= max_boxes:
        return np.arange(n)
    if on_overflow == "error":
        raise ValueError(
            f"image {example.image_id} has {n} boxes but data.max_boxes={max_boxes}: "
            "raise it, or set data.on_overflow='drop_smallest'"
        )
    areas = (example.boxes[:, 2:] - example.boxes[:, :2]).prod(-1)
    return np.sort(np.argsort(-areas, kind="stable")[:max_boxes])


def pad_example(
    example: Example,
    resized: Resized,
    *,
    index: int,
    max_boxes: int,
    on_overflow: str = "error",
    max_proposals: int = 0,
) -> Batch:
    """One row of a batch: the image as it is, ground truth in `max_boxes` slots."""
    keep = pick_boxes(example, max_boxes, on_overflow)
    return Batch(
        image=resized.image,
        image_size=np.array(resized.image.shape[:2], np.int32),
        original_size=np.array(resized.original_size, np.int32),
        gt_boxes=_slots(resized.boxes[keep], max_boxes),
        gt_classes=_slots(example.classes[keep], max_boxes),
        gt_valid=np.arange(max_boxes) < len(keep),
        gt_ignore=_slots(example.ignore[keep], max_boxes),
        index=np.int32(index),  # pyright: ignore[reportArgumentType]
        valid=np.bool_(True),  # pyright: ignore[reportArgumentType]
        proposals=_proposals(resized.proposals, max_proposals),
    )


def _proposals(
    found: proposal_files.Scored | None, max_proposals: int
) -> Proposals | None:
    """The best in `max_proposals` slots; None for no slots."""
    if not max_proposals:
        return None
    found = found or proposal_files.NONE
    boxes, scores = found.boxes[:max_proposals], found.scores[:max_proposals]
    return Proposals(
        boxes=_slots(boxes, max_proposals),
        scores=_slots(scores, max_proposals),
        valid=np.arange(max_proposals) < len(boxes),
    )


def _slots(values: np.ndarray, count: int) -> np.ndarray:
    """The rows, and zeros behind them."""
    out = np.zeros((count, *values.shape[1:]), values.dtype)
    out[: len(values)] = values
    return out


def _name(example: Example) -> str:
    return example.image if isinstance(example.image, str) else str(example.image_id)
