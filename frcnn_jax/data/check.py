"""The contents of a data set and its faults, before training.

    found = check(source, short_side=800, max_side=1333, canvas=(800, 1344))
    print(table(found)); found["problems"]

Sizes and aspect ratios are those the network sees, in pixels after resizing. n boxes.
"""

import collections
import concurrent.futures
import functools
import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from frcnn_jax.data.anchor_fit import SIDES, Levels, coverage, names, suggest
from frcnn_jax.data.example import decode
from frcnn_jax.data.images import (
    Canvas,
    canvases,
    choose_canvas,
    deep_maximum,
    fit,
    reading,
)
from frcnn_jax.data.source import Example, Size, Source
from frcnn_jax.data.validate import validate

TINY = 4.0  # pixels of a side in the network, below which hardly anything is found
RATIOS = (0.0, 1 / 3, 1 / 2, 1 / 1.4, 1.4, 2.0, 3.0, math.inf)  # height / width


def check(
    source: Source,
    *,
    short_side: int,
    max_side: int,
    canvas: Canvas,
    max_boxes: int = 100,
    on_overflow: str = "error",
    anchors: Levels | None = None,
    decode_images: bool = True,
    pixel_range: Sequence[float | int] = (),
    cut_short: str = "error",
    advise: bool = True,
    threads: int = 4,
) -> dict[str, Any]:
    """Counts, histograms and `problems` of a split, as a dict for JSON.

    `problems` are faults to correct or to decide on: boxes that were dropped, images
    that cannot be read, duplicate boxes, more boxes than slots, classes or a split
    without any box, boxes within one pixel, 16-bit images that are nearly black.
    `notes` are worth knowing: clipped boxes, empty images, tiny objects. `advise`:
    suggest anchors for this split alone.
    """
    source = validate(source)
    how = functools.partial(reading, pixel_range, cut_short)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        examine = functools.partial(_examine, source, decode_images, how)
        rows = list(pool.map(examine, range(len(source))))
    examples = [row.example for row in rows]
    readable = [(row.example, row.size) for row in rows if not row.error]
    options = canvases(canvas)
    buckets, sizes = _fitted(readable, short_side, max_side, options)
    boxes, image_sizes = _as_seen(readable, sizes)
    sides = boxes[:, 2:] - boxes[:, :2]
    twice = [(e.image, n) for e in examples if (n := duplicates(e))]
    found: dict[str, Any] = dict(
        **_box_counts(examples, max_boxes),
        classes=class_counts(examples, source.classes),
        sides=_histogram(np.sqrt(sides.prod(1)), SIDES),
        aspect_ratios=_histogram(sides[:, 1] / sides[:, 0], RATIOS),
        **report_counts(source.report),
        duplicates=sum(n for _, n in twice),
        unreadable=[row.error for row in rows if row.error],
        cut_short=[name for row in rows for name in row.cut_short],
        tiny=int(np.sum(sides.min(1, initial=math.inf) < TINY)),
        within_a_pixel=len(boxes) > 0 and _within_a_pixel(examples),
        deepest=0 if pixel_range else max((row.deepest for row in rows), default=0),
        report=list(source.report),
        canvases={f"{h}x{w}": buckets.count(i) for i, (h, w) in enumerate(options)},
        padding=padding_share(sizes, [options[bucket] for bucket in buckets]),
    )
    if anchors is not None and len(boxes):
        found["anchors"] = coverage(boxes, image_sizes, anchors)
        if advise:
            found["suggested"] = suggest(boxes, image_sizes, anchors)
    found["problems"], found["notes"] = _judge(found, twice, max_boxes, on_overflow)
    return found


def duplicates(example: Example) -> int:
    """The number of boxes that equal an earlier box of the same class."""
    rows = np.concatenate([example.boxes, example.classes[:, None]], axis=1)
    return len(rows) - len(np.unique(rows, axis=0))


