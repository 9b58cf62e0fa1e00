"""The Flax layers that every model uses: convolutions with parameters, and norms.

Legend: `n` images, `h w` map, `i`/`o` input and output channels. Maps are NHWC, kernels
HWIO. Parameters are float32; `dtype` is what the layer computes in. How a convolution
is computed is chosen in `ops.convolution`. Functions without parameters come from `ops`
and can be imported from here too, so that a backbone imports one module.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from frcnn_jax.ops.convolution import conv, depthwise_conv
from frcnn_jax.ops.direct_conv import direct_conv
from frcnn_jax.ops.extents import cells, inside, mask, mean_inside
from frcnn_jax.ops.maps import (
    branch_factors,
    dropout,
    local_response_norm,
    max_pool,
    relu,
)
from frcnn_jax.ops.modes import reshape
from frcnn_jax.ops.primitive import wide

__all__ = [
    "NORMS",
    "BatchNorm",
    "Conv",
    "ConvWeights",
    "DepthwiseConv",
    "FrozenBatchNorm",
    "GroupNorm",
    "LayerNorm",
    "LayerScale",
    "PatchConv",
    "add_branch",
    "branch_factors",
    "cells",
    "check_norm",
    "conv",
    "depthwise_conv",
    "dropout",
    "he_normal",
    "inside",
    "local_response_norm",
    "max_pool",
    "mean_inside",
    "norm",
    "pad_to_multiple",
    "relu",
    "reshape",
    "truncated_normal",
    "xavier_uniform",
]

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
truncated_normal = nn.initializers.truncated_normal(0.02)
xavier_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class ConvWeights(nn.Module):
    """`kernel` (HWIO) and `bias` of a convolution, for a function that convolves."""

    features: int
    kernel_size: int
    kernel_init: Callable = he_normal
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        """Return kernel and bias in `dtype` for an input of so many channels."""
        kernel, bias = _conv_params(self, channels)
        assert bias is not None
        return kernel, bias


class Conv(nn.Module):
    """Convolution with parameters `kernel` (HWIO) and, unless `use_bias=False`, `bias`.

    `padding=-1` means `dilation * (kernel_size // 2)`. With `groups`, output channels
    read an equal share of the input each (ResNeXt), and I is the size of that share.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int = -1
    groups: int = 1
    dilation: int = 1
    use_bias: bool = True
    kernel_init: Callable = he_normal
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        """Return the map of `features` channels in `dtype`."""
        kernel, bias = _conv_params(self, x.shape[-1] // self.groups, self.use_bias)
        padding = self.padding
        if padding < 0:
            padding = self.dilation * (self.kernel_size // 2)
        x = jnp.asarray(x, self.dtype)
        if self.groups == self.dilation == 1:
            return conv(x, kernel, bias, stride=self.stride, padding=padding)
        x = direct_conv(
            x,
            kernel,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return x if bias is None else x + bias[None, None, None]


def _conv_params(
    module: Any, channels: int, use_bias: bool = True
) -> tuple[Array, Array | None]:
    """`kernel` and, with `use_bias`, `bias` of a compact module, in its dtype."""
    shape = (module.kernel_size, module.kernel_size, channels, module.features)
    kernel = module.param("kernel", module.kernel_init, shape)
    bias = None
    if use_bias:
        bias = module.param("bias", nn.initializers.zeros, (module.features,))
        bias = jnp.asarray(bias, module.dtype)
    return jnp.asarray(kernel, module.dtype), bias


class PatchConv(nn.Module):
    """Convolution of squares that do not overlap: `stride` is the kernel's size, too.

    A map that is no multiple of the stride ends in zeros at its bottom and right, so
    no cell is lost. It is one matrix product.
    """

    features: int
    stride: int
    use_bias: bool = True
    kernel_init: Callable = he_normal
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        """Return the map of `features` channels, `ceil(h / stride)` cells high."""
        k, i = self.stride, x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (k, k, i, self.features))
        x = pad_to_multiple(jnp.asarray(x, self.dtype), k)
        n, h, w = x.shape[0], x.shape[1] // k, x.shape[2] // k
        patches = reshape(x, (n, h, k, w, k, i)).transpose((0, 1, 3, 2, 4, 5))
        kernel = jnp.asarray(kernel, self.dtype).reshape((k * k * i, self.features))
        y = reshape(patches, (n * h * w, k * k * i)) @ kernel
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + jnp.asarray(bias, self.dtype)[None]
        return y.reshape((n, h, w, self.features))


def pad_to_multiple(x: Float[Array, "n h w c"], k: int) -> Float[Array, "n h2 w2 c"]:
    """Add zeros at the bottom and the right until both sides are multiples of `k`."""
    bottom, right = -x.shape[1] % k, -x.shape[2] % k
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


class DepthwiseConv(nn.Module):
    """Each channel with its own odd `kernel_size` square `[k, k, 1, c]`."""

    kernel_size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
        """Return the map, `ceil(h / stride)` cells high, in `dtype`."""
        k, c = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", he_normal, (k, k, 1, c))
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        x = depthwise_conv(x, kernel, stride=self.stride)
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return x + jnp.asarray(bias, self.dtype)[None, None, None]


class LayerNorm(nn.LayerNorm):
    """y = scale (x - mean) / sqrt(var + eps) + bias over the channels of each cell.

    Mean and variance are those of the cell's own channels (Ba et al. 2016), in float32
    and in two passes, as the peers compute them; cells do not mix.
    """

    use_fast_variance: bool = False


class LayerScale(nn.Module):
    """y = scale x, a factor for each channel (Touvron et al. 2021, CaiT, sec. 2)."""

    initial: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Return `x` with each channel scaled."""
        start = nn.initializers.constant(self.initial)
        scale = self.param("scale", start, (x.shape[-1],))
        scale = jnp.asarray(scale, self.dtype)
        return x * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


def add_branch(
    x: Float[Array, "b *d"],
    branch: Float[Array, "b *d"],
    factor: Float[Array, " b"] | None,
) -> Float[Array, "b *d"]:
    """x + factor branch, a number an image (`branch_factors`); None is 1."""
    if factor is None:
        return x + branch
    factor = factor.astype(branch.dtype).reshape((-1, *(1,) * (x.ndim - 1)))
    return x + branch * factor


class FrozenBatchNorm(nn.Module):
    """y = scale (x - mean) / sqrt(var + eps) + bias, with no part that learns.

    `scale` and `bias` are parameters behind a stop_gradient; `mean` and `var` live in
    the collection `batch_stats`, which no call changes. One multiply-add a value.
    """

    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], extent: Array | None = None
    ) -> Float[Array, "n h w c"]:
        """Normalise the last axis with the stored statistics; `extent` is not used."""
        del extent
        shape, zeros, ones = (x.shape[-1],), nn.initializers.zeros, nn.initializers.ones
        scale = self.param("scale", ones, shape)
        bias = self.param("bias", zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape).value
        var = self.variable("batch_stats", "var", jnp.ones, shape).value
        multiplier = scale * jax.lax.rsqrt(var + self.eps)
        offset = bias - mean * multiplier
        multiplier, offset = jax.lax.stop_gradient((multiplier, offset))
        multiplier = multiplier.astype(self.dtype)[None, None, None]
        return x * multiplier + offset.astype(self.dtype)[None, None, None]


class BatchNorm(nn.Module):
    """The same, with statistics of the batch while the network learns.

    It learns where the collection `batch_stats` is mutable, as in `train_step`: then
    `mean` and `var` are those of the batch's cells inside the extents, in float32, and
    the stored ones change by a tenth of the difference. Otherwise it is a
    FrozenBatchNorm, but for what learns. With an `axis_name` the statistics are those
    of all devices of that axis: sums and counts, as devices may have unequal counts.
    """

    eps: float = 1e-5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], extent: Array | None = None
    ) -> Float[Array, "n h w c"]:
        """Normalise the last axis with the batch's or the stored statistics."""
        shape, zeros, ones = (x.shape[-1],), nn.initializers.zeros, nn.initializers.ones
        stored_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        stored_var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = stored_mean.value, stored_var.value
        if self.is_mutable_collection("batch_stats"):
            starts = self.is_initializing()
            mean, var = moments(x, extent, None if starts else self.axis_name)
            if not starts:
                stored_mean.value += 0.1 * (mean - stored_mean.value)
                stored_var.value += 0.1 * (var - stored_var.value)
        multiplier = scale * jax.lax.rsqrt(var + self.eps)
        y = (x - mean[None, None, None]) * multiplier[None, None, None]
        return (y + bias[None, None, None]).astype(self.dtype)


def moments(
    x: Float[Array, "n h w c"], extent: Array | None, axis_name: str | None
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and variance of each channel, in float32, over the cells inside of all maps.

    With `axis_name`, over those of all devices of that axis.
    """
    x = inside(x.astype(wide(x.dtype)), extent)
    count = jnp.asarray(math.prod(x.shape[:3]), x.dtype)
    if extent is not None:
        count = mask(extent, x.shape[1:3]).sum(dtype=x.dtype)
    sums = x.sum((0, 1, 2)), (x * x).sum((0, 1, 2)), count
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    total, squares, count = sums
    count = jnp.maximum(count, 1)
    mean = total / count
    return mean, jnp.maximum(squares / count - mean * mean, 0)


class GroupNorm(nn.GroupNorm):
    """Statistics of each image's groups of channels, over the cells inside its extent.

    Wu & He 2018.
    """

    def __call__(
        self, x: Float[Array, "n h w c"], extent: Array | None = None
    ) -> Float[Array, "n h w c"]:
        """Normalise groups of channels."""
        if extent is None:
            return super().__call__(x)
        cells = jnp.broadcast_to(mask(extent, x.shape[1:3]), x.shape)
        return super().__call__(inside(x, extent), mask=cells)


NORMS = ("frozen", "batch", "sync", "group", "layer")


def norm(
    kind: str, *, name: str, eps: float = 1e-5, dtype: Any = jnp.float32
) -> Callable[..., Array]:
    """Return the layer that `kind` names, to be called once with a map and its extent.

    | kind | statistics | scale and bias |
    | --- | --- | --- |
    | "frozen" | stored, of weights made elsewhere: `FrozenBatchNorm` | as stored |
    | "batch" | of the images of one device: `BatchNorm` | learn |
    | "sync" | of the images of all devices on axis "batch" | learn |
    | "group" | of 32 groups of an image's channels (Wu & He 2018) | learn |
    | "layer" | of the channels of each cell: `LayerNorm` | learn |
    | "none" | no layer | |

    "group" has as many groups as divide the channels, up to 32, and its own epsilon.
    """
    if kind == "frozen":
        return FrozenBatchNorm(eps, dtype, name=name)
    if kind in ("batch", "sync"):
        axis = "batch" if kind == "sync" else None
        return BatchNorm(eps, dtype, axis, name=name)
    if kind == "group":
        return lambda x, extent=None: GroupNorm(
            math.gcd(32, x.shape[-1]), dtype=dtype, name=name
        )(x, extent)
    if kind == "layer":
        return lambda x, extent=None: LayerNorm(eps, dtype=dtype, name=name)(x)
    return lambda x, extent=None: x


def check_norm(group: str, kind: str, *, none: bool = True) -> None:
    """Raise ValueError for a `kind` that `norm` does not know."""
    known = ("none", *NORMS) if none else NORMS
    if kind not in known:
        raise ValueError(f"{group}.norm={kind!r}: expected one of {known}")
