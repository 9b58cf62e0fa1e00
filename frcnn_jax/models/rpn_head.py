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
from jaxtyping import Array, Float

from frcnn_jax import ranges
from frcnn_jax.models import layers
from frcnn_jax.types import Features


class RPNHead(nn.Module):
    """Sec 3.1: a 3x3 convolution with ReLU, then two 1x1 ones; shared by all levels.

    `objectness` is "sigmoid" (k logits a place) or "softmax" (2k, as in the paper).
    `depth` counts the 3x3 convolutions. All kernels start as N(0, 0.01), biases at 0.
    Names: `conv` (then `conv2`, ...), `objectness`, `deltas`.

    Its gradients are exact for any loss. They are fast if at most 256 anchors an image
    have a gradient, as after Sec 3.1.3; with more they take the time of the whole map.
    Forward mode (`jax.jvp`) is not defined.
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
    def __call__(self, features: Features) -> tuple[Array, Float[Array, "b a 4"]]:
        """Return float32 logits `[b, a]` (or `[b, a, 2]`) and deltas `[b, a, 4]`.

        Strides ascend; inside a level the order is (y, x, anchor).
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
            x = features[stride].astype(self.dtype)
            for layer in before:
                x = layers.relu(layer(x))
            last = conv(x.shape[-1]), objectness(self.channels), offsets(self.channels)
            # 256 anchors of an image are what the loss looks at (Sec 3.1.3).
            of_level = sampled_head(last_layers, 256, last, x)
            logits.append(of_level["logits"].reshape((x.shape[0], -1, per_anchor)))
            deltas.append(of_level["deltas"].reshape((x.shape[0], -1, 4)))
        logits = jnp.concatenate(logits, axis=1).astype(jnp.float32)
        deltas = jnp.concatenate(deltas, axis=1).astype(jnp.float32)
        return logits if per_anchor == 2 else logits[..., 0], deltas


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
    has more than `cells` such cells, the whole map is computed again. Reverse mode
    only; a second derivative leaves out the cells whose first is exactly 0.
    """
    # One row a cell: Winograd's convolution sees it so too, and XLA keeps one of it.
    flat = x.reshape((-1, x.shape[-1]))
    return _sampled_head(head, cells, x.shape, weights, flat)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sampled_head(head, cells, shape, weights, flat):
    del cells
    return head(weights, flat.reshape(shape), 1)


def _sampled_forward(head, cells, shape, weights, flat):
    return _sampled_head(head, cells, shape, weights, flat), (weights, flat)


def _sampled_backward(head, cells, shape, residuals, g):
    weights, x = residuals
    n, h, w, i = shape
    cells = cells * n
    used = [(leaf != 0).any(-1).reshape(-1) for leaf in jax.tree.leaves(g)]
    used = jnp.stack(used).any(0)

    def whole(x, g):
        def maps(weights, x):
            return head(weights, x.reshape((-1, h, w, i)), 1)

        return jax.vjp(maps, weights, x)[1](g)

    def dense():  # image by image: what one needs in memory is there once
        def add(d_weights, image):
            at, g = image
            cells_of_image = jax.lax.dynamic_slice_in_dim(x, at * h * w, h * w)
            more, d_x = whole(cells_of_image, jax.tree.map(lambda a: a[None], g))
            return jax.tree.map(jnp.add, d_weights, more), d_x

        zeros = jax.tree.map(
            lambda w: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)),
            weights,
        )
        d_weights, d_x = jax.lax.scan(add, zeros, (jnp.arange(n), g))
        d_weights = jax.tree.map(lambda d, w: d.astype(w.dtype), d_weights, weights)
        return d_weights, d_x.reshape(x.shape)

    def sparse():
        (at,) = jnp.nonzero(used, size=cells, fill_value=n * h * w)
        image, row, column = (
            p[:, None, None] for p in jnp.unravel_index(at, (n, h, w))
        )
        taps = jnp.arange(-1, 2)
        row, column = row + taps[None, :, None], column + taps[None, None]
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        inside &= at[:, None, None] < n * h * w
        under = jnp.where(inside, (image * h + row) * w + column, n * h * w)

        def rows(a, at):
            flat = a.reshape((-1, a.shape[-1]))
            return flat.at[at].get(mode="fill", fill_value=0)

        patches = rows(x, under)  # [cells, 3, 3, i]
        values = jax.tree.map(lambda leaf: rows(leaf, at)[:, None, None], g)
        pull = jax.vjp(lambda *args: head(*args, 0), weights, patches)[1]
        d_weights, d_patches = pull(values)
        d_x = jnp.zeros((n * h * w, i), x.dtype).at[under].add(d_patches, mode="drop")
        return d_weights, d_x

    if cells >= n * h * w:
        return whole(x, g)
    return jax.lax.cond(used.sum() <= cells, sparse, dense)


_sampled_head.defvjp(_sampled_forward, _sampled_backward)
