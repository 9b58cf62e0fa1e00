"""Plain Vision Transformers: of ViTDet and Segment Anything, and of DINOv2.

All blocks have the same map, of one cell a patch. In ViTDet (Li et al. 2022) and
Segment Anything (Kirillov et al. 2023) most blocks attend within windows of 14x14 cells
and a few to all cells; positions are learned vectors added to the cells, and biases of
the attention by row and column offset. DINOv2 (Oquab et al. 2023) attends to all cells
and a class token, and scales its branches.

| model | `width` | `heads` | more | parameters |
| --- | --- | --- | --- | --- |
| ViT-S | 384 | 6 | | 21.8 M |
| ViT-B (the default) | 768 | 12 | | 85.9 M |
| Segment Anything, ViT-B | 768 | 12 | `positions=64`, `norm_eps=1e-5` | 88.9 M |
| DINOv2 ViT-S/14 | 384 | 6 | `DINOV2` | 22.1 M |
| DINOv2 ViT-B/14 | 768 | 12 | `DINOV2` | 86.6 M |

Legend: `b` images, `h w` map, `n` images or windows, `t` cells of one (and the class
token, first), `a` heads, `d` channels of a head, `c = a d`.

Parameters are named after the drawing: `backbone/embed`, `backbone/positions`,
`backbone/class_token`, `backbone/class_position`, `backbone/block0/norm1`,
`.../attention/qkv`, `.../attention/row_positions`, `.../attention/column_positions`,
`.../attention/project`, `.../scale1`, `.../norm2`, `.../mlp_expand`,
`.../mlp_project`, `.../scale2`, `backbone/out_norm`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from frcnn_jax import ranges
from frcnn_jax.models import layers
from frcnn_jax.models.swin import joined, windows
from frcnn_jax.ops import extents
from frcnn_jax.ops import positions as position_ops

DINOV2: dict[str, Any] = dict(
    patch=14,
    window=0,
    positions=37,
    relative=0,
    class_token=True,
    layer_scale=1e-5,
    out_norm=True,
)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d) + B) v of all cells of an image or a window.

    With a `table`, the rows that tables have for a grid of so many cells a side, the
    bias of query (y, x) and key (y', x') is `q . R[y - y'] + q . C[x - x']` (Li et al.
    2022, MViTv2, eq. (4)); other maps have the tables interpolated. Cells beyond the
    extent are attended to by none.
    """

    heads: int
    table: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n t c"],
        size: tuple[int, int],
        extent: Int[Array, "n 2"] | None = None,
    ) -> Float[Array, "n t c"]:
        """Return the mixed cells; the last h w of the t are a map of `size` (h, w).

        `extent` in its cells.
        """
        n, t, c = x.shape
        d = c // self.heads

        def dense(features, name):
            start = layers.truncated_normal
            return nn.Dense(features, dtype=self.dtype, kernel_init=start, name=name)

        qkv = dense(3 * c, "qkv")(x.reshape((-1, c)))
        qkv = layers.reshape(qkv, (n, t, 3, self.heads, d))
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        logits = jnp.einsum("ntad,nsad->nats", q * d**-0.5, k).astype(jnp.float32)
        if self.table:
            logits = logits + self._bias(q, size, extent).astype(jnp.float32)
        if extent is not None:
            seen = layers.reshape(extents.mask(extent, size), (n, 1, 1, -1))
            token = t - size[0] * size[1]
            seen = jnp.pad(seen, ((0, 0),) * 3 + ((token, 0),), constant_values=True)
            logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits).astype(self.dtype)
        y = jnp.einsum("nats,nsad->ntad", weights, v)
        y = dense(c, "project")(layers.reshape(y, (-1, c)))
        return y.reshape((n, t, c))

    def _bias(self, q, size, extent):
        """B for queries `[n, t, a, d]`: `[n, a, t, t]`."""
        (h, w), (n, t, a, d) = size, q.shape
        shape, zeros = (2 * self.table - 1, d), nn.initializers.zeros
        q = q.reshape((n, h, w, a, d))
        found = []
        for axis, (name, side) in enumerate(
            (("row_positions", h), ("column_positions", w))
        ):
            table = jnp.asarray(self.param(name, zeros, shape), self.dtype)
            if extent is None:
                offsets = position_ops.relative(table, side)[None]
            else:
                offsets = jax.vmap(
                    lambda count, table=table, side=side: position_ops.relative(
                        table, side, count
                    )
                )(extent[:, axis])
            offsets = jnp.broadcast_to(offsets, (n, *offsets.shape[1:]))
            form = ("nhwad,nhkd->nahwk", "nhwad,nwkd->nahwk")[axis]
            found.append(jnp.einsum(form, q, offsets))
        rows, columns = found
        both = rows[..., :, None] + columns[..., None, :]
        return layers.reshape(both, (n, a, t, t))


