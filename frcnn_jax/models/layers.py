"""The layers that every model uses; nothing else picks how a convolution is computed.

Legend: `n` images, `h w` map, `i`/`o` input and output channels. Maps are NHWC, kernels
HWIO. Padding is explicit and symmetric, `((p, p), (p, p))`, so a stride-2 layer gives
`ceil(h / 2)` cells whatever the parity of `h`, in the same places as in the frameworks
whose weights we read. Parameters are float32; `dtype` is what the layer computes in.

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

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from frcnn_jax.models import winograd

# With so many input and output channels nine matrix products beat XLA's CPU kernel
# gradient of a 3x3 convolution, on every map: 3 times at 256 channels and 120x160, 1.6
# at 128 and 60x80, 1.1 at 512 and 15x20. With 64 they lose (0.6). Two cores, float32,
# measured with slices where rows are gathered now, a tenth faster. At stride 2 it is
# 1.9 times at 128 channels and 200x336, 1.2 at 512 and 50x84; XLA's would keep, from
# the forward pass on, a copy of the map with its axes turned around.
SHIFTED_CHANNELS = 96

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


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
    the largest value, Winograd's (`models.winograd`) within 4e-6 in norm. Which is used
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
    return _xla_conv(x, kernel, stride, padding)


def _conv1x1(x, kernel):
    """x @ kernel as a product of two matrices, so that its gradients are such too.

    Were x left with four axes, XLA would turn the gradient of the output around for
    that of the kernel, value by value: 2.5 times the time of the backward pass.
    """
    out = x.reshape((-1, x.shape[-1])) @ kernel
    return out.reshape((*x.shape[:-1], kernel.shape[-1]))


def _xla_conv(x, kernel, stride, padding, dilation=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv3x3(x, kernel, stride):
    """A 3x3 convolution of padding 1 with a kernel gradient fit for CPUs.

    dL/dK[u, v] = sum_p x[stride p + (u, v) - 1]^T g[p]: nine products, one after the
    other, so that one shifted map is in memory at a time.
    """
    return _xla_conv(x, kernel, stride, 1)


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
    pull = jax.linear_transpose(lambda x: _xla_conv(x, kernel, stride, 1), x)
    return *pull(g), d_kernel


_conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def sampled_head(
    head: Callable[[Any, Array, int], Any],
    cells: int,
    weights: Any,
    x: Float[Array, "n h w i"],
) -> Any:
    """`head(weights, x, 1)`, for a loss that looks at few cells of what it gives.

    `head(weights, x, padding)` is a 3x3 convolution with that padding and, after it,
    what looks at one cell at a time; it returns maps `[n, h, w, _]`. Its gradients come
    from the 3x3 patches under those cells, over all n images, in which the gradient of
    an output is not zero: exact, whichever they are, and nothing but x is kept for
    them. Are there more than `cells` an image, the whole map is computed again. Reverse
    mode only; a second derivative leaves out the cells whose first is exactly 0.
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


