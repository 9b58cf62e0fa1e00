"""Convolutions, and the choice of how each one is computed.

Legend: `n` images, `h w` map, `i`/`o` input and output channels. Maps are NHWC, kernels
HWIO. Padding is explicit and symmetric, `((p, p), (p, p))`, so a stride-2 convolution
gives `ceil(h / 2)` cells whatever the parity of `h`, in the same places as in the
frameworks whose weights we read.

Which formulation is fastest depends on platform and shape:

| platform | convolution | forward | gradient of the input | gradient of the kernel |
| --- | --- | --- | --- | --- |
| any | of the map's size, unpadded | matrix product | matrix product | matrix product |
| CPU | 1x1 | matrix product | matrix product | matrix product |
| CPU | 3x3, stride 1, where `winograd.pays` | Winograd | Winograd | Winograd |
| CPU | else 3x3, stride 1 or 2, 96 channels or more | XLA | XLA | nine products |
| CPU | depthwise | shifted products | shifted products | the same, or a loop |
| any | everything else, grouped and dilated ones included | XLA | XLA | XLA |

The platform is asked when a program is lowered, forward and backward, so an export has
that of the platform it is for. Forward mode, reverse mode and higher derivatives go
through all of them.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from frcnn_jax.ops import winograd
from frcnn_jax.ops.direct_conv import direct_conv
from frcnn_jax.ops.primitive import Operation, bilinear, on_each_device, varying_as
from frcnn_jax.types import Array

# With so many input and output channels nine matrix products beat XLA's CPU kernel
# gradient of a 3x3 convolution, on every map: 3 times at 256 channels and 120x160, 1.6
# at 128 and 60x80, 1.1 at 512 and 15x20. With 64 they lose (0.6). Two cores, float32,
# measured with slices where rows are gathered now, a tenth faster. At stride 2 it is
# 1.9 times at 128 channels and 200x336, 1.2 at 512 and 50x84; XLA's would keep, from
# the forward pass on, a copy of the map with its axes turned around.
SHIFTED_CHANNELS = 96

# A depthwise kernel of so many rows or more has its gradient from a loop over its k^2
# cells. 7x7 on 96 channels of 60x80 cells: 17 in place of 61 ms of processor time, and
# 1.1 in place of 5.6 s to compile (2026-11-29, Intel Xeon, machine in use).
LOOPED_KERNEL = 7


def conv(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i o"],
    bias: Float[Array, " o"] | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
) -> Float[Array, "n h2 w2 o"]:
    """Cross-correlate `x` with `kernel` and add `bias`, fast for platform and shape.

    All formulations agree to rounding, gradients included: in float32 within 1e-5 of
    the largest value, Winograd's (`ops.winograd`) within 4e-6 in norm. Which is used
    may depend on the images per device, and equality over devices is of that kind.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if padding == 0 and x.shape[1:3] == kernel.shape[:2]:  # one cell comes out
        kernel = kernel.reshape((-1, kernel.shape[-1]))
        out = (x.reshape((x.shape[0], len(kernel))) @ kernel)[:, None, None]
        return out if bias is None else out + bias[None, None, None]
    kind = _kind(x, kernel, stride, padding)
    if kind == "direct":
        out = direct_conv(x, kernel, stride=stride, padding=padding)
        return out if bias is None else out + bias[None, None, None]
    return convolve(x, kernel, bias, kind=kind, stride=stride)


def depthwise_conv(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k k 1 c"], *, stride: int = 1
) -> Float[Array, "n h2 w2 c"]:
    """Cross-correlate every channel with its own kernel, padded by k // 2.

    XLA has no fast depthwise convolution for CPUs; there it is a sum of k^2 products of
    shifted maps, which fuse.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    return convolve(x, kernel, None, kind="depthwise", stride=stride)


def _kind(x, kernel, stride, padding) -> str:
    """What a CPU has for a convolution; elsewhere it is XLA's."""
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return "1x1"
    if kernel.shape[:2] != (3, 3) or padding != 1:
        return "direct"
    if stride == 1 and winograd.pays(x, kernel):
        return "winograd"
    wide = min(kernel.shape[2:]) >= SHIFTED_CHANNELS
    return "nine products" if stride in (1, 2) and wide else "direct"