def class_counts(
    examples: Sequence[Example], classes: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Boxes, images and ignored boxes of every class, `{name: {...}}`."""
    boxes, images, ignored = (collections.Counter() for _ in range(3))
    for e in examples:
        boxes.update(e.classes.tolist())
        images.update(set(e.classes.tolist()))
        ignored.update(e.classes[e.ignore].tolist())
    return {
        name: dict(boxes=boxes[c], images=images[c], ignored=ignored[c])
        for c, name in enumerate(classes, start=1)
    }


def report_counts(report: Sequence[str]) -> dict[str, Any]:
    """The numbers of dropped boxes by reason and of clipped boxes, from a report."""
    dropped: collections.Counter[str] = collections.Counter()
    clipped = 0
    for line in report:
        if match := re.search(r": dropped .*: (no area|not finite|outside)", line):
            dropped[match[1]] += 1
        elif match := re.search(r": clipped (\d+) box", line):
            clipped += int(match[1])
    return dict(dropped=dict(dropped), clipped=clipped)


def padding_share(sizes: Sequence[Size], on: Sequence[Size]) -> float:
    """The part of all pixels of the canvases `on` that the images do not fill.

    >>> padding_share([(2, 3), (4, 4)], [(4, 4), (4, 4)])
    0.3125
    """
    filled, whole = (sum(map(math.prod, part)) for part in (sizes, on))
    return 1 - filled / whole if whole else 0.0


def advice(suggested: Mapping[str, Any]) -> list[str]:
    """What `anchor_fit.suggest` suggests, in two lines."""
    shapes = ", ".join(f"{w:g}x{h:g}" for w, h in suggested["shapes"])
    sizes = tuple(s[0] if len(s) == 1 else tuple(s) for s in suggested["sizes"])
    ratios = tuple(suggested["aspect_ratios"])
    text = "anchors as they are"
    if suggested["changes"]:
        text = f"anchors.sizes={sizes} anchors.aspect_ratios={ratios}"
    return [
        f"  suggested: {text}",
        f"  k-means of shapes (mean IoU {suggested['mean_iou']:.2f}): {shapes}",
    ]


def table(found: Mapping[str, Any], *, title: str = "") -> str:
    """`check`'s findings for people."""
    n = found["boxes_per_image"]
    lines = [
        title,
        f"  {found['images']} images, {found['boxes']} boxes, {found['ignored']} of "
        "them ignored (crowds, difficult), "
        f"{found['images_without_boxes']} images without",
        f"  boxes an image: median {n['median']:g}, at most {n['max']}; "
        f"padding {found['padding']:.1%} of the canvas "
        f"({', '.join(f'{k}: {v} images' for k, v in found['canvases'].items())})",
        "",
        f"  {'class':<20} {'boxes':>8} {'images':>8} {'ignored':>8}",
    ]
    rows = sorted(found["classes"].items(), key=lambda row: -row[1]["boxes"])
    for name, row in rows:
        lines.append(
            f"  {name[:20]:<20} {row['boxes']:>8} {row['images']:>8} "
            f"{row['ignored'] or '':>8}"
        )
    for key, name in (("sides", "side (pixels)"), ("aspect_ratios", "height / width")):
        lines += ["", f"  {name:<20} {'boxes':>8}"]
        most = max(1, *found[key].values())
        for label, count in found[key].items():
            lines.append(f"  {label:<20} {count:>8} {'#' * round(40 * count / most)}")
    if "anchors" in found:
        lines += [
            "",
            f"  {'anchors reach':<20} {'boxes':>8} {'IoU .5':>8} {'IoU .7':>8}",
        ]
        reached = {**found["anchors"]["by_side"], "all": found["anchors"]["all"]}
        if found.get("suggested", {}).get("changes"):
            reached["all, as suggested"] = found["suggested"]["coverage"]
        for label, row in reached.items():
            lines.append(
                f"  {label:<20} {row['boxes']:>8} {row['0.5']:>8.1%} {row['0.7']:>8.1%}"
            )
        if "suggested" in found:
            lines += advice(found["suggested"])
    for kind in ("notes", "problems"):
        lines += ["", f"  {kind}: {len(found[kind]) or 'none'}"]
        lines += [f"    {line}" for line in found[kind]]
    return "\n".join(lines)


# ------------------------------------------------------------------------------ parts


class _Row(NamedTuple):
    """What was seen of an image."""

    example: Example  # without its pixels
    size: Size = (1, 1)
    error: str = ""
    cut_short: tuple[str, ...] = ()
    deepest: int = 0  # value of 16 bits


def _examine(source: Source, decode_images: bool, reading: Any, i: int) -> _Row:
    named = Example(f"example {i}", i, _NONE, _NONE[:, 0].astype(int), _NONE[:, 0] > 0)
    how = reading()
    try:
        example = source[i]  # one that is made on demand is checked only now
        named = example._replace(image=_name(example))
        h, w = example.size or (0, 0)
        deepest = 0
        if decode_images or not h:
            h, w = decode(example, **how).shape[:2]
            if isinstance(example.image, str | bytes):
                deepest = deep_maximum(example.image) or 0
        return _Row(named, (h, w), "", tuple(how["completed"] or ()), deepest)
    except (OSError, ValueError) as error:
        return _Row(named, error=str(error))


_NONE = np.zeros((0, 4), np.float32)


def _within_a_pixel(examples: Sequence[Example]) -> bool:
    """Whether all coordinates are at most 1, as those of normalised boxes are."""
    return all(e.boxes.max(initial=0.0) <= 1.0 for e in examples)


def same_pictures(first: Source, second: Source) -> list[tuple[str, str]]:
    """Pairs of names of pictures with the same content, one from each split.

    Only files of equal length are compared.
    """

    def lengths(source: Source) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for i in range(len(source)):
            found.setdefault(_length(source[i].image), []).append(i)
        return found

    a, b = lengths(first), lengths(second)
    out = []
    for length in (a.keys() & b.keys()) - {-1}:
        known = {_digest(first[i].image): _name(first[i]) for i in a[length]}
        for i in b[length]:
            if twin := known.get(_digest(second[i].image)):
                out.append((twin, _name(second[i])))
    return sorted(out)


def _length(image: Any) -> int:
    """Bytes of a picture; -1 of one that cannot be read."""
    if isinstance(image, np.ndarray):
        return image.nbytes
    try:
        return os.path.getsize(image) if isinstance(image, str) else len(image)
    except OSError:
        return -1


def _digest(image: Any) -> bytes:
    if isinstance(image, str):
        with open(image, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    content = image.tobytes() if isinstance(image, np.ndarray) else image
    return hashlib.sha256(content).digest()


def _fitted(readable, short_side, max_side, options) -> tuple[list[int], list[Size]]:
    """The position of each image's canvas, and the image's size on it."""
    buckets = [choose_canvas(s, short_side, max_side, options) for _, s in readable]
    sizes = [
        fit(size, short_side, max_side, options[bucket])
        for (_, size), bucket in zip(readable, buckets, strict=True)
    ]
    return buckets, sizes


def _as_seen(
    readable: Sequence[tuple[Example, Size]], sizes: Sequence[Size]
) -> tuple[Float[np.ndarray, "n 4"], Int[np.ndarray, "n 2"]]:
    """The boxes that count, in images resized to `sizes`, and each one's image size."""
    seen = [
        e.boxes[~e.ignore] * np.array([w / size[1], h / size[0]] * 2, np.float32)
        for (e, size), (h, w) in zip(readable, sizes, strict=True)
    ]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *seen])
    counts = [len(b) for b in seen]
    return boxes, np.repeat(np.array(sizes, int).reshape(-1, 2), counts, axis=0)