class Block(nn.Module):
    """y = x + scale1 attention(norm1(x)); y + scale2 mlp(norm2(y)).

    With a `window` the map is cut into windows of so many cells after the norm, padded
    with zeros to whole ones, and these cells are attended to, as in the authors' code.
    """

    heads: int
    window: int
    table: int
    layer_scale: float
    norm_eps: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        size: tuple[int, int],
        extent: Int[Array, "b 2"] | None,
        factors: Float[Array, "b 2"] | None,
    ) -> Float[Array, "b t c"]:
        """Return cells of the same shape; `factors` of both branches, or None."""
        c, start = x.shape[-1], layers.truncated_normal
        first, second = (None, None) if factors is None else factors.T

        def norm(name):
            return layers.LayerNorm(self.norm_eps, dtype=self.dtype, name=name)

        def scaled(y, name):
            if not self.layer_scale:
                return y
            return layers.LayerScale(self.layer_scale, self.dtype, name=name)(y)

        attention = Attention(self.heads, self.table, self.dtype, name="attention")
        y = norm("norm1")(x)
        if self.window:
            y = self._in_windows(attention, y, size, extent)
        else:
            y = attention(y, size, extent)
        x = layers.add_branch(x, scaled(y, "scale1"), first)
        y = norm("norm2")(x).reshape((-1, c))  # two axes: the fast form, see ops
        y = nn.Dense(4 * c, dtype=self.dtype, kernel_init=start, name="mlp_expand")(y)
        y = jax.nn.gelu(y, approximate=False)
        y = nn.Dense(c, dtype=self.dtype, kernel_init=start, name="mlp_project")(y)
        return layers.add_branch(x, scaled(y.reshape(x.shape), "scale2"), second)

    def _in_windows(self, attention, x, size, extent):
        side, (b, _, c), (h, w) = self.window, x.shape, size
        x = layers.inside(x.reshape((b, h, w, c)), extent)
        x = layers.pad_to_multiple(x, side)
        full = (x.shape[1], x.shape[2])
        y = windows(x, side).reshape((-1, side * side, c))
        y = attention(y, (side, side)).reshape((-1, side, side, c))
        return joined(y, full)[:, :h, :w].reshape((b, h * w, c))


