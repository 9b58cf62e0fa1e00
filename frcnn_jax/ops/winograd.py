"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Legend: `n` images, `h w` map, `i`/`o` input and output channels, `t` tiles of a block.

Winograd (1980), Lavin & Gray (2016, arXiv:1509.09308): a tile of 4x4 outputs y under a
kernel k comes from the 6x6 inputs d around it by

    y = A^T [(G k G^T) * (B^T d B)] A

where the product * of 6x6 numbers is, over channels and tiles, 36 matrix products `[t,
i] @ [i, o]`. The three matrices interpolate a polynomial in six points. With 0, +-3/4,
+-3/2 and infinity the relative error (norm, 256 channels, float32) is 1.3e-6 where the
sum itself has 2e-7; with the common 0, +-1, +-2 it is 2.6e-6. If a value is far larger
than its neighbours, its rounding affects up to 5x5 outputs (7x5 where the last band
begins inside a tile) of the tiles that contain it, and an infinity becomes NaN there.

The work goes block by block, a few rows of tiles each, so that a block's 36 maps stay
in a CPU's cache. Without the barriers XLA would compute each of the 36 again from the
36 inputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from frcnn_jax.ops.primitive import varying_as
from frcnn_jax.types import Array

POINTS = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)  # and infinity
TILES = 512  # of a block, at most: 36 maps of 256 channels are 19 MB
OVERHEAD = 100  # what a block costs besides, in tiles: the kernel's maps are read again


