"""Greedy non-maximum suppression, exact for every threshold.

n boxes of one image · t boxes of a tile · m boxes that are kept · b images under `vmap`

    keep(i) = valid(i) and no kept j before i with IoU(j, i) > iou_threshold

where "before" is by falling score, equal scores by index. The sorted boxes are taken a
tile at a time: (1) what the boxes kept so far suppress is dropped, (2) inside the tile
the rule above is iterated from "keep all" to its fixed point, which is the greedy
answer (after k rounds the first k boxes of every chain of suppression are right), (3)
the survivors join the kept ones. The loop ends as soon as enough boxes are kept. With
one tile this is the full n x n matrix, and (2) alone. IoU is `inter / (area_j + area_i
- inter)` in float32, in that order; boxes without area neither suppress nor are
suppressed. Soft-NMS is in `soft_nms.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from frcnn_jax.ops import modes
from frcnn_jax.ops.primitive import Operation
from frcnn_jax.ops.soft_nms import (  # noqa: F401 (users call nms.soft_nms)
    pick,
    soft_nms,
    soft_nms_indices,
    soft_nms_linear,
    soft_nms_linear_indices,
)
from frcnn_jax.types import Array

CPU_TILE = 64  # boxes a step: few where arithmetic is dear ...
LARGE_TILE = 2048  # ... many where a step is (kernel launches)
# A trip of a GPU's loop waits for the host. Up to so many boxes are one tile there, and
# with it one loop; n x n bits an image.
AT_ONCE = 16_384


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"] | None = None,
    *,
    iou_threshold: float,
) -> Bool[Array, " n"]:
    """Return the keep mask of greedy NMS: order by score then index, IoU > threshold.

    Padded boxes (`valid` False, NaN allowed) neither suppress nor are kept.
    Raises ValueError for a threshold outside [0, 1].

    >>> boxes = jnp.array([[0., 0., 10., 10.], [0., 0., 10., 9.], [20., 0., 30., 10.]])
    >>> nms(boxes, jnp.array([0.8, 0.9, 0.1]), iou_threshold=0.7).tolist()
    [False, True, True]
    """
    return _keep(boxes, scores, None, valid, iou_threshold)


def classwise_nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    classes: Int[Array, " n"],
    valid: Bool[Array, " n"] | None = None,
    *,
    iou_threshold: float,
) -> Bool[Array, " n"]:
    """Return the keep mask of NMS inside every class (or level) on its own.

    Classes are compared, boxes are not shifted apart: no rounding. Otherwise as `nms`.
    """
    return _keep(boxes, scores, classes, valid, iou_threshold)


def nms_indices(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"] | None = None,
    *,
    iou_threshold: float,
    max_output: int,
    classes: Int[Array, " n"] | None = None,
) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
    """Return the first `max_output` kept boxes by falling score, and which are real.

    The search ends once they are found, so it costs far less than `nms` for many boxes.
    Unused slots hold index 0 and False. With `classes`, NMS is class-wise.

    >>> boxes = jnp.array([[0., 0., 10., 10.], [0., 0., 10., 9.], [20., 0., 30., 10.]])
    >>> scores = jnp.array([0.8, 0.9, 0.1])
    >>> index, valid = nms_indices(boxes, scores, iou_threshold=0.7, max_output=3)
    >>> index.tolist(), valid.tolist()
    ([1, 2, 0], [True, True, False])
    """
    modes.one_image(
        "nms_indices",
        boxes=(boxes, "n 4"),
        scores=(scores, "n"),
        valid=(valid, "n"),
        classes=(classes, "n"),
    )
    n, threshold = len(scores), _round_down(iou_threshold)
    if n == 0 or max_output == 0:
        return jnp.zeros(max_output, jnp.int32), jnp.zeros(max_output, bool)
    if valid is None:
        valid = jnp.ones(n, bool)
    if classes is None:
        classes = jnp.zeros(n, jnp.int32)
    arrays = jax.tree.map(jnp.asarray, (boxes, scores, classes, valid))
    one = [x[None] for x in lax.stop_gradient(arrays)]
    index, found = _first_kept(*one, threshold=threshold, max_output=max_output)
    return index[0], found[0]


def smaller_nms_indices(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"] | None = None,
    *,
    threshold: float,
    max_output: int,
    classes: Int[Array, " n"] | None = None,
) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
    """`nms_indices` by the intersection over the smaller of two areas, not over both.

    A part of an object that the border of a tile has cut off lies inside the whole
    object: its IoU with it is small, this is 1. Greedy, a step for each box that is
    kept. Boxes without area neither suppress nor are suppressed. Raises ValueError for
    a threshold outside [0, 1].

    >>> boxes = jnp.array([[0., 0., 10., 10.], [0., 0., 10., 3.]])
    >>> scores = jnp.array([0.9, 0.8])
    >>> smaller_nms_indices(boxes, scores, threshold=0.5, max_output=2)[1].tolist()
    [True, False]
    """
    cut = _round_down(threshold)

    def kept(pairs):
        smaller = jnp.minimum(pairs.area, pairs.area_of_best)
        some = smaller > 0
        share = pairs.inter / jnp.where(some, smaller, 1)
        return jnp.where(some & (share > cut), -jnp.inf, pairs.scores)

    index, _, found = pick(boxes, scores, valid, classes, kept, max_output)
    return index, found


def _keep(boxes, scores, classes, valid, iou_threshold):
    n = len(scores)
    index, found = nms_indices(
        boxes, scores, valid, iou_threshold=iou_threshold, max_output=n, classes=classes
    )
    return jnp.zeros(n, bool).at[jnp.where(found, index, n)].set(True, mode="drop")


def _sorted_greedy(boxes, scores, classes, valid, *, threshold, max_output):
    """`nms_indices` of images [b, n]: all images share the loops."""
    # From here on all vary and are sharded alike, as loops want it.
    boxes, scores, classes, valid = modes.carry(
        (boxes, scores, classes, valid), (boxes, scores, classes, valid)
    )
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), axis=1, stable=True)
    order = order.astype(jnp.int32)
    boxes = jnp.where(valid[..., None], boxes.astype(jnp.float32), 0)
    pick = jax.vmap(lambda x, index: x[index])
    sorted_images = [pick(x, order) for x in (boxes, classes, valid)]
    n = order.shape[1]
    options = dict(threshold=threshold, max_output=min(max_output, n))
    at_once = functools.partial(_greedy_at_once, **options)
    if n <= CPU_TILE:
        position, count = at_once(*sorted_images)
    else:
        tiled = functools.partial(_greedy_tiles, **options)
        cpu = functools.partial(tiled, tile=CPU_TILE)
        other = functools.partial(tiled, tile=LARGE_TILE)
        gpu = at_once if n <= AT_ONCE else other
        position, count = lax.platform_dependent(
            *sorted_images, cpu=cpu, cuda=gpu, rocm=gpu, default=other
        )
    position = jnp.pad(position, ((0, 0), (0, max_output - position.shape[1])))
    found = jnp.arange(max_output, dtype=jnp.int32)[None] < count[:, None]
    return jnp.where(found, pick(order, position), 0), found


# A primitive with static arguments: a translation of the program finds it whole.
_first_kept = Operation("nms", _sorted_greedy)


@_first_kept.batched
def _(images, batched, *args, **static):
    """More images."""
    mapped = [
        x if b else jnp.broadcast_to(x[None], (images, *x.shape))
        for x, b in zip(args, batched, strict=True)
    ]
    lead = images, mapped[0].shape[1]
    merged = (x.reshape(lead[0] * lead[1], *x.shape[2:]) for x in mapped)
    return [x.reshape((*lead, x.shape[1])) for x in _first_kept(*merged, **static)]


def _round_down(threshold: float) -> float:
    """Largest float32 up to `threshold`: a float32 exceeds both or neither."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"iou_threshold is {threshold}, expected a number in [0, 1]")
    t = np.float32(threshold)
    return float(t if float(t) <= threshold else np.nextafter(t, np.float32(-1)))