class Backbone(nn.Module):
    """A plain ViT giving `{patch: map}` of `width` channels.

    `window` cells a side, in all blocks but `global_blocks`; 0: all are global.
    `positions` is the side of the grid that positions are learned for, `relative` the
    same for the relative ones of global blocks (those of windows have the window's); 0
    is none. Another map has them interpolated (`ops.positions`). The defaults are
    ViTDet's of ImageNet weights: 224 / 16 = 14, and 1024 / 16 = 64. `layer_scale` is
    where the factors of the branches start, 0: none; `out_norm` normalises the map.
    `stochastic_depth` is the rate of the last block, of each of its branches, off
    without keys (`layers.branch_factors`). `remat`: the backward pass computes the
    inside of each block again instead of keeping it. A side that `patch` does not
    divide is padded with zeros.
    """

    depth: int = 12
    width: int = 768
    heads: int = 12
    patch: int = 16
    window: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    positions: int = 14
    relative: int = 64
    class_token: bool = False
    layer_scale: float = 0.0
    out_norm: bool = False
    norm_eps: float = 1e-6
    stochastic_depth: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        side = ranges.COUNT_OR_NONE
        ranges.check(
            "model.backbone",
            depth=(self.depth, ranges.COUNT),
            width=(self.width, ranges.COUNT),
            heads=(self.heads, ranges.COUNT),
            patch=(self.patch, ranges.COUNT),
            window=(self.window, side),
            global_blocks=(self.global_blocks, ranges.several(side, least=0)),
            positions=(self.positions, side),
            relative=(self.relative, side),
            class_token=(self.class_token, ranges.TRUTH),
            layer_scale=(self.layer_scale, ranges.NOT_NEGATIVE),
            out_norm=(self.out_norm, ranges.TRUTH),
            norm_eps=(self.norm_eps, ranges.NOT_NEGATIVE),
            stochastic_depth=(self.stochastic_depth, ranges.number(0, below=1)),
            remat=(self.remat, ranges.TRUTH),
        )
        if self.width % self.heads:
            raise ValueError(
                f"vit width={self.width}: expected a multiple of heads={self.heads}"
            )
        if self.class_token and (self.window or self.relative):
            raise ValueError(
                f"vit class_token=True with window={self.window}, "
                f"relative={self.relative}: a class token has no place in a window; "
                "set both to 0"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extent: Int[Array, "b 2"] | None = None,
        keys: Array | None = None,
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        """Return the map of stride `patch`, `ceil(h / patch)` cells high.

        What lies beyond the `extent` of an image, in pixels, changes nothing inside;
        its positions are those of its extent. `keys` `[b]` turn stochastic depth on.
        """
        x = layers.PatchConv(
            self.width,
            self.patch,
            kernel_init=layers.truncated_normal,
            dtype=self.dtype,
            name="embed",
        )(layers.inside(images, extent))
        extent = layers.cells(extent, self.patch)
        b, h, w, c = x.shape
        if side := self.positions:
            start = layers.truncated_normal
            table = self.param("positions", start, (side, side, c))
            if extent is None:
                places = position_ops.absolute(table, (h, w))[None]
            else:
                places = jax.vmap(lambda e: position_ops.absolute(table, (h, w), e))(
                    extent
                )
            x = x + places.astype(self.dtype)
        x = x.reshape((b, h * w, c))
        if self.class_token:
            x = self._with_class_token(x)
        factors = None
        if keys is not None:
            count, rate = self.depth, self.stochastic_depth
            factors = layers.branch_factors(keys, count=count, rate=rate, each=2)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for i in range(self.depth):
            window = 0 if i in self.global_blocks else self.window
            own = None if factors is None else factors[:, 2 * i : 2 * i + 2]
            x = block(
                self.heads,
                window,
                (window or self.relative) if self.relative else 0,
                self.layer_scale,
                self.norm_eps,
                self.dtype,
                name=f"block{i}",
            )(x, (h, w), extent, own)
        if self.out_norm:
            x = layers.LayerNorm(self.norm_eps, dtype=self.dtype, name="out_norm")(x)
        return {self.patch: x[:, -h * w :].reshape((b, h, w, c))}

    def _with_class_token(self, x):
        """Put the class token before the cells `[b, t, c]`."""
        c = x.shape[-1]
        token = self.param("class_token", nn.initializers.normal(1e-6), (c,))
        if self.positions:
            start = layers.truncated_normal
            token = token + self.param("class_position", start, (c,))
        # A sum, so that it is sharded as the cells are (Explicit mesh).
        token = jnp.zeros_like(x[:, :1]) + token.astype(x.dtype)[None, None]
        return jnp.concatenate([token, x], 1)