def convolve(x: Any, kernel: Any, bias: Any, *, kind: str, stride: int = 1) -> Any:
    """The convolution of a kind (`_kind`), padded by half of its kernel."""
    static = dict(kind=kind, stride=stride, first=x.shape, second=kernel.shape)

    def apply(x, kernel, *bias):
        local = static | dict(first=x.shape)
        if bias:
            return _of_all(x, kernel, bias[0].astype(x.dtype), **local)
        return _of_both(x, kernel, **local)

    if bias is None:
        return on_each_device(apply, (True, False), (x, kernel))
    return on_each_device(apply, (True, False, False), (x, kernel, jnp.asarray(bias)))


# What each platform computes ------------------------------------------------------


def _direct(x, kernel, kind, stride):
    depthwise = kind == "depthwise"
    groups, padding = kernel.shape[3] if depthwise else 1, kernel.shape[0] // 2
    return direct_conv(x, kernel, stride=stride, padding=padding, groups=groups)


def _on_cpu(x, kernel, kind, stride):
    if kind == "1x1":
        return _product(x[:, ::stride, ::stride], kernel[0, 0])
    if kind == "winograd":
        return winograd.conv3x3(x, kernel)
    if kind == "depthwise":
        return _shifted_products(x, kernel, stride)
    return _direct(x, kernel, kind, stride)


def _product(x, kernel):
    """x @ kernel as a product of two matrices, as its gradients are then, too.

    If x had four axes, XLA would transpose the gradient of the output value by value
    for the gradient of the kernel, and the backward pass would take 2.5 times as long.
    """
    rows = math.prod(x.shape[:3])
    out = x.reshape((rows, x.shape[-1])) @ kernel
    return out.reshape((*x.shape[:-1], kernel.shape[-1]))


def _shifted_products(x, kernel, stride):
    k, (h, w) = kernel.shape[0], x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    products = [
        padded[:, i : i + h : stride, j : j + w : stride] * kernel[i, j][None, None]
        for i in range(k)
        for j in range(k)
    ]
    return sum(products[1:], products[0])


def _nine_products(x, g, stride):
    """dL/dK[u, v] = sum_p x[stride p + (u, v) - 1]^T g[p], one after the other.

    So one shifted map is in memory at a time.
    """
    (n, h, w, _), (_, h2, w2, _) = x.shape, g.shape
    cells, flat_g = (a.reshape((-1, a.shape[-1])) for a in (x, g))
    images, rows, columns = (jnp.arange(m, dtype=jnp.int32) for m in (n, h2, w2))
    image = images[:, None, None] * (h * w)

    def product(shift):
        row = (stride * rows + shift[0] - 1)[None, :, None]
        column = (stride * columns + shift[1] - 1)[None, None]
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        at = jnp.where(inside, image + row * w + column, len(cells)).reshape(-1)
        return cells.at[at].get(mode="fill", fill_value=0).T @ flat_g

    shifts = jnp.array([(u, v) for u in range(3) for v in range(3)], jnp.int32)
    found = lax.map(product, shifts)
    return found.reshape((3, 3, *found.shape[1:]))


def _depthwise_products(x, g, k, stride):
    """dL/dK[u, v] = sum_p x[stride p + (u, v) - k // 2] g[p], one after the other.

    XLA compiles one sum in place of k^2, and reads the maps in the order they lie.
    """
    (h, w), (h2, w2) = x.shape[1:3], g.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    size = (x.shape[0], stride * (h2 - 1) + 1, stride * (w2 - 1) + 1, x.shape[3])
    assert size[1] <= h and size[2] <= w

    def product(shift):
        zero = jnp.zeros((), jnp.int32)
        part = lax.dynamic_slice(padded, (zero, shift[0], shift[1], zero), size)
        return (part[:, ::stride, ::stride] * g).sum((0, 1, 2))

    shifts = jnp.array([(u, v) for u in range(k) for v in range(k)], jnp.int32)
    return lax.map(product, shifts).reshape((k, k, 1, x.shape[3]))


