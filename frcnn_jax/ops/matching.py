"""Matching and sampling, sections 3.1.2 and 3.1.3: which boxes learn which object.

    n   rows: anchors or RoIs        g   ground-truth slots (padded, `gt_valid`)
    labels   -1 ignored, 0 background, 1 object

A large [n, g] matrix of overlaps is never kept: `match` loops over the slots in use and
keeps the best of each row, so its time depends on the number of objects and not on the
padding. A small one, as of RoIs, is kept on a GPU.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Integer, PRNGKeyArray

from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops import modes
from frcnn_jax.ops.primitive import vary_alike
from frcnn_jax.types import Array

# On a GPU each trip of a loop waits for the host: up to so many overlaps are a matrix.
MATRIX = 2**20


class Matches(NamedTuple):
    """What each row was matched with.

    `gt_index` is the slot with the largest IoU (the first of equals; 0, with `iou` 0,
    where nothing overlaps), so it means an object only where `labels` is 1.
    """

    gt_index: Int[Array, "n"]
    iou: Float[Array, "n"]
    labels: Int[Array, "n"]


def match(
    boxes: Float[Array, "n 4"],
    gt_boxes: Float[Array, "g 4"],
    gt_valid: Bool[Array, "g"],
    gt_ignore: Bool[Array, "g"] | None = None,
    *,
    fg_iou: float | int,
    bg_iou: float | int,
    bg_lo: float | int = 0.0,
    force_best: bool,
    ignore_ioa: float | int = 0.5,
    valid: Bool[Array, "n"] | None = None,
) -> Matches:
    """Label each box by its largest IoU with any object, section 3.1.2.

    object (1): IoU >= fg_iou, or, with `force_best` (rule (i)), the largest IoU of some
    object; every box that ties for it counts. An IoU of 0 never makes an object.
    background (0): bg_lo <= IoU < bg_iou. ignored (-1): the rest, and whatever is not
    an object and has `ignore_ioa` of its area inside one box of `gt_ignore` (crowd,
    difficult), which itself makes no object.

    Rows where `valid` is False are ignored and are not the best of any object. Slots
    where `gt_valid` is False change nothing, whatever they hold. As in the other
    implementations, a box that is the best of some object is still matched with the
    object that it overlaps most itself. No gradient flows.

    >>> boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
    >>> gt, valid = jnp.array([[0.0, 0, 10, 10]]), jnp.array([True])
    >>> match(boxes, gt, valid, fg_iou=0.7, bg_iou=0.3, force_best=True).labels.tolist()
    [1, -1, 0]
    """
    modes.one_image(
        "match",
        boxes=(boxes, "n 4"),
        gt_boxes=(gt_boxes, "g 4"),
        gt_valid=(gt_valid, "g"),
        gt_ignore=(gt_ignore, "g"),
        valid=(valid, "n"),
    )
    gt_boxes, gt_valid, gt_ignore = at_least_one_slot(gt_boxes, gt_valid, gt_ignore)
    boxes, gt_boxes, gt_valid, gt_ignore, valid = jax.tree.map(
        jnp.asarray, (boxes, gt_boxes, gt_valid, gt_ignore, valid)
    )
    boxes, gt_boxes = jax.lax.stop_gradient((boxes, gt_boxes))
    if valid is not None:
        boxes = jnp.where(valid[:, None], boxes, 0.0)
    crowd = jnp.zeros_like(gt_valid) if gt_ignore is None else gt_valid & gt_ignore
    best, index, forced = _best(boxes, gt_boxes, gt_valid & ~crowd)
    found = (best >= fg_iou) & (best > 0)
    if force_best:
        found |= forced
    background = (best >= bg_lo) & (best < bg_iou)
    labels = jnp.where(background, jnp.int32(0), jnp.int32(-1))
    if gt_ignore is not None:
        labels = jnp.where(_covered(boxes, gt_boxes, crowd, ignore_ioa), -1, labels)
    labels = jnp.where(found, 1, labels)
    if valid is not None:
        labels = jnp.where(valid, labels, -1)
    return Matches(index, best, labels)


def at_least_one_slot(*columns: Array | None) -> tuple[Any, ...]:
    """Ground-truth columns (or None) with one padded slot where they have none."""
    return tuple(
        c if c is None or len(c) else jnp.zeros((1, *c.shape[1:]), c.dtype)
        for c in columns
    )


def _best(boxes, gt_boxes, used):
    """Of each row: the best IoU, its slot, and whether it is the best of some slot."""
    if len(boxes) * len(gt_boxes) > MATRIX:
        return _best_in_turn(boxes, gt_boxes, used)
    args = vary_alike(boxes, gt_boxes, used)
    by_platform = dict(cuda=_best_at_once, default=_best_in_turn)
    return jax.lax.platform_dependent(*args, **by_platform)


def _best_at_once(boxes, gt_boxes, used):
    """`_best` by the matrix of all overlaps, [g, n]: no trip for each object."""
    gt_boxes = jnp.where(used[:, None], gt_boxes, 0.0)
    # The barrier has each overlap computed once, so that a maximum equals itself.
    iou = jax.lax.optimization_barrier(
        box_ops.elementwise_iou(gt_boxes[:, None], boxes[None])
    )
    top = iou.max(axis=1, initial=0)
    forced = ((iou == top[:, None]) & (top > 0)[:, None]).any(0)
    positive = jnp.where(iou > 0, iou, 0)
    return positive.max(0), jnp.argmax(positive, 0).astype(jnp.int32), forced


def _best_in_turn(boxes, gt_boxes, used):
    """`_best` in a loop over the slots, of which only those in use cost time."""
    n, lanes = len(boxes), 1024
    boxes = jnp.pad(boxes, ((0, -n % lanes), (0, 0)))
    gt_boxes = jnp.where(used[:, None], gt_boxes, 0.0)

    def overlap(j):
        return box_ops.elementwise_iou(boxes, modes.take(gt_boxes, j)[None])

    def step(j, state):
        best, index, forced = state
        # The barrier has the overlap computed once, so that a maximum equals itself.
        iou = jax.lax.optimization_barrier(overlap(j))
        # Lane by lane: vectorised.
        top = iou.reshape(-1, lanes).max(axis=0, initial=0).max()
        forced |= (iou == top) & (top > 0)
        better = iou > best
        return jnp.where(better, iou, best), jnp.where(better, j, index), forced

    m = len(boxes)
    dtype = jax.eval_shape(overlap, 0).dtype
    start = jnp.zeros(m, dtype), jnp.zeros(m, jnp.int32), jnp.zeros(m, bool)
    start = modes.carry(start, (boxes, gt_boxes, used))
    best, index, forced = _over_slots(used, step, start)
    return best[:n], index[:n], forced[:n]


def _covered(boxes, gt_boxes, crowd, ignore_ioa):
    """Rows with `ignore_ioa` of their area inside one of the crowd boxes."""
    in_turn = partial(_covered_in_turn, ignore_ioa=ignore_ioa)
    if len(boxes) * len(gt_boxes) > MATRIX:
        return in_turn(boxes, gt_boxes, crowd)
    at_once = partial(_covered_at_once, ignore_ioa=ignore_ioa)
    args = vary_alike(boxes, gt_boxes, crowd)
    return jax.lax.platform_dependent(*args, cuda=at_once, default=in_turn)


def _covered_at_once(boxes, gt_boxes, crowd, *, ignore_ioa):
    ioa = box_ops.ioa(boxes, gt_boxes)
    return (crowd[None] & (ioa >= ignore_ioa)).any(1)


def _covered_in_turn(boxes, gt_boxes, crowd, *, ignore_ioa):
    def step(j, covered):
        ioa = box_ops.ioa(boxes, modes.take(gt_boxes, j)[None])[:, 0]
        return covered | (crowd[j] & (ioa >= ignore_ioa))

    start = modes.carry(jnp.zeros(len(boxes), bool), (boxes, gt_boxes, crowd))
    return _over_slots(crowd, step, start)


def _over_slots(used, step, start):
    """`step(j, state)` for the slots up to the last in use: not for the padding."""
    place = jnp.arange(1, used.size + 1, dtype=jnp.int32)
    count = jnp.max(jnp.where(used, place, 0), initial=0)
    first = modes.carry(jnp.int32(0), used)
    return jax.lax.fori_loop(first, count, step, start)


def sample(
    key: PRNGKeyArray,
    labels: Int[Array, "n"],
    *,
    num_samples: int,
    fg_fraction: float | int,
    places: Integer[Array, "n"] | None = None,
) -> tuple[Int[Array, "num_samples"], Bool[Array, "num_samples"]]:
    """Draw `num_samples` labelled rows, balanced, section 3.1.3: indices and valid.

    Objects (labels >= 1) come first: floor(fg_fraction * num_samples) of them at most,
    uniformly at random and without repetition. Background (label 0) fills the rest;
    label -1 is never drawn. Where rows run out, the tail has index 0 and `valid` False.

    With `places`, a number for each row (`anchors.places`), what is drawn depends on
    the numbers of the labelled rows and not on their indices: more rows with label -1,
    as a larger canvas has, change nothing.
    """
    modes.one_image("sample", labels=(labels, "n"), places=(places, "n"))
    n, labels = len(labels), jnp.asarray(labels)
    max_fg = min(int(fg_fraction * num_samples), n)
    priority = priorities(key, n, places)
    counts = dict(max_fg=max_fg, max_bg=min(num_samples, n))
    rows, drawn = jax.lax.platform_dependent(
        *vary_alike(labels, priority),
        cuda=partial(_drawn_by_one_sort, **counts),
        default=partial(_drawn_by_class, **counts),
    )
    # Objects, then background, without the gaps between: a stable partition.
    place = jnp.cumsum(drawn, dtype=jnp.int32)
    place = jnp.where(drawn, place - 1, num_samples)
    indices = jnp.zeros(num_samples, jnp.int32)
    indices = indices.at[place].set(rows, mode="drop")
    return indices, jnp.arange(num_samples, dtype=jnp.int32) < jnp.sum(
        drawn, dtype=jnp.int32
    )


def _drawn_by_class(labels, priority, *, max_fg, max_bg):
    """The rows of the highest priorities, objects before background, and which count.

    Two arrays of max_fg + max_bg. What does not count may be any row.
    """
    fg, fg_rows = jax.lax.top_k(jnp.where(labels >= 1, priority, -1.0), max_fg)
    bg, bg_rows = jax.lax.top_k(jnp.where(labels == 0, priority, -1.0), max_bg)
    return jnp.concatenate([fg_rows, bg_rows]), jnp.concatenate([fg, bg]) >= 0


def _drawn_by_one_sort(labels, priority, *, max_fg, max_bg):
    """The same where a top-k is a sort of all rows: one instead of two.

    A priority from 0 to 1 has the order of its bits, and leaves two of them free.
    """
    kind = jnp.where(labels >= 1, 2, jnp.where(labels == 0, 1, 0)).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(priority, jnp.uint32)
    key = ~((kind << 30) | bits)  # a stable sort: the first of equals comes first
    row = jax.lax.broadcasted_iota(jnp.int32, key.shape, 0)
    _, order = jax.lax.sort((key, row), num_keys=1, is_stable=True)
    fg, bg = jnp.sum(kind == 2, dtype=jnp.int32), jnp.sum(kind == 1, dtype=jnp.int32)
    of_fg, of_bg = (jnp.arange(count, dtype=jnp.int32) for count in (max_fg, max_bg))
    # Both parts of the sum: an Explicit mesh joins no constant with what it shards.
    place = jnp.concatenate([0 * fg + of_fg, fg + of_bg])
    rows = modes.take(order, jnp.minimum(place, len(order) - 1))
    return rows, jnp.concatenate([of_fg < fg, of_bg < bg])


def priorities(
    key: PRNGKeyArray, n: int, places: Integer[Array, "n"] | None = None
) -> Float[Array, "n"]:
    """Random numbers from 0 to 1 for n rows; that of a row with a place is its own.

    >>> p = priorities(jax.random.key(0), 3, jnp.arange(3, dtype=jnp.uint32))
    >>> (p[1:] == priorities(jax.random.key(0), 2, jnp.uint32([1, 2]))).all().item()
    True
    """
    if places is None:
        return jax.random.uniform(key, (n,), jnp.float32)

    def of_place(place):
        return jax.random.uniform(jax.random.fold_in(key, place), (), jnp.float32)

    return jax.vmap(of_place)(jnp.asarray(places))


def cover(iou: Float[Array, "g p"], valid: Bool[Array, " g"]) -> Float[Array, " g"]:
    """The IoU at which each object is covered by a proposal, 0 where none is left.

    The best pair is taken out, then the best of the others, and so on: a proposal
    covers one object (Hosang et al. 2015). Objects that are not `valid` have 0 and take
    no proposal; a column of zeros, as of an empty proposal, covers nothing. No gradient
    flows.

    >>> cover(jnp.array([[0.9, 0.6], [0.8, 0.5]]), jnp.array([True, True])).tolist()
    [0.8999999761581421, 0.5]
    """
    modes.one_image("cover", iou=(iou, "g p"), valid=(valid, "g"))
    valid = jnp.asarray(valid)
    iou = jax.lax.stop_gradient(jnp.where(valid[:, None], iou, 0.0))
    if 0 in iou.shape:
        return iou.sum(1)

    def take(_, state):
        iou, found = state
        best = jnp.argmax(iou).astype(jnp.int32)
        g, p = best // iou.shape[1], best % iou.shape[1]
        found = found.at[g].max(iou[g, p])
        return iou.at[g].set(0.0).at[:, p].set(0.0), found

    start = iou, jnp.zeros(len(iou), iou.dtype)
    first, start = modes.carry((jnp.int32(0), start), (iou, valid))
    count = valid.sum(dtype=jnp.int32)
    return jax.lax.fori_loop(first, count, take, start)[1]
