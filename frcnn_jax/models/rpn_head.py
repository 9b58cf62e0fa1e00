"""The head of the RPN (Sec 3.1), and its gradient from the places that are sampled.

Legend: `n`/`b` images, `h w` map, `i`/`o` channels, k anchors a place, a anchors of all
levels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from frcnn_jax import ranges
from frcnn_jax.models import layers
from frcnn_jax.ops.extents import stride_of
from frcnn_jax.ops.primitive import (
    Operation,
    as_list,
    on_each_device,
    varying_as,
    wide,
)
from frcnn_jax.types import Features


class RPNHead(nn.Module):
    """Sec 3.1: a 3x3 convolution with ReLU, then two 1x1 ones; shared by all levels.

    `objectness` is "sigmoid" (k logits a place) or "softmax" (2k, as in the paper).
    `depth` counts the 3x3 convolutions. All kernels start as N(0, 0.01), biases at 0.
    Names: `conv` (then `conv2`, ...), `objectness`, `deltas`.

    Its gradients are exact for any loss. They are fast if at most 256 anchors an image
    have a gradient, as after Sec 3.1.3; with more they take the time of the whole map.
    """

    num_anchors: int
    channels: int = 256
    objectness: str = "sigmoid"
    depth: int = 1
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.rpn",
            channels=(self.channels, ranges.COUNT),
            depth=(self.depth, ranges.COUNT),
        )
        if self.objectness not in ("sigmoid", "softmax"):
            raise ValueError(
                f"rpn objectness={self.objectness!r}: expected 'sigmoid' or 'softmax'"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, features: Features, extent: Int[Array, "b 2"] | None = None
    ) -> tuple[Array, Float[Array, "b a 4"]]:
        """Return float32 logits `[b, a]` (or `[b, a, 2]`) and deltas `[b, a, 4]`.

        Strides ascend; inside a level the order is (y, x, anchor). `extent` of each
        image in pixels: cells beyond it change none inside.
        """
        k, per_anchor = self.num_anchors, 2 if self.objectness == "softmax" else 1
        init = nn.initializers.normal(0.01)

        def weights(features, size, name):
            return layers.ConvWeights(features, size, init, self.dtype, name=name)

        names = ["conv", *(f"conv{i}" for i in range(2, self.depth + 1))]
        before = [
            layers.Conv(self.channels, kernel_init=init, dtype=self.dtype, name=name)
            for name in names[:-1]
        ]
        conv = weights(self.channels, 3, names[-1])
        objectness = weights(per_anchor * k, 1, "objectness")
        offsets = weights(4 * k, 1, "deltas")
        logits, deltas = [], []
        for stride in sorted(features):
            now = layers.cells(extent, stride_of(stride))
            x = layers.inside(features[stride].astype(self.dtype), now)
            for layer in before:
                x = layers.relu(layers.inside(layer(x), now))
            last = conv(x.shape[-1]), objectness(self.channels), offsets(self.channels)
            # 256 anchors of an image are what the loss looks at (Sec 3.1.3).
            of_level = sampled_head(last_layers, 256, last, x)
            logits.append(_rows(of_level["logits"], k))
            deltas.append(_rows(of_level["deltas"], k))
        logits = jnp.concatenate(logits, axis=1).astype(jnp.float32)
        deltas = jnp.concatenate(deltas, axis=1).astype(jnp.float32)
        return logits if per_anchor == 2 else logits[..., 0], deltas


def _rows(x, k):
    """Maps of k anchors a place as rows: [b, h, w, k n] -> [b, h w k, n].

    In two steps: JAX's rule for sharded arrays knows splits and merges, one at a time.
    """
    b, h, w, n = x.shape
    return x.reshape((b, h, w, k, n // k)).reshape((b, h * w * k, n // k))


def last_layers(weights, x, padding):
    """The RPN's last 3x3 convolution with ReLU, and the two 1x1 ones, on one level."""
    (kernel, bias), (_, first), _ = weights
    x = layers.relu(layers.conv(x, kernel, bias, padding=padding))
    # One product, and so one gradient of x.
    kernel, bias = (
        jnp.concatenate(pair, -1) for pair in zip(*weights[1:], strict=True)
    )
    both = layers.conv(x, kernel, bias)
    return dict(logits=both[..., : len(first)], deltas=both[..., len(first) :])


def sampled_head(
    head: Callable[[Any, Array, int], Any],
    cells: int,
    weights: Any,
    x: Float[Array, "n h w i"],
) -> Any:
    """`head(weights, x, 1)`, for a loss that depends on few cells of its output.

    `head(weights, x, padding)` is a 3x3 convolution with that padding, followed by
    functions of single cells; it returns maps `[n, h, w, _]`. The gradients are
    computed from the 3x3 patches of those cells, over all n images, where the gradient
    of an output is not zero. They are exact, and only x is kept for them. If an image
    has more than `cells` such cells, the whole map is computed again. Forward mode and
    second derivatives are those of the whole map.
    """
    leaves, tree = jax.tree.flatten(weights)
    like = jax.eval_shape(lambda w, x: head(w, x, 1), weights, x)
    of_result = jax.tree.structure(like)
    static = dict(head=head, cells=cells, tree=tree, of_result=of_result)

    def apply(x, *leaves):
        # One row a cell, as Winograd's convolution sees it: XLA keeps one of it.
        flat = x.reshape((-1, x.shape[-1]))
        return as_list(_sampled(flat, *leaves, shape=x.shape, **static))

    batched = [True] + [False] * len(leaves)
    found = on_each_device(apply, batched, [x, *leaves])
    return jax.tree.unflatten(of_result, found)


