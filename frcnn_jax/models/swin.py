"""Swin Transformer (Liu et al. 2021, "Hierarchical Vision Transformer", first version).

A block attends within windows of 7x7 cells; every other block shifts its windows by
half of one (fig. 2). Between stages 2x2 cells become one of twice the channels.

| model | `depths` | `width` | parameters without the classifier |
| --- | --- | --- | --- |
| Swin-T | (2, 2, 6, 2) | 96 | 27.5 M |
| Swin-S | (2, 2, 18, 2) | 96 | 48.8 M |
| Swin-B | (2, 2, 18, 2) | 128 | 86.7 M |

Legend: `b` images, `h w c` map, `m` windows of all images, `t` cells of a window, `a`
heads, `d` channels of a head. A map of any size is padded with zeros to whole windows
after the norm, and these cells are attended to, as in the authors' code. Along an axis
with a single window nothing is shifted (torchvision's rule, and the authors' for the
size that a network is built for). On a canvas larger than an image's extent the windows
and shifts are those of the extent.

Parameters are named after the drawing: `backbone/embed`, `backbone/embed_norm`,
`backbone/stage1/block0/norm1`, `.../attention/qkv`, `.../attention/positions`,
`.../attention/project`, `.../norm2`, `.../mlp_expand`, `.../mlp_project`,
`backbone/stage2/merge_norm`, `backbone/stage2/merge`, ..., `backbone/out_norm4`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from frcnn_jax import ranges
from frcnn_jax.models import layers

EPS = 1e-5  # of every norm
STRIDES = (4, 8, 16, 32)
HEAD_WIDTH = 32


class PositionBias(nn.Module):
    """B of eq. (4): a number for each head and offset between cells of a window."""

    heads: int
    window: int

    @nn.compact
    def __call__(self) -> Float[Array, "a t t"]:
        """Return what is added to the logits; its parameter `bias` is the table."""
        side = 2 * self.window - 1
        shape = (side * side, self.heads)
        table = self.param("bias", layers.truncated_normal, shape)
        return table[offsets(self.window)].transpose((2, 0, 1))


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d) + B) v within windows, eq. (4), and a last product.

    With `shifted` the windows begin half a window further down and right; those that
    the map's border cuts are joined, and a mask keeps their parts apart (fig. 4).
    Whether an image has a shift, and where its last window ends, follows from its
    extent.
    """

    window: int
    shifted: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Return a map of the same shape; `extent` in its cells."""
        (_, h, w, c), window = x.shape, self.window
        a, t = c // HEAD_WIDTH, window * window
        x = layers.pad_to_multiple(layers.inside(x, extent), window)
        b, full_h, full_w, _ = x.shape
        half = window // 2 if self.shifted else 0
        down, right = (half if side > window else 0 for side in (full_h, full_w))
        if extent is not None:
            extent = layers.cells(extent, window) * window  # whole windows
        x = shifted(x, (-down, -right), extent, window)
        cells = windows(x, window)
        qkv = nn.Dense(
            3 * c,
            dtype=self.dtype,
            kernel_init=layers.truncated_normal,
            name="qkv",
        )(cells.reshape((-1, c)))
        qkv = layers.reshape(qkv, (-1, t, 3, a, HEAD_WIDTH))
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        logits = jnp.einsum("mtad,msad->mats", q * HEAD_WIDTH**-0.5, k)
        logits = logits.astype(jnp.float32)
        logits = logits + PositionBias(a, window, name="positions")()[None]
        if down or right:
            mask = together((full_h, full_w), (down, right), window, extent)
            logits = logits.reshape((b, -1, a, t, t))
            logits = jnp.where(mask[:, :, None], logits, -jnp.inf)
            logits = logits.reshape((-1, a, t, t))
        weights = jax.nn.softmax(logits).astype(self.dtype)
        y = jnp.einsum("mats,msad->mtad", weights, v)
        y = layers.reshape(y, (-1, c))
        y = nn.Dense(
            c, dtype=self.dtype, kernel_init=layers.truncated_normal, name="project"
        )(y)
        y = joined(y.reshape((-1, window, window, c)), (full_h, full_w))
        return shifted(y, (down, right), extent, window)[:, :h, :w]


class Block(nn.Module):
    """y = x + attention(norm1(x)); y + project(gelu(expand(norm2(y)))): eq. (3)."""

    window: int
    shifted: bool
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        extent: Int[Array, "b 2"] | None,
        factors: Float[Array, "b 2"] | None,
    ) -> Float[Array, "b h w c"]:
        """Return a map of the same shape; `factors` of both branches, or None.

        `extent` in cells of `x`.
        """
        first, second = (None, None) if factors is None else factors.T
        c, start = x.shape[-1], layers.truncated_normal
        attention = Attention(self.window, self.shifted, self.dtype, name="attention")
        norm1 = layers.LayerNorm(EPS, dtype=self.dtype, name="norm1")
        norm2 = layers.LayerNorm(EPS, dtype=self.dtype, name="norm2")
        x = layers.add_branch(x, attention(norm1(x), extent), first)
        y = norm2(x).reshape((-1, c))  # two axes: the fast form of a product, see ops
        y = nn.Dense(4 * c, dtype=self.dtype, kernel_init=start, name="mlp_expand")(y)
        y = jax.nn.gelu(y, approximate=False)
        y = nn.Dense(c, dtype=self.dtype, kernel_init=start, name="mlp_project")(y)
        return layers.add_branch(x, y.reshape(x.shape), second)


class Stage(nn.Module):
    """`depth` blocks, every other one shifted; `merges`: first 2x2 cells become one."""

    depth: int
    window: int
    merges: bool
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        extent: Int[Array, "b 2"] | None,
        factors: Float[Array, "b n"] | None,
    ) -> Float[Array, "b h2 w2 c2"]:
        """Return the stage's map, `ceil(h / 2)` cells high where it merges.

        `extent` in cells of `x`.
        """
        if self.merges:
            x, extent = merged(layers.inside(x, extent)), layers.cells(extent, 2)
            x = layers.LayerNorm(EPS, dtype=self.dtype, name="merge_norm")(x)
            reduce = nn.Dense(
                x.shape[-1] // 2,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=layers.truncated_normal,
                name="merge",
            )
            x = reduce(x.reshape((-1, x.shape[-1]))).reshape((*x.shape[:3], -1))
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            own = None if factors is None else factors[:, 2 * i : 2 * i + 2]
            layer = block(self.window, i % 2 == 1, self.dtype, name=f"block{i}")
            x = layer(x, extent, own)
        return x


class Backbone(nn.Module):
    """Swin giving `{4: .., 8: .., 16: .., 32: ..}` of 1, 2, 4, 8 `width` channels.

    `width` is a multiple of 32, the channels of a head. Only the maps of `out_strides`
    are returned, and no stage beyond the last of them exists. `out_norm` normalises
    each of them once more, as the authors' detectors do; a classifier's file lacks
    these norms, and they keep their initial values. `window` is that of the weights (7,
    or 12 for those of 384 pixels). `stochastic_depth` is the rate of the last block, of
    each of its branches, off without keys (`layers.branch_factors`). `remat`: the
    backward pass computes the inside of each block again instead of keeping it.
    """

    depths: tuple[int, ...] = (2, 2, 6, 2)
    width: int = 96
    window: int = 7
    out_strides: tuple[int, ...] = STRIDES
    out_norm: bool = True
    stochastic_depth: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.backbone",
            depths=(self.depths, ranges.several(ranges.COUNT, 4)),
            width=(self.width, ranges.COUNT),
            window=(self.window, ranges.COUNT),
            out_norm=(self.out_norm, ranges.TRUTH),
            stochastic_depth=(self.stochastic_depth, ranges.number(0, below=1)),
            remat=(self.remat, ranges.TRUTH),
        )
        if self.width % HEAD_WIDTH:
            raise ValueError(
                f"swin width={self.width}: expected a multiple of {HEAD_WIDTH}, the "
                "channels of a head"
            )
        if not self.out_strides or not set(self.out_strides) <= set(STRIDES):
            raise ValueError(
                f"swin out_strides={self.out_strides}: expected some of {STRIDES}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extent: Int[Array, "b 2"] | None = None,
        keys: Array | None = None,
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        """Return the maps of `out_strides`, `ceil(h / stride)` cells high.

        What lies beyond the `extent` of an image, in pixels, changes nothing inside.
        `keys` `[b]` turn stochastic depth on.
        """
        embed = layers.PatchConv(
            self.width,
            4,
            kernel_init=layers.truncated_normal,
            dtype=self.dtype,
            name="embed",
        )
        x = embed(layers.inside(images, extent))
        x = layers.LayerNorm(EPS, dtype=self.dtype, name="embed_norm")(x)
        factors, features, now = None, {}, layers.cells(extent, 4)
        if keys is not None:
            count, rate = sum(self.depths), self.stochastic_depth
            factors = layers.branch_factors(keys, count=count, rate=rate, each=2)
        for i, stride in enumerate(STRIDES):
            if stride > max(self.out_strides):
                break
            stage = Stage(
                depth=self.depths[i],
                window=self.window,
                merges=i > 0,
                remat=self.remat,
                dtype=self.dtype,
                name=f"stage{i + 1}",
            )
            at = 2 * sum(self.depths[:i])
            x = stage(x, now, factors if factors is None else factors[:, at:])
            now = layers.cells(extent, stride)
            if stride in self.out_strides:
                norm = layers.LayerNorm(EPS, dtype=self.dtype, name=f"out_norm{stride}")
                features[stride] = norm(x) if self.out_norm else x
        return features


def windows(x: Float[Array, "b h w c"], side: int) -> Float[Array, "m s s c"]:
    """Cut maps of whole windows, image by image and row by row."""
    b, h, w, c = x.shape
    x = layers.reshape(x, (b, h // side, side, w // side, side, c))
    return x.transpose((0, 1, 3, 2, 4, 5)).reshape((-1, side, side, c))


def joined(
    cells: Float[Array, "m s s c"], size: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """Undo `windows` for maps of `size` (h, w)."""
    (h, w), (_, side, _, c) = size, cells.shape
    x = cells.reshape((-1, h // side, w // side, side, side, c))
    return layers.reshape(x.transpose((0, 1, 3, 2, 4, 5)), (-1, h, w, c))


def merged(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c4"]:
    """Put the channels of 2x2 cells side by side: left above, left below, then right.

    An odd side is padded with zeros at the bottom or the right.
    """
    x = layers.pad_to_multiple(x, 2)
    b, h, w, c = x.shape
    x = layers.reshape(x, (b, h // 2, 2, w // 2, 2, c)).transpose((0, 1, 3, 4, 2, 5))
    return x.reshape((b, h // 2, w // 2, 4 * c))


def offsets(window: int) -> np.ndarray:
    """For cells s and t of a window the row `[t, s]` of the table of their offset.

    >>> offsets(2)[0].tolist()  # from the first cell to itself, right, below, both
    [4, 3, 1, 0]
    """
    at = np.stack(np.divmod(np.arange(window * window), window), -1)
    dy, dx = np.moveaxis(at[:, None] - at[None] + window - 1, -1, 0)
    return dy * (2 * window - 1) + dx


def shifted(
    x: Float[Array, "b h w c"],
    shift: tuple[int, int],
    extent: Int[Array, "b 2"] | None,
    window: int,
) -> Float[Array, "b h w c"]:
    """Roll the maps by `shift` (down, right), but for axes with one window inside."""
    for axis, by in enumerate(shift):
        if by:
            rolled = jnp.roll(x, by, axis + 1)
            if extent is not None:
                several = extent[:, axis] > window
                rolled = jnp.where(several[:, None, None, None], rolled, x)
            x = rolled
    return x


def together(
    size: tuple[int, int],
    shift: tuple[int, int],
    window: int,
    extent: Int[Array, "b 2"] | None = None,
) -> Bool[Array, "b windows t t"]:
    """Which cells of a window see each other, after the shift; b is 1 without extents.

    The last rows came from the opposite border, and those beyond the extent (of whole
    windows) are not the image's: both see only their like. Columns are the same.
    """
    if extent is None:
        extent = jnp.array([size], jnp.int32)
    parts = []
    for axis, (side, by) in enumerate(zip(size, shift, strict=True)):
        length = extent[:, axis, None]
        by = jnp.where(length > window, by, 0)  # an axis with one window stays
        place = jnp.arange(side, dtype=jnp.int32)[None]
        beyond = (place >= length - by) & (place < side - by)
        parts.append(jnp.where(place >= side - by, 1, 0) + jnp.where(beyond, 2, 0))
    region = 4 * parts[0][:, :, None] + parts[1][:, None]
    b, (h, w) = region.shape[0], (side // window for side in size)
    region = layers.reshape(region, (b, h, window, w, window)).swapaxes(2, 3)
    region = layers.reshape(region, (b, h * w, window * window))
    return region[..., :, None] == region[..., None, :]