class ConvWeights(nn.Module):
    """`kernel` (HWIO) and `bias` of a convolution, for a function that convolves."""

    features: int
    kernel_size: int
    kernel_init: Callable = he_normal
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        """Return kernel and bias in `dtype` for an input of so many channels."""
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return jnp.asarray(kernel, self.dtype), jnp.asarray(bias, self.dtype)


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
        k = self.kernel_size
        shape = (k, k, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        padding = self.dilation * (k // 2) if self.padding < 0 else self.padding
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            bias = jnp.asarray(bias, self.dtype)
        if self.groups == self.dilation == 1:
            return conv(x, kernel, bias, stride=self.stride, padding=padding)
        x = _xla_conv(x, kernel, self.stride, padding, self.dilation, self.groups)
        return x if bias is None else x + bias[None, None, None]


class DepthwiseConv(nn.Module):
    """Each channel with its own odd `kernel_size` square `[k, k, 1, c]`; no bias."""

    kernel_size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
        """Return the map, `ceil(h / stride)` cells high, in `dtype`."""
        k, c = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", he_normal, (k, k, 1, c))
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        return depthwise_conv(x, kernel, stride=self.stride)


def depthwise_conv(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k k 1 c"], *, stride: int = 1
) -> Float[Array, "n h2 w2 c"]:
    """Cross-correlate every channel with its own kernel, padded by k // 2.

    XLA has no fast depthwise convolution for CPUs; there it is a sum of k^2 products of
    shifted maps, which fuse.
    """
    k, _, _, c = kernel.shape
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=((k // 2, k // 2),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=c,
        )
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    products = [
        padded[:, i : i + h : stride, j : j + w : stride] * kernel[i, j][None, None]
        for i in range(k)
        for j in range(k)
    ]
    return sum(products[1:], products[0])


class FrozenBatchNorm(nn.Module):
    """y = scale (x - mean) / sqrt(var + eps) + bias, with nothing that ever learns.

    `scale` and `bias` are parameters behind a stop_gradient; `mean` and `var` live in
    the collection `batch_stats`, which no call changes. One multiply-add a value.
    """

    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Normalise the last axis with the stored statistics."""
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


class BatchNorm(nn.BatchNorm):
    """The same with statistics of the batch while the network learns, and moving ones.

    It learns where the collection `batch_stats` is mutable, as in `train_step`: then
    `mean` and `var` are those of the batch, in float32, over all of the canvas, and the
    stored ones move a tenth of the way. Everywhere else it is a FrozenBatchNorm. With
    an `axis_name` the statistics are those of all devices of that axis.
    """

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Normalise the last axis with the batch's or the stored statistics."""
        learns = self.is_mutable_collection("batch_stats")
        return super().__call__(x, use_running_average=not learns)


NORMS = ("frozen", "batch", "sync", "group")


def norm(
    kind: str, *, name: str, eps: float = 1e-5, dtype: Any = jnp.float32
) -> Callable[[Array], Array]:
    """Return the layer that `kind` names, to be called once.

    | kind | statistics | scale and bias |
    | --- | --- | --- |
    | "frozen" | stored, of weights made elsewhere: `FrozenBatchNorm` | as stored |
    | "batch" | of the images of one device: `BatchNorm` | learn |
    | "sync" | of the images of all devices on axis "batch" | learn |
    | "group" | of 32 groups of an image's channels (Wu & He 2018) | learn |
    | "none" | no layer | |

    "group" has as many groups as divide the channels, up to 32, and its own epsilon.
    """
    if kind == "frozen":
        return FrozenBatchNorm(eps, dtype, name=name)
    if kind in ("batch", "sync"):
        axis = "batch" if kind == "sync" else None
        return BatchNorm(
            momentum=0.9, epsilon=eps, dtype=dtype, axis_name=axis, name=name
        )
    if kind == "group":
        return lambda x: nn.GroupNorm(
            math.gcd(32, x.shape[-1]), dtype=dtype, name=name
        )(x)
    return lambda x: x


def check_norm(group: str, kind: str, *, none: bool = True) -> None:
    """Raise ValueError for a `kind` that `norm` does not know."""
    known = ("none", *NORMS) if none else NORMS
    if kind not in known:
        raise ValueError(f"{group}.norm={kind!r}: expected one of {known}")


def relu(x: Float[Array, "*d c"]) -> Float[Array, "*d c"]:
    """max(x, 0) and its derivative, 0 at 0, kept in memory as one array.

    XLA computes `jax.nn.relu` again wherever it is read, from the sums of all residual
    blocks before it, and keeps their terms for that. A selection it computes once, if
    those who read it see one shape: rows of c channels, as 1x1 convolutions do.
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
    """Maximum over `window` x `window` cells; the padding never wins (-inf).

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
    x32 = x.astype(jnp.float32)
    squares = jax.lax.reduce_window(
        x32 * x32, 0.0, jax.lax.add, (1, *window), (1, 1, 1, 1), "SAME"
    )
    scale = 1 + alpha / math.prod(window) * squares
    return (x32 * scale**-beta).astype(x.dtype)


def dropout(
    keys: Array, x: Float[Array, "b *d"], *, rate: float
) -> Float[Array, "b *d"]:
    """Zero values with probability `rate` and divide the others by `1 - rate`.

    One key an image, `[b]`: the draw does not depend on what else is in the batch, so
    any number of devices draws the same.
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


def box_predictors(
    x: Float[Array, "b r d"], *, num_classes: int, class_agnostic: bool, dtype: Any
) -> tuple[Float[Array, "b r c1"], Float[Array, "b r c 4"]]:
    """Add the sibling layers of Fast R-CNN Sec 2.1 to the compact module that calls.

    `class_logits` (C + 1, background first) starts as N(0, 0.01), `class_deltas` (row
    `c - 1` is class c; one row when class-agnostic) as N(0, 0.001). Float32 outputs.
    """
    rows = 1 if class_agnostic else num_classes
    small, tiny = nn.initializers.normal(0.01), nn.initializers.normal(0.001)
    logits = nn.Dense(
        num_classes + 1, kernel_init=small, dtype=dtype, name="class_logits"
    )(x)
    deltas = nn.Dense(4 * rows, kernel_init=tiny, dtype=dtype, name="class_deltas")(x)
    deltas = deltas.reshape((*x.shape[:-1], rows, 4))
    return logits.astype(jnp.float32), deltas.astype(jnp.float32)
