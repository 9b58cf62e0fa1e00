"""What a network does to a map between convolutions, without parameters.

Legend: `n` images, `h w` map, `c` channels; maps are NHWC.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from frcnn_jax.ops.primitive import wide
from frcnn_jax.types import Array


def relu(x: Float[Array, "*d c"]) -> Float[Array, "*d c"]:
    """max(x, 0) and its derivative, 0 at 0, kept in memory as one array.

    XLA computes `jax.nn.relu` again for every reader, from the sums of all residual
    blocks before it, and keeps the terms of these sums. XLA computes a selection once
    if all readers use one shape: rows of c channels, as 1x1 convolutions do.
    """
    return _relu(x.reshape((-1, x.shape[-1]))).reshape(x.shape)


@jax.custom_jvp
def _relu(x):
    return jnp.where(x < 0, jnp.zeros_like(x), x)


_relu.defjvps(lambda tangent, out, x: jnp.where(out > 0, tangent, 0))


def max_pool(
    x: Float[Array, "n h w c"],
    *,
    window: int,
    stride: int,
    padding: int = 0,
    same: bool = False,
) -> Float[Array, "n h2 w2 c"]:
    """Maximum over `window` x `window` cells; padding is -inf and never the maximum.

    `same` gives `ceil(h / stride)` cells: what is missing is added at the end.
    """
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        "SAME" if same else sides,
    )


def local_response_norm(
    x: Float[Array, "n h w c"],
    *,
    window: tuple[int, int, int] = (3, 3, 1),
    alpha: float = 5e-5,
    beta: float = 0.75,
) -> Float[Array, "n h w c"]:
    """`x / (1 + alpha / |W| sum_W x^2)^beta`, W the window (h, w, c) around each value.

    Caffe's "within channel" is (3, 3, 1), its and AlexNet's "across channels" (1, 1, 3)
    (Krizhevsky et al. 2012, Sec 3.3). Outside the map x is 0 and counts in |W|.
    """
    wide_x = x.astype(wide(x.dtype))
    squares = jax.lax.reduce_window(
        wide_x * wide_x, 0.0, jax.lax.add, (1, *window), (1, 1, 1, 1), "SAME"
    )
    scale = 1 + alpha / math.prod(window) * squares
    return (wide_x * scale**-beta).astype(x.dtype)


def dropout(
    keys: Array, x: Float[Array, "b *d"], *, rate: float
) -> Float[Array, "b *d"]:
    """Zero values with probability `rate` and divide the others by `1 - rate`.

    One key an image, `[b]`: the draw does not depend on what else is in the batch, so
    any number of devices draws the same.
    """
    share = jnp.float32(1 - rate)  # the draw is the same with x64 on
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, share, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


def branch_factors(
    keys: Array, *, count: int, rate: float, each: int = 1
) -> Float[Array, "b n"]:
    """What the residual branches of each image are multiplied by (stochastic depth).

    `count` blocks of `each` branches, n = count * each. A branch of block i is left out
    with probability `p_i = rate * i / (count - 1)`: 0; or it stays: `1 / (1 - p_i)`
    (Huang et al. 2016, sec. 3; p grows linearly to `rate`). One key an image, `[b]`, so
    the draw does not depend on what else is in the batch.
    """
    p = jnp.arange(count, dtype=jnp.float32).repeat(each) * (rate / max(count - 1, 1))
    drawn = jax.vmap(lambda k: jax.random.uniform(k, p.shape, jnp.float32))(keys)
    return jnp.where(drawn < p[None], 0.0, 1 / (1 - p)[None])