def _suppresses(first, second, threshold):
    """[b, 6, n] (x1, y1, x2, y2, area, class) against [b, 6, k] -> bool [b, n, k]."""
    ax1, ay1, ax2, ay2, area_a, class_a = jnp.moveaxis(first[..., None], 1, 0)
    bx1, by1, bx2, by2, area_b, class_b = jnp.moveaxis(second[:, :, None], 1, 0)
    w = jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1), 0)
    h = jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1), 0)
    inter = w * h
    return (inter / (area_a + area_b - inter) > threshold) & (class_a == class_b)


def _columns(boxes, classes):
    """What `_suppresses` reads: [b, 6, n]."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    area = (x2 - x1) * (y2 - y1)
    return jnp.stack([x1, y1, x2, y2, area, classes.astype(jnp.float32)], 1)


def _greedy_at_once(boxes, classes, valid, *, threshold, max_output):
    """`_greedy_tiles` with all boxes in one tile, 32 rows of its matrix in a word."""
    n = boxes.shape[1]
    columns, place = _columns(boxes, classes), jnp.arange(n, dtype=jnp.int32)
    later = (place[:, None] < place[None])[None]
    words = _words(_suppresses(columns, columns, threshold) & later)

    def suppressed(keep):
        return ((words & _words(keep[..., None])) != 0).any(1)

    keep = _fixed_point(suppressed, valid)
    count = jnp.cumsum(keep, 1, jnp.int32)
    slot = jnp.where(keep, count - 1, max_output)

    @jax.vmap
    def first(slot):
        empty = modes.carry(jnp.zeros(max_output, jnp.int32), slot)
        return empty.at[slot].set(place, mode="drop")

    return first(slot), jnp.minimum(count[:, -1], max_output)


def _words(bits):
    """[b, n, k] booleans -> [b, ceil(n / 32), k], a row the bit of a word."""
    b, n, k = bits.shape
    rows = -(-n // 32)
    bits = jnp.pad(bits, ((0, 0), (0, 32 * rows - n), (0, 0)))
    bits = bits.reshape(b, rows, 32, k).astype(jnp.uint32)
    return (bits << jnp.arange(32, dtype=jnp.uint32)[None, None, :, None]).sum(
        2, dtype=jnp.uint32
    )


def _greedy_tiles(boxes, classes, valid, *, threshold, max_output, tile):
    """Positions [b, max_output] of the kept among sorted boxes, and how many [b]."""
    b, n, _ = boxes.shape
    t = min(n, tile)
    tiles, slots = -(-n // t), -(-max_output // t) * t
    columns = jnp.pad(_columns(boxes, classes), ((0, 0), (0, 0), (0, tiles * t - n)))
    valid = jnp.pad(valid, ((0, 0), (0, tiles * t - n)))
    later = jnp.triu(jnp.ones((t, t), bool), 1)[None]

    @functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None))
    def join(kept, position, slot, tile, place):
        kept = kept.at[:, slot].set(tile, mode="drop")
        return kept, position.at[slot].set(place, mode="drop")

    def keep_of_tile(tile, alive):
        matrix = _suppresses(tile, tile, threshold) & later
        return _fixed_point(lambda keep: (matrix & keep[:, :, None]).any(1), alive)

    def step(state):
        i, kept, position, count = state
        tile = lax.dynamic_slice_in_dim(columns, i * t, t, 2)
        alive = lax.dynamic_slice_in_dim(valid, i * t, t, 1)

        def drop(j, alive):
            before = lax.dynamic_slice_in_dim(kept, j * t, t, 2)
            return alive & ~_suppresses(before, tile, threshold).any(1)

        filled = jnp.minimum(-(-count.max(initial=0) // t), slots // t)
        alive = lax.fori_loop(jnp.int32(0), filled, drop, alive)
        # In a crowd most tiles are suppressed as a whole.
        keep = lax.cond(
            alive.any(), keep_of_tile, lambda tile, alive: alive, tile, alive
        )
        before = count[:, None] + jnp.cumsum(keep, 1, jnp.int32) - 1
        slot = jnp.where(keep, before, slots)
        place = i * t + jnp.arange(t, dtype=jnp.int32)
        kept, position = join(kept, position, slot, tile, place)
        return i + 1, kept, position, count + keep.sum(1, jnp.int32)

    def unfinished(state):
        i, _, _, count = state
        return (i < tiles) & (count.min(initial=max_output) < max_output)

    def start(*image):
        empty = (
            jnp.zeros((6, slots), columns.dtype),
            jnp.zeros(slots, jnp.int32),
            jnp.int32(0),
        )
        return modes.carry(empty, image)

    state = jnp.int32(0), *jax.vmap(start)(columns, valid)
    _, _, position, count = lax.while_loop(unfinished, step, state)
    return position[:, :max_output], jnp.minimum(count, max_output)


def _fixed_point(suppressed, alive):
    """keep <- alive and not suppressed(keep), until nothing changes."""

    def step(state):
        keep, _ = state
        return alive & ~suppressed(keep), keep

    def changing(state):
        return (state[0] != state[1]).any()

    return lax.while_loop(changing, step, step((alive, alive)))[0]