def _result(flat, *leaves, head, cells, shape, tree, of_result):
    """The leaves of what `head` returns for the map whose cells are the rows `flat`."""
    del cells, of_result
    maps = head(jax.tree.unflatten(tree, leaves), flat.reshape(shape), 1)
    return tuple(jax.tree.leaves(maps))


def _tangent(*args, **static):
    """The tangents of the result: those of flat and leaves come first, then these."""
    tangents, primals = args[: len(args) // 2], args[len(args) // 2 :]
    return jax.jvp(partial(_result, **static), primals, tangents)[1]


def _whole_gradient(*args, **static):
    """The gradient of the result: cotangents come first, then flat and the leaves."""
    count = static["of_result"].num_leaves
    _, pull = jax.vjp(partial(_result, **static), *args[count:])
    return pull(tuple(args[:count]))


def _gradient(*args, **static):
    """`_whole_gradient` from the cells whose cotangent is not zero."""
    head, shape, tree, cells = (static[k] for k in ("head", "shape", "tree", "cells"))
    count, (n, h, w, i) = static["of_result"].num_leaves, shape
    g, x, leaves = args[:count], args[count], args[count + 1 :]
    cells = cells * n
    used = jnp.stack([(leaf != 0).any(-1).reshape(-1) for leaf in g]).any(0)

    def dense():  # image by image: what one needs in memory is there once
        of_one = dict(static, shape=(1, h, w, i))

        def add(total, image):
            at, *g = image
            cells_of_image = lax.dynamic_slice_in_dim(x, at * (h * w), h * w)
            g = [a[None] for a in g]
            d_x, *more = _whole_gradient(*g, cells_of_image, *leaves, **of_one)
            return [a + b for a, b in zip(total, more, strict=True)], d_x

        zeros = [varying_as(x, jnp.zeros(w.shape, wide(w.dtype))) for w in leaves]
        images = jnp.arange(n, dtype=jnp.int32)
        total, d_x = lax.scan(add, zeros, (images, *g))
        total = [d.astype(w.dtype) for d, w in zip(total, leaves, strict=True)]
        return d_x.reshape(x.shape), *total

    def sparse():
        (at,) = jnp.nonzero(used, size=cells, fill_value=n * h * w)
        at = at.astype(jnp.int32)[:, None, None]
        image, row, column = at // (h * w), at // w % h, at % w
        taps = jnp.arange(-1, 2, dtype=jnp.int32)
        row, column = row + taps[None, :, None], column + taps[None, None]
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        inside &= at < n * h * w
        under = jnp.where(inside, (image * h + row) * w + column, n * h * w)

        def rows(a, at):
            flat = a.reshape((-1, a.shape[-1]))
            return flat.at[at].get(mode="fill", fill_value=0)

        patches = rows(x, under)  # [cells, 3, 3, i]
        values = [rows(leaf, at) for leaf in g]

        def of_patches(patches, *leaves):
            maps = head(jax.tree.unflatten(tree, leaves), patches, 0)
            return jax.tree.leaves(maps)

        d_patches, *d_leaves = jax.vjp(of_patches, patches, *leaves)[1](values)
        zeros = varying_as(x, jnp.zeros((n * h * w, i), x.dtype))
        return zeros.at[under].add(d_patches, mode="drop"), *d_leaves

    if cells >= n * h * w:
        return _whole_gradient(*args, **static)
    return lax.cond(used.sum(dtype=jnp.int32) <= cells, sparse, dense)


_sampled = Operation("sampled_head", _result)
_sampled_tangent = Operation("sampled_head_tangent", _tangent)
_sampled_gradient = Operation("sampled_head_gradient", _gradient, like=_whole_gradient)


@_sampled.derivatives
def _(args, tangents, results, **static):
    del results
    return _sampled_tangent(*_no_none(tangents, args), *args, **static)


def _derivatives(operation, whole, count, transpose):
    """`operation` is linear in its first `count(args, static)` arguments.

    Its tangent by these is itself, that by the others is that of `whole`.
    """

    def jvp(args, tangents, results, **static):
        del results
        n, terms = count(args, static), []
        first, rest = args[:n], args[n:]
        if any(t is not None for t in tangents[:n]):
            of_first = _no_none(tangents[:n], first)
            terms.append(as_list(operation(*of_first, *rest, **static)))
        if any(t is not None for t in tangents[n:]):
            by_rest = lambda *rest: whole(*first, *rest, **static)  # noqa: E731
            of_rest = tuple(_no_none(tangents[n:], rest))
            terms.append(jax.jvp(by_rest, tuple(rest), of_rest)[1])
        return [sum(each[1:], each[0]) for each in zip(*terms, strict=True)]

    def transpose_rule(cotangents, args, **static):
        rest = args[count(args, static) :]
        found = as_list(transpose(*cotangents, *rest, **static))
        return [*found, *[None] * len(rest)]

    operation.derivatives(jvp, transpose_rule)


def _no_none(tangents, args):
    return [
        jnp.zeros_like(a) if t is None else t
        for t, a in zip(tangents, args, strict=True)
    ]


_derivatives(
    _sampled_tangent, _tangent, lambda args, _: len(args) // 2, _sampled_gradient
)
_derivatives(
    _sampled_gradient,
    _whole_gradient,
    lambda _, static: static["of_result"].num_leaves,
    _sampled_tangent,
)