def _box_counts(examples: Sequence[Example], max_boxes: int) -> dict[str, Any]:
    per_image = np.array([len(e.boxes) for e in examples], int)
    return dict(
        images=len(examples),
        boxes=int(per_image.sum()),
        ignored=int(sum(e.ignore.sum() for e in examples)),
        images_without_boxes=int(np.sum(per_image == 0)),
        boxes_per_image=_spread(per_image),
        images_over_max_boxes=int(np.sum(per_image > max_boxes)),
    )


def _judge(
    found: Mapping[str, Any],
    twice: Sequence[tuple[Any, int]],
    max_boxes: int,
    on_overflow: str,
) -> tuple[list[str], list[str]]:
    """Problems and notes, each a line."""
    problems, notes = [], []
    for line in found["report"]:
        (problems if ": dropped " in line else notes).append(line)
    problems += [f"unreadable: {error}" for error in found["unreadable"]]
    problems += [f"{name}: {n} box(es) stand there twice" for name, n in twice]
    if over := found["images_over_max_boxes"]:
        line = (
            f"{over} images have more than data.max_boxes={max_boxes} boxes (at most "
            f"{found['boxes_per_image']['max']})"
        )
        (problems if on_overflow == "error" else notes).append(line)
    if found["within_a_pixel"]:
        problems.append(
            f"all {found['boxes']} boxes lie within one pixel: are they normalised? "
            "multiply them by the images' width and height (data.convention names "
            "what they are)"
        )
    if 0 < found["deepest"] < 1 << 15:
        bits = max(8, found["deepest"].bit_length())
        problems.append(
            f"16-bit images use {bits} bits (at most {found['deepest']}): divided by "
            f"256 they are dark; set data.pixel_range=(0, {(1 << bits) - 1})"
        )
    if names_ := found["cut_short"]:
        notes.append(
            f"{len(names_)} pictures are cut short and taken as far as they go: "
            f"{', '.join(names_[:3])}"
        )
    if found["tiny"]:
        notes.append(
            f"{found['tiny']} objects have a side below {TINY:g} pixels in the "
            "network, too small to be found: raise data.short_side and data.canvas"
        )
    if not found["boxes"]:
        problems.append("there is no box at all")
    elif empty := [c for c, row in found["classes"].items() if not row["boxes"]]:
        notes.append(f"{len(empty)} classes without a box: {', '.join(empty[:10])}")
    return problems, notes


def _name(example: Example) -> str:
    image = example.image
    return image if isinstance(image, str) else f"image {example.image_id}"


def _spread(values: Int[np.ndarray, "m"]) -> dict[str, float | int]:
    if not len(values):
        return dict(median=0.0, mean=0.0, max=0)
    return dict(
        median=float(np.median(values)),
        mean=float(values.mean()),
        max=int(values.max()),
    )


def _histogram(values: np.ndarray, edges: Sequence[float]) -> dict[str, int]:
    counts = np.bincount(np.digitize(values, edges[1:]), minlength=len(edges) - 1)
    return dict(zip(names(edges), counts.tolist(), strict=True))
