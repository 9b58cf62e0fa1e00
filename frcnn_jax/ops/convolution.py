"""Convolutions, and the choice of how each one is computed.

Legend: `n` images, `h w` map, `i`/`o` input and output channels. Maps are NHWC, kernels
HWIO. Padding is explicit and symmetric, `((p, p), (p, p))`, so a stride-2 convolution
gives `ceil(h / 2)` cells whatever the parity of `h`, in the same places as in the
frameworks whose weights we read.

Which formulation is fastest depends on backend and shape:

| backend | convolution | forward | gradient of the input | gradient of the kernel |
| --- | --- | --- | --- | --- |
| any | of the map's size, unpadded | matrix product | matrix product | matrix product |
| CPU | 1x1 | matrix product | matrix product | matrix product |
| CPU | 3x3, stride 1, where `winograd.pays` | Winograd | Winograd | Winograd |
| CPU | else 3x3, stride 1 or 2, 96 channels or more | XLA | XLA | nine products |
| CPU | depthwise | shifted products | shifted products | shifted products |
| any | everything else, grouped and dilated ones included | XLA | XLA | XLA |
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from frcnn_jax.ops import winograd
from frcnn_jax.ops.direct_conv import direct_conv

# With so many input and output channels nine matrix products beat XLA's CPU kernel
# gradient of a 3x3 convolution, on every map: 3 times at 256 channels and 120x160, 1.6
# at 128 and 60x80, 1.1 at 512 and 15x20. With 64 they lose (0.6). Two cores, float32,
# measured with slices where rows are gathered now, a tenth faster. At stride 2 it is
# 1.9 times at 128 channels and 200x336, 1.2 at 512 and 50x84; XLA's would keep, from
# the forward pass on, a copy of the map with its axes turned around.
SHIFTED_CHANNELS = 96


def conv(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i o"],
    bias: Float[Array, " o"] | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
) -> Float[Array, "n h2 w2 o"]:
    """Cross-correlate `x` with `kernel` and add `bias`, fast for backend and shape.

    All formulations agree to rounding, gradients included: in float32 within 1e-5 of
    the largest value, Winograd's (`ops.winograd`) within 4e-6 in norm. Which is used
    may depend on the images per device, and equality over devices is of that kind.
    """
    fits = kernel.shape[:2] == (3, 3) and stride == padding == 1
    if jax.default_backend() == "cpu" and fits and winograd.pays(x, kernel):
        bias = None if bias is None else bias.astype(x.dtype)
        return winograd.conv3x3(x, kernel, bias)
    out = _conv(x, kernel, stride, padding)
    return out if bias is None else out + bias[None, None, None]


def _conv(x, kernel, stride, padding) -> Any:
    if padding == 0 and x.shape[1:3] == kernel.shape[:2]:  # one cell comes out
        kernel = kernel.reshape((-1, kernel.shape[-1]))
        return (x.reshape((x.shape[0], len(kernel))) @ kernel)[:, None, None]
    if jax.default_backend() == "cpu" and padding == kernel.shape[0] // 2:
        if kernel.shape[:2] == (1, 1):
            return _conv1x1(x[:, ::stride, ::stride], kernel[0, 0])
        wide = min(kernel.shape[2:]) >= SHIFTED_CHANNELS
        if kernel.shape[:2] == (3, 3) and stride in (1, 2) and wide:
            return _conv3x3(x, kernel, stride)
    return direct_conv(x, kernel, stride=stride, padding=padding)


def _conv1x1(x, kernel):
    """x @ kernel as a product of two matrices, as its gradients are then, too.

    If x had four axes, XLA would transpose the gradient of the output value by value
    for the gradient of the kernel, and the backward pass would take 2.5 times as long.
    """
    out = x.reshape((-1, x.shape[-1])) @ kernel
    return out.reshape((*x.shape[:-1], kernel.shape[-1]))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv3x3(x, kernel, stride):
    """A 3x3 convolution of padding 1 with a kernel gradient fit for CPUs.

    dL/dK[u, v] = sum_p x[stride p + (u, v) - 1]^T g[p]: nine products, one after the
    other, so that one shifted map is in memory at a time.
    """
    return direct_conv(x, kernel, stride=stride, padding=1)


def _conv3x3_forward(x, kernel, stride):
    return _conv3x3(x, kernel, stride), (x, kernel)


def _conv3x3_backward(stride, residuals, g):
    x, kernel = residuals
    (n, h, w, _), (_, h2, w2, _) = x.shape, g.shape
    cells, flat_g = (a.reshape((-1, a.shape[-1])) for a in (x, g))
    image = jnp.arange(n)[:, None, None] * (h * w)

    def product(shift):
        row = (stride * jnp.arange(h2) + shift[0] - 1)[None, :, None]
        column = (stride * jnp.arange(w2) + shift[1] - 1)[None, None]
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        at = jnp.where(inside, image + row * w + column, len(cells)).reshape(-1)
        return cells.at[at].get(mode="fill", fill_value=0).T @ flat_g

    shifts = jnp.array([(u, v) for u in range(3) for v in range(3)])
    d_kernel = jax.lax.map(product, shifts).reshape(kernel.shape)
    pull = jax.linear_transpose(
        lambda x: direct_conv(x, kernel, stride=stride, padding=1), x
    )
    return *pull(g), d_kernel


_conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def depthwise_conv(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k k 1 c"], *, stride: int = 1
) -> Float[Array, "n h2 w2 c"]:
    """Cross-correlate every channel with its own kernel, padded by k // 2.

    XLA has no fast depthwise convolution for CPUs; there it is a sum of k^2 products of
    shifted maps, which fuse.
    """
    k, _, _, c = kernel.shape
    if jax.default_backend() != "cpu":
        return direct_conv(x, kernel, stride=stride, padding=k // 2, groups=c)
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    products = [
        padded[:, i : i + h : stride, j : j + w : stride] * kernel[i, j][None, None]
        for i in range(k)
        for j in range(k)
    ]
    return sum(products[1:], products[0])