def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T [4, 6], G [6, 3] and B^T [6, 6] of Toom and Cook's algorithm for POINTS.

    Row p of G evaluates the kernel in p, divided by the product of p's differences from
    the other points; row p of B^T has the coefficients of the polynomial with the other
    points as roots; A^T evaluates in all points. The last point is infinity.
    """
    others = [[q for q in POINTS if q != p] for p in POINTS]
    scale = [
        np.prod([p - q for q in rest]) for p, rest in zip(POINTS, others, strict=True)
    ]
    a, g, b = np.zeros((4, 6)), np.zeros((6, 3)), np.zeros((6, 6))
    a[:, :5], a[3, 5] = np.vander(POINTS, 4, increasing=True).T, 1
    g[:5], g[5, 2] = np.vander(POINTS, 3, increasing=True) / np.c_[scale], 1
    b[:5, :5], b[5] = [np.poly(rest)[::-1] for rest in others], np.poly(POINTS)[::-1]
    return a, g, b


A_T, G, B_T = (m.astype(np.float32) for m in matrices())


def pays(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]) -> bool:
    """Whether this is faster than a direct convolution: float32, 64 channels or more.

    256 tiles make up for computing the kernel's 36 maps, if at most a third of their
    cells is outside the map. Measured on two cores, of two kinds: 0.43 and 0.56 of the
    time at 256 channels and 200x336, 0.85 at 64 channels (forward), 0.4 and 0.13 to 0.7
    (gradients).
    """
    if not all(isinstance(size, int) for size in x.shape):  # exported for any batch
        return False
    n, h, w, _ = x.shape
    tiles = n * -(-h // 4) * -(-w // 4)
    enough = tiles >= 256 and 16 * tiles <= 1.5 * n * h * w
    return (
        enough
        and min(kernel.shape[2:]) >= 64
        and x.dtype == kernel.dtype == jnp.float32
    )


def conv3x3(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "3 3 i o"],
    bias: Float[Array, " o"] | None = None,
) -> Float[Array, "n h w o"]:
    """Cross-correlate x with a 3x3 kernel, stride 1, one cell of zeros around the map.

    A bias is added block by block, so that one map is made and not two. This is a
    formulation, and not to be differentiated: `ops.convolution` has its derivatives.
    The gradient of x is such a convolution.
    """
    if bias is None:
        bias = jnp.zeros(kernel.shape[-1], x.dtype)
    weights = jnp.einsum("pu,qv,uvio->qpio", G, G, kernel)
    weights = jax.lax.optimization_barrier(weights)
    blocks, cells = _cut(x.shape[:3]), _cells(x)

    def write(at, out):
        tiles = _tiles(B_T, blocks.read(cells, at, margin=1), 6)
        products = [t @ k for t, k in zip(tiles, weights, strict=True)]
        products = jax.lax.optimization_barrier(products)
        return blocks.write(
            out, at, _outputs(products, blocks) + bias[None, None, None]
        )

    # The loop writes every cell; XLA would keep an array of zeros to the end.
    out = jnp.broadcast_to(cells[0, 0], (len(cells), kernel.shape[-1]))
    out = blocks.fold(write, out)
    return out.reshape((*x.shape[:3], kernel.shape[-1]))


def kernel_gradient(
    x: Float[Array, "n h w i"], g: Float[Array, "n h w o"]
) -> Float[Array, "3 3 i o"]:
    """G^T [sum over tiles of (B^T d B)^T (A dy A^T)] G, g being dL/dy of the output."""
    blocks, cells, cells_g = _cut(x.shape[:3]), _cells(x), _cells(g)

    def add(at, total):
        d = _tiles(B_T, blocks.read(cells, at, margin=1), 6)
        dy = _tiles(A_T.T, blocks.read(cells_g, at, margin=0, once=True), 4)
        products = [a.swapaxes(1, 2) @ b for a, b in zip(d, dy, strict=True)]
        return jax.tree.map(jnp.add, total, products)

    zero = jnp.zeros((6, x.shape[-1], g.shape[-1]), x.dtype)
    total = blocks.fold(add, [varying_as(x, zero)] * 6)
    return jnp.einsum("pu,qv,qpio->uvio", G, G, jnp.stack(total))


def _cells(x):
    """One row for each cell, as 1x1 convolutions have it: XLA keeps one copy."""
    return x.reshape((-1, x.shape[-1]))


class _Blocks(NamedTuple):
    """Blocks of `images` images, or of one, by `rows` rows of `columns` tiles each.

    A block's cells follow each other in memory: it has whole images, or rows of one.
    The last group and the last band begin earlier if they would go beyond the last
    image or row. So only blocks are padded, and cells of two blocks are computed twice.
    """

    shape: tuple[int, int, int]  # n, h, w of the map
    images: int
    rows: int
    columns: int
    groups: int  # of images
    bands: int  # of rows, in an image

    def fold(self, body, carry):
        """`body(at, carry)` for each block."""
        first, count = jnp.int32(0), jnp.int32(self.groups * self.bands)
        return jax.lax.fori_loop(first, count, body, carry)

    def read(self, cells, at, *, margin, once=False):
        """The cells of a block's tiles and `margin` around; zeros outside the map.

        With `once`, cells of an earlier block are zeros too.
        """
        image, row = self._place(at)
        (_, h, w), height = self.shape, self.height

        def maps(row, height):
            start, size = (image * h + row) * w, self.images * height * w
            found = jax.lax.dynamic_slice_in_dim(cells, start, size)
            return found.reshape((self.images, height, w, -1))

        block = maps(row, height)
        if once:
            images = (
                image + np.arange(self.images, dtype=np.int32)
                >= at // self.bands * self.images
            )
            rows = (
                row + np.arange(height, dtype=np.int32)
                >= at % self.bands * 4 * self.rows
            )
            fresh = images[:, None, None, None] & rows[None, :, None, None]
            block = jnp.where(fresh, block, 0)
        top, bottom = margin, margin + 4 * self.rows - height
        if margin and self.bands > 1:
            above = jnp.where(row > 0, maps(jnp.maximum(row - 1, 0), 1), 0)
            below = jnp.where(row + height < h, maps(row + height, 1), 0)
            block = jnp.concatenate([above, block, below], axis=1)
            top, bottom = 0, 0
        sides = (margin, margin + 4 * self.columns - w)
        return jnp.pad(block, ((0, 0), (top, bottom), sides, (0, 0)))

    def write(self, cells, at, block):
        """`cells` with a block's where they belong; those off the map are left."""
        image, row = self._place(at)
        _, h, w = self.shape
        new = _cells(block[:, : self.height, :w])
        start = (image * h + row) * w
        return jax.lax.dynamic_update_slice_in_dim(cells, new, start, axis=0)

    @property
    def height(self):
        """Rows of cells of a block that are on the map."""
        return min(4 * self.rows, self.shape[1])

    def _place(self, at):
        """First image and first row of block `at`."""
        n, h, _ = self.shape
        image = jnp.minimum(at // self.bands * self.images, n - self.images)
        return image, jnp.minimum(at % self.bands * 4 * self.rows, h - self.height)


def _cut(shape) -> _Blocks:
    """Bands of a large map, or many small maps, in blocks of up to TILES tiles."""
    n, h, w = shape
    rows, columns = -(-h // 4), -(-w // 4)
    groups = -(-n // max(1, TILES // (rows * columns)))
    images = -(-n // groups)
    sizes = range(1, min(rows, max(1, TILES // columns)) + 1)
    size = min(sizes, key=lambda s: -(-rows // s) * (s * columns + OVERHEAD))
    size = rows if images > 1 else size
    return _Blocks(shape, images, size, columns, groups, -(-rows // size))


def _tiles(matrix, block, side):
    """matrix d matrix^T of the tiles d of a block, of `side` cells, 4 cells apart.

    One array `[row of the result, t, c]` for each column of the result.
    """
    rows, columns = ((s - side) // 4 + 1 for s in block.shape[1:3])
    down = jnp.stack(_sums(matrix, [block[:, k::4][:, :rows] for k in range(side)]))
    down = jax.lax.optimization_barrier(down)
    shape = (len(matrix), len(block) * rows * columns, block.shape[-1])
    across = [down[:, :, :, k::4][:, :, :, :columns] for k in range(side)]
    return _sums(matrix, [a.reshape(shape) for a in across])


def _outputs(products, blocks):
    """A^T m A of the tiles, put together to the cells of the block.

    They are concatenated in the last axis, so that neighbours are neighbours in memory.
    """
    c, width = products[0].shape[-1], 4 * blocks.columns
    beside = jnp.concatenate(_sums(A_T, products), axis=-1)
    beside = jax.lax.optimization_barrier(beside.reshape((6, -1, width * c)))
    below = jnp.concatenate(_sums(A_T, list(beside)), axis=-1)
    return below.reshape((blocks.images, 4 * blocks.rows, width, c))


def _sums(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """matrix @ parts, without what is multiplied by 0, each sum in memory once."""
    sums = []
    for row in matrix:
        terms = [a * w for w, a in zip(row, parts, strict=True) if w]
        sums.append(sum(terms[1:], terms[0]))
    return jax.lax.optimization_barrier(sums)
