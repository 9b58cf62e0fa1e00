"""One example, from a file to a row of a batch: read, resize, augment, mirror, pad.

Random draws depend on (seed, epoch, index) alone. `on_bad_image` says what happens to
an image that cannot be read.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from frcnn_jax.data import proposal_files
from frcnn_jax.data.augment import Resized, mirror
from frcnn_jax.data.images import (
    Canvas,
    check_canvas,
    check_pixel_range,
    fit,
    load_image,
    load_reduced,
    reading,
    shrink,
)
from frcnn_jax.data.source import Example, Size, Source, name_of
from frcnn_jax.types import Batch, Proposals


def make_steps(
    source: Source,
    *,
    short_side: int,
    max_side: int,
    canvas: Canvas,
    max_boxes: int = 100,
    on_overflow: str = "error",
    on_bad_image: str = "error",
    cut_short: str = "error",
    pixel_range: Sequence[float | int] = (),
    cache: bool = False,
    reduced: bool | str = False,
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
        ("cut_short", cut_short, ("error", "accept")),
    ):
        if value not in known:
            raise ValueError(f"data.{key}={value!r}: expected one of {known}")
    if pixel_range:
        check_pixel_range(pixel_range)
    _report_overflow(source, max_boxes, on_overflow)
    read = functools.partial(
        _attempt,
        source,
        on_bad_image == "skip",
        functools.partial(
            _read,
            sides=None if whole else (short_side, max_side),
            reduced=reduced,
            cache={} if cache else None,
            proposals=proposals,
            reading=functools.partial(reading, pixel_range, cut_short),
            report=source.report,
        ),
    )
    pad = functools.partial(
        pad_example,
        max_boxes=max_boxes,
        on_overflow=on_overflow,
        max_proposals=max_proposals,
    )
    return read, pad


def _report_overflow(source: Source, max_boxes: int, on_overflow: str) -> None:
    """Reports the images whose boxes do not fit; ValueError where that is an error."""
    known = set(source.report)
    if isinstance(source.examples, list | tuple):  # nothing is drawn or decoded
        for example in source.examples:
            if pick_boxes(example, max_boxes, on_overflow).size < len(example.boxes):
                line = (
                    f"{name_of(example)}: dropped the smallest of {len(example.boxes)} "
                    f"boxes (data.max_boxes={max_boxes})"
                )
                if line not in known:  # both splits may be one source
                    source.report.append(line)


class Row(NamedTuple):
    """A row of a batch, and a line for every image skipped on the way to it."""

    row: Batch
    skipped: tuple[str, ...] = ()


def train_row(read, pad, change, seed, flip, canvas, n: int, visit) -> Row:
    """Reads an image (the next one if it is skipped), augments, mirrors and pads it."""
    rng = np.random.default_rng((seed, *visit))
    skipped = []
    for candidate in range(visit.index, visit.index + n):
        candidate %= n
        example, resized = read(candidate, canvas)
        if isinstance(resized, str):
            skipped.append(resized)
            continue
        if change:
            example, resized = change(rng, example, resized, canvas=canvas)
        flipped = mirror(resized) if flip and rng.random() < 0.5 else resized
        return Row(pad(example, flipped, index=candidate), tuple(skipped))
    raise ValueError(f"none of the images can be read: {'; '.join(skipped[:3])}")


def eval_row(read, pad, canvas, index: int) -> Row:
    """Reads and pads; a skipped image, or no example (-1), is not `valid`."""
    skipped = ()
    if index >= 0:
        example, resized = read(index, canvas)
        if not isinstance(resized, str):
            return Row(pad(example, resized, index=index))
        skipped = (resized,)
    blank = _blank()
    resized = Resized(decode(blank), blank.boxes, (1, 1))
    row = pad(blank, resized, index=max(0, index))
    return Row(row._replace(valid=np.bool_(False)), skipped)


def _blank() -> Example:
    """One black pixel without a box; an unused slot of a batch is made from it."""
    none = np.zeros(0, np.int32)
    image, boxes = np.zeros((1, 1, 3), np.uint8), np.zeros((0, 4), np.float32)
    return Example(image, 0, boxes, none, none.astype(bool))


def _attempt(
    source: Source, skip: bool, read, index: int, canvas: Size
) -> tuple[Example, Resized | str]:
    """The example and its image; for a bad image that is skipped, what is wrong."""
    example = source[index]
    try:
        return example, read(index, example, canvas)
    except (OSError, ValueError) as error:
        if not skip:
            error.add_note("or go on without it: data.on_bad_image='skip'")
            raise
        return example, f"{name_of(example)}: skipped: {error}"


def _read(
    index: int,
    example: Example,
    canvas: Size,
    *,
    sides,
    cache,
    reduced,
    proposals,
    reading,
    report,
) -> Resized:
    """Decodes and resizes, or takes what was decoded and resized before.

    `sides` are (short_side, max_side); with None the image keeps its size.
    """
    how = reading()
    key = index, canvas
    if cache is not None and key in cache:
        return cache[key]
    fitted = functools.partial(_fitted, sides=sides, canvas=canvas)
    image, original = decode_resized(example, fitted, reduced=reduced, **how)
    for name in dict.fromkeys(how["completed"] or ()):
        line = f"{name}: cut short, taken as far as it goes"
        if line not in report:
            report.append(line)
    h, w = image.shape[:2]
    scale = np.array([w / original[1], h / original[0]] * 2, np.float32)
    resized = Resized(image, example.boxes * scale, original)
    if proposals is not None:
        found = _scaled(proposals_of(example, proposals), scale, (h, w))
        resized = resized._replace(proposals=found)
    if cache is not None:
        cache[key] = resized
    return resized


def _fitted(size: Size, *, sides: Size | None, canvas: Size) -> Size:
    return fit(size, *sides, canvas) if sides else size


def decode_resized(
    example: Example, fitted: Callable[[Size], Size], *, reduced: bool | str, **how: Any
) -> tuple[UInt8[np.ndarray, "h w 3"], Size]:
    """The image of an example at the size `fitted(its own)`, and its own (h, w)."""
    whole = example.window is None
    if reduced is True and whole and not isinstance(example.image, np.ndarray):
        found = load_reduced(example.image, fitted, name=name_of(example), **how)
        if found and example.size in (None, found[1]):
            return found
    image = decode(example, **how)
    if example.window is not None:
        x1, y1, x2, y2 = example.window
        image = image[y1:y2, x1:x2]
    h, w = image.shape[:2]
    return shrink(image, fitted((h, w)), reduced=reduced), (h, w)


def decode(example: Example, **how: Any) -> UInt8[np.ndarray, "h w 3"]:
    """The image of an example, in the frame that its boxes were drawn in.

    The image is turned upright, as its EXIF tag says. If only the image as stored has
    the size that the annotation states, it is not turned. ValueError if neither has
    this size. `how` is what `load_image` takes besides (`reading`).
    """
    if isinstance(example.image, np.ndarray):
        if example.image.dtype != np.uint8 or example.image.shape[2:] != (3,):
            found = f"{example.image.dtype} {example.image.shape}"
            raise ValueError(f"{name_of(example)} is {found}, expected uint8 (h, w, 3)")
        return example.image
    name = name_of(example)
    image = load_image(example.image, name=name, **how)
    if example.size is None or image.shape[:2] == tuple(example.size):
        return image
    stored = load_image(example.image, orient=False, name=name, **how)
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


def proposals_of(
    example: Example, found: Mapping[str, proposal_files.Scored]
) -> proposal_files.Scored:
    """Its proposals; KeyError where a file has none."""
    if str(example.image_id) not in found:
        raise KeyError(
            f"data.proposals has {len(found)} images but not {example.image_id!r}: "
            "make it for this data set and split (scripts/make_proposals.py)"
        )
    return found[str(example.image_id)]
