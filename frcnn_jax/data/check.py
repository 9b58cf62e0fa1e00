"""What is in a data set, and what is wrong with it, before training costs an hour.

    found = check(source, short_side=800, max_side=1333, canvas=(800, 1344))
    print(table(found)); found["problems"]

Sizes and aspect ratios are those the network sees, in pixels after resizing. An anchor
set is a list of levels `(stride, cells)`: the boxes `[k, 4]` at a level's first cell,
which all others repeat every `stride` pixels. n boxes, k anchors a cell.
"""

import collections
import concurrent.futures
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from frcnn_jax.data.example import decode
from frcnn_jax.data.images import Canvas, canvases, choose_canvas, fit
from frcnn_jax.data.source import Example, Size, Source

SIDES = (0.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, math.inf)  # square root of areas
RATIOS = (0.0, 1 / 3, 1 / 2, 1 / 1.4, 1.4, 2.0, 3.0, math.inf)  # height / width
Levels = Sequence[tuple[int, np.ndarray]]


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
    threads: int = 4,
) -> dict[str, Any]:
    """Counts, histograms and `problems` of a split, as a dict for JSON.

    `problems` are what should be mended or decided on: boxes that were dropped, images
    that cannot be read, boxes that stand there twice, more boxes than slots, classes
    or a split without any box. `notes` are worth knowing: clipped boxes, empty images.
    """

    def examine(i: int) -> tuple[Example, Size, str]:
        example = source[i]
        try:
            h, w = example.size or (0, 0)
            if decode_images or not h:
                h, w = decode(example).shape[:2]
            return example._replace(image=_name(example)), (h, w), ""
        except (OSError, ValueError) as error:
            return example._replace(image=_name(example)), (1, 1), str(error)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        rows = list(pool.map(examine, range(len(source))))
    examples = [example for example, _, _ in rows]
    unreadable = [error for _, _, error in rows if error]
    readable = [(e, size) for e, size, error in rows if not error]
    options = canvases(canvas)
    buckets = [choose_canvas(s, short_side, max_side, options) for _, s in readable]
    sizes = [
        fit(size, short_side, max_side, options[bucket])
        for (_, size), bucket in zip(readable, buckets, strict=True)
    ]
    seen = [
        e.boxes[~e.ignore] * np.array([w / size[1], h / size[0]] * 2, np.float32)
        for (e, size), (h, w) in zip(readable, sizes, strict=True)
    ]
    counts = [len(b) for b in seen]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *seen])
    image_sizes = np.repeat(np.array(sizes, int).reshape(-1, 2), counts, axis=0)
    sides = boxes[:, 2:] - boxes[:, :2]

    per_image = np.array([len(e.boxes) for e in examples], int)
    twice = [(e.image, n) for e in examples if (n := duplicates(e))]
    faults = report_counts(source.report)
    found: dict[str, Any] = dict(
        images=len(source),
        boxes=int(per_image.sum()),
        ignored=int(sum(e.ignore.sum() for e in examples)),
        images_without_boxes=int(np.sum(per_image == 0)),
        boxes_per_image=_spread(per_image),
        images_over_max_boxes=int(np.sum(per_image > max_boxes)),
        classes=class_counts(examples, source.classes),
        sides=_histogram(np.sqrt(sides.prod(1)), SIDES),
        aspect_ratios=_histogram(sides[:, 1] / sides[:, 0], RATIOS),
        dropped=faults["dropped"],
        clipped=faults["clipped"],
        duplicates=sum(n for _, n in twice),
        unreadable=unreadable,
        report=list(source.report),
        canvases={f"{h}x{w}": buckets.count(i) for i, (h, w) in enumerate(options)},
        padding=padding_share(sizes, [options[bucket] for bucket in buckets]),
    )
    if anchors is not None and len(boxes):
        found["anchors"] = coverage(boxes, image_sizes, anchors)
        found["suggested"] = suggest(boxes, image_sizes, anchors)
    found["problems"], found["notes"] = _judge(found, twice, max_boxes, on_overflow)
    return found