# The operations -------------------------------------------------------------------


def _both(x, kernel, *, kind, stride, first, second):
    del first, second
    static = dict(kind=kind, stride=stride)
    cpu, default = partial(_on_cpu, **static), partial(_direct, **static)
    return (lax.platform_dependent(x, kernel, cpu=cpu, default=default),)


def _both_direct(x, kernel, *, kind, stride, first, second):
    del first, second
    return (_direct(x, kernel, kind, stride),)


def _all(x, kernel, bias, *, kind, stride, first, second):
    del first, second

    def cpu(x, kernel, bias):
        if kind == "winograd":
            return winograd.conv3x3(x, kernel, bias)
        return _on_cpu(x, kernel, kind, stride) + bias[None, None, None]

    def default(x, kernel, bias):
        return _direct(x, kernel, kind, stride) + bias[None, None, None]

    return (lax.platform_dependent(x, kernel, bias, cpu=cpu, default=default),)


def _all_direct(x, kernel, bias, **static):
    return (_both_direct(x, kernel, **static)[0] + bias[None, None, None],)


def _gradient_of_x(g, kernel, *, kind, stride, first, second):
    del second

    def transpose(forward, g, kernel):
        x = varying_as(g, jnp.zeros(first, g.dtype))  # only its type is used
        linear = partial(forward, kernel=kernel, kind=kind, stride=stride)
        return jax.linear_transpose(linear, x)(g)[0]

    def cpu(g, kernel):
        if kind == "winograd":
            return winograd.conv3x3(g, kernel[::-1, ::-1].swapaxes(2, 3))
        return transpose(_on_cpu, g, kernel)

    default = partial(transpose, _direct)
    return (lax.platform_dependent(g, kernel, cpu=cpu, default=default),)


def _gradient_of_kernel(x, g, *, kind, stride, first, second):
    del first

    def transpose(forward, x, g):
        kernel = varying_as(g, jnp.zeros(second, g.dtype))  # only its type is used
        linear = partial(forward, x, kind=kind, stride=stride)
        return jax.linear_transpose(linear, kernel)(g)[0]

    def cpu(x, g):
        if kind == "winograd":
            return winograd.kernel_gradient(x, g)
        if kind == "nine products":
            return _nine_products(x, g, stride)
        if kind == "depthwise" and second[0] >= LOOPED_KERNEL:
            return _depthwise_products(x, g, second[0], stride)
        return transpose(_on_cpu, x, g)

    default = partial(transpose, _direct)
    return (lax.platform_dependent(x, g, cpu=cpu, default=default),)


_of_both = Operation("conv", _both, like=_both_direct)
_of_all = Operation("conv_bias", _all, like=_all_direct)
_of_x = Operation("conv_gradient_of_x", _gradient_of_x)
_of_kernel = Operation("conv_gradient_of_kernel", _gradient_of_kernel)
bilinear(_of_both, _of_x, _of_kernel)


@_of_all.derivatives
def _(args, tangents, results, **static):
    x, kernel, _ = args
    dx, dkernel, dbias = tangents
    terms = []
    if dx is not None:
        terms.append(_of_both(dx, kernel, **static))
    if dkernel is not None:
        terms.append(_of_both(x, dkernel, **static))
    if dbias is not None:
        terms.append(jnp.broadcast_to(dbias, results[0].shape))
    return sum(terms[1:], terms[0])


def _images_together(operation):
    """Batches of images are more images, where the kernel is one."""

    def rule(size, batched, x, *others, first, **static):
        if any(batched[1:]):
            return operation.one_by_one(
                size, batched, x, *others, first=first, **static
            )
        together = x.reshape((size * x.shape[1], *x.shape[2:]))
        first = (size * first[0], *first[1:])
        out = operation(together, *others, first=first, **static)
        return out.reshape((size, x.shape[1], *out.shape[1:]))

    operation.batched(rule)


for _operation in (_of_both, _of_all, _of_x):
    _images_together(_operation)