def duplicates(example: Example) -> int:
    """How many boxes repeat an earlier one of the same class exactly."""
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
    """Boxes that a source dropped, by reason, and clipped, read from its report."""
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


def best_iou(
    boxes: Float[np.ndarray, "n 4"],
    image_sizes: Int[np.ndarray, "n 2"],
    anchors: Levels,
) -> Float[np.ndarray, "n"]:
    """Each box's highest IoU with any anchor that is centred inside its image.

    Exact without the grid: of boxes of one shape the nearest one, along x and along y,
    overlaps most.
    """
    best = np.zeros(len(boxes))
    low, high = boxes[:, None, :2], boxes[:, None, 2:]  # [n, 1, 2], as (x, y)
    area = (high - low).prod(-1)
    for stride, cells in anchors:
        middle = (cells[:, :2] + cells[:, 2:]) / 2  # [k, 2]
        half = (cells[:, 2:] - cells[:, :2]) / 2
        last = np.floor((image_sizes[:, None, ::-1] - middle) / stride)
        steps = np.round(((low + high) / 2 - middle) / stride)
        centre = middle + stride * np.clip(steps, 0, np.maximum(last, 0))  # [n, k, 2]
        common = np.minimum(high, centre + half) - np.maximum(low, centre - half)
        common = np.maximum(common, 0).prod(-1)
        iou = common / (area + 4 * half.prod(-1) - common)
        best = np.maximum(best, iou.max(1))
    return best


def coverage(
    boxes: Float[np.ndarray, "n 4"],
    image_sizes: Int[np.ndarray, "n 2"],
    anchors: Levels,
) -> dict[str, Any]:
    """What share of the boxes has an anchor of IoU 0.5 and 0.7, by size and in all."""
    best = best_iou(boxes, image_sizes, anchors)
    bins = np.digitize(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)), SIDES[1:])
    shares = {
        name: _shares(best[bins == i])
        for i, name in enumerate(_names(SIDES))
        if np.any(bins == i)
    }
    return dict(all=_shares(best), by_side=shares)


def suggest(
    boxes: Float[np.ndarray, "n 4"],
    image_sizes: Int[np.ndarray, "n 2"],
    anchors: Levels,
) -> dict[str, Any]:
    """Anchor sizes and aspect ratios that follow the boxes, as many as there are now.

    Sizes and ratios are k-means of the boxes' own; of these and the present ones that
    combination is suggested whose anchors have the highest mean IoU, so that it may be
    what there is. `shapes` are the (w, h) of k-means on IoU, which need not be a grid.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    shapes = [cells[:, 2:] - cells[:, :2] for _, cells in anchors]
    sizes = [np.unique(np.sqrt(s.prod(1)).round(1)).tolist() for s in shapes]
    ratios = np.unique((shapes[0][:, 1] / shapes[0][:, 0]).round(2)).tolist()
    grid = [(sizes, ratios), (sizes, _means(sides[:, 1] / sides[:, 0], len(ratios)))]
    own = _means(np.sqrt(sides.prod(1)), sum(map(len, sizes)))
    if len(own) == sum(map(len, sizes)):
        ends = np.cumsum([len(s) for s in sizes])[:-1]
        parts = [part.tolist() for part in np.split(np.array(own), ends)]
        grid += [(parts, r) for _, r in grid]
    middles = [(cells[0, :2] + cells[0, 2:]) / 2 for _, cells in anchors]
    made = [
        [
            (stride, _cells(size, r, middle))
            for (stride, _), size, middle in zip(anchors, s, middles, strict=True)
        ]
        for s, r in grid
    ]
    values = [best_iou(boxes, image_sizes, levels).mean() for levels in made]
    best = int(np.argmax(values))
    clusters, iou = kmeans(sides, min(9, len(shapes) * len(shapes[0])))
    return dict(
        sizes=[[round(v, 1) for v in level] for level in grid[best][0]],
        aspect_ratios=[round(v, 2) for v in grid[best][1]],
        coverage=coverage(boxes, image_sizes, made[best])["all"],
        changes=best > 0,
        shapes=clusters.round(1).tolist(),
        mean_iou=iou,
    )


def kmeans(
    shapes: Float[np.ndarray, "n 2"], k: int, *, steps: int = 50
) -> tuple[Float[np.ndarray, "k 2"], float]:
    """k-means of (w, h) with the distance 1 - IoU of boxes that share their centre.

    The start is spread evenly over the boxes by area. Returns the shapes by area and
    the mean IoU of the boxes with the shape nearest to each. Shapes that come out the
    same are one: there may be fewer than k.
    """
    shapes = np.asarray(shapes, np.float64)
    order = np.argsort(shapes.prod(1), kind="stable")
    at = ((np.arange(k) + 0.5) * len(shapes) / k).astype(int)
    means = np.unique(shapes[order[at]], axis=0)
    for _ in range(steps):
        nearest = _shape_iou(shapes, means).argmax(1)
        moved = [np.median(shapes[nearest == i], axis=0) for i in np.unique(nearest)]
        moved = np.unique(moved, axis=0)
        if moved.shape == means.shape and np.allclose(moved, means):
            break
        means = moved
    means = means[np.argsort(means.prod(1), kind="stable")]
    return means, float(_shape_iou(shapes, means).max(1).mean())


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
        suggested = found["suggested"]
        if suggested["changes"]:
            reached["all, as suggested"] = suggested["coverage"]
        for label, row in reached.items():
            lines.append(
                f"  {label:<20} {row['boxes']:>8} {row['0.5']:>8.1%} {row['0.7']:>8.1%}"
            )
        shapes = ", ".join(f"{w:g}x{h:g}" for w, h in suggested["shapes"])
        sizes = tuple(s[0] if len(s) == 1 else tuple(s) for s in suggested["sizes"])
        ratios = tuple(suggested["aspect_ratios"])
        if suggested["changes"]:
            advice = f"anchors.sizes={sizes} anchors.aspect_ratios={ratios}"
        else:
            advice = "anchors as they are"
        lines += [
            f"  suggested: {advice}",
            f"  k-means of shapes (mean IoU {suggested['mean_iou']:.2f}): {shapes}",
        ]
    for kind in ("notes", "problems"):
        lines += ["", f"  {kind}: {len(found[kind]) or 'none'}"]
        lines += [f"    {line}" for line in found[kind]]
    return "\n".join(lines)


# ------------------------------------------------------------------------------ parts


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


def _names(edges: Sequence[float]) -> list[str]:
    return [f"{a:.3g} to {b:.3g}" for a, b in zip(edges, edges[1:], strict=False)]


def _histogram(values: np.ndarray, edges: Sequence[float]) -> dict[str, int]:
    counts = np.bincount(np.digitize(values, edges[1:]), minlength=len(edges) - 1)
    return dict(zip(_names(edges), counts.tolist(), strict=True))


def _shares(best: Float[np.ndarray, "n"]) -> dict[str, float | int]:
    return {
        "boxes": len(best),
        "0.5": float(np.mean(best >= 0.5)),
        "0.7": float(np.mean(best >= 0.7)),
    }


def _shape_iou(
    shapes: Float[np.ndarray, "n 2"], means: Float[np.ndarray, "k 2"]
) -> Float[np.ndarray, "n k"]:
    common = np.minimum(shapes[:, None], means[None]).prod(-1)
    return common / (shapes.prod(-1)[:, None] + means.prod(-1) - common)


def _means(values: Float[np.ndarray, "n"], k: int) -> list[float]:
    """k-means of positive numbers by ratio, ascending; fewer where they agree."""
    logs = np.log(np.asarray(values, np.float64))
    means = np.unique(np.quantile(logs, (np.arange(k) + 0.5) / k))
    for _ in range(50):
        nearest = np.abs(logs[:, None] - means).argmin(1)
        means = np.array([logs[nearest == i].mean() for i in np.unique(nearest)])
    return np.exp(np.unique(means)).tolist()


def _cells(
    sizes: Sequence[float], ratios: Sequence[float], middle: np.ndarray
) -> Float[np.ndarray, "k 4"]:
    half = [(s / r**0.5 / 2, s * r**0.5 / 2) for r in ratios for s in sizes]
    return np.concatenate([middle - half, middle + half], axis=1)
