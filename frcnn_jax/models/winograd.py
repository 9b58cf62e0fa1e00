"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Legend: `n` images, `h w` map, `i`/`o` input and output channels, `t` tiles of a block.

Winograd (1980), Lavin & Gray (2016, arXiv:1509.09308): a tile of 4x4 outputs y under a
kernel k comes from the 6x6 inputs d around it by

    y = A^T [(G k G^T) * (B^T d B)] A

where the product * of 6x6 numbers is, over channels and tiles, 36 matrix products
`[t, i] @ [i, o]`. The three matrices interpolate a polynomial in six points. With 0,
+-3/4, +-3/2 and infinity the relative error (norm, 256 channels, float32) is 1.3e-6
where the sum itself has 2e-7; with the common 0, +-1, +-2 it is 2.6e-6. The rounding of
a value that is far larger than its neighbours reaches the up to 5x5 outputs of the
tiles it lies in, and an infinity comes out there as NaN.

The work goes block by block, a few rows of tiles each, so that a block's 36 maps stay
in a CPU's cache. Without the barriers XLA would compute each of the 36 from the 36
inputs anew.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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

    256 tiles repay the kernel's 36 maps, if at most a third of their cells is off the
    map. Measured on two cores: 0.43 of the time at 256 channels and 200x336, 0.85 at 64
    channels (forward), 0.37 and 0.13 (gradients).
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


@jax.custom_vjp
@jax.jit
def conv3x3(
    x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "n h w o"]:
    """Cross-correlate x with a 3x3 kernel, stride 1, one cell of zeros around the map.

    Gradients are computed the same way: that of x is such a convolution, and that of
    the kernel is G^T [sum over tiles of (B^T d B)^T (A dy A^T)] G. Reverse mode only.
    A program that is exported for GPU or TPU too has the direct convolution there.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_conv3x3, default=_direct)


def _direct(x, kernel):
    axes = "NHWC", "HWIO", "NHWC"
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=axes
    )


def _conv3x3(x, kernel):
    weights = jnp.einsum("pu,qv,uvio->qpio", G, G, kernel)
    weights = jax.lax.optimization_barrier(weights)

    blocks = _cut(x.shape)
    padded = _padded(x, blocks, margin=1)

    def group(at):
        band = padded(at)

        def block(at):
            tiles = _tiles(B_T, band(at), 6)
            products = [t @ k for t, k in zip(tiles, weights, strict=True)]
            return _outputs(jax.lax.optimization_barrier(products), blocks.columns)

        return jax.lax.map(block, jnp.arange(blocks.bands))

    out = jax.lax.map(group, jnp.arange(blocks.groups))
    n, h, w, _ = x.shape
    sides = 4 * blocks.bands * blocks.rows, 4 * blocks.columns
    return out.reshape((-1, *sides, out.shape[-1]))[:n, :h, :w]


def _forward(x, kernel):
    return conv3x3(x, kernel), (x, kernel)


@jax.jit
def _backward(residuals, g):
    x, kernel = residuals
    blocks = _cut(x.shape)
    padded_x, padded_g = _padded(x, blocks, margin=1), _padded(g, blocks, margin=0)

    def add_group(total, at):
        band, band_g = padded_x(at), padded_g(at)

        def add(total, at):
            d, dy = _tiles(B_T, band(at), 6), _tiles(A_T.T, band_g(at), 4)
            products = [a.swapaxes(1, 2) @ b for a, b in zip(d, dy, strict=True)]
            return jax.tree.map(jnp.add, total, products), None

        return jax.lax.scan(add, total, jnp.arange(blocks.bands))

    zeros = [jnp.zeros((6, *kernel.shape[2:]), jnp.float32)] * 6
    total, _ = jax.lax.scan(add_group, zeros, jnp.arange(blocks.groups))
    d_kernel = jnp.einsum("pu,qv,qpio->uvio", G, G, jnp.stack(total))
    return conv3x3(g, kernel[::-1, ::-1].swapaxes(2, 3)), d_kernel


conv3x3.defvjp(_forward, _backward)


class _Blocks(NamedTuple):
    """Blocks of `images` images, or of one, by `rows` rows of `columns` tiles each."""

    images: int
    rows: int
    columns: int
    groups: int  # of images
    bands: int  # of rows, in an image


def _cut(shape) -> _Blocks:
    """Bands of a large map, or many small maps, in blocks of up to TILES tiles."""
    n, h, w, _ = shape
    rows, columns = -(-h // 4), -(-w // 4)
    groups = -(-n // max(1, TILES // (rows * columns)))
    images = -(-n // groups)
    sizes = range(1, min(rows, max(1, TILES // columns)) + 1)
    size = min(sizes, key=lambda s: -(-rows // s) * (s * columns + OVERHEAD))
    size = rows if images > 1 else size
    return _Blocks(images, size, columns, groups, -(-rows // size))


def _padded(x, blocks, *, margin):
    """A function from a group to a function from a band of it to that block's cells.

    They are those of its tiles and `margin` around; cells off the map and images beyond
    the last are zeros. One group at a time is padded, so that one copy is in memory.
    """
    n, h, w, c = x.shape
    images, rows, columns, groups, bands = blocks
    if images * groups > n:
        x = jnp.pad(x, ((0, images * groups - n), (0, 0), (0, 0), (0, 0)))
    below, right = 4 * rows * bands - h + margin, 4 * columns - w + margin
    shape = images, 4 * rows + 2 * margin, 4 * columns + 2 * margin, c

    def group(at):
        maps = jax.lax.dynamic_slice_in_dim(x, at * images, images)
        maps = jnp.pad(maps, ((0, 0), (margin, below), (margin, right), (0, 0)))
        return lambda band: jax.lax.dynamic_slice(
            maps, (0, 4 * rows * band, 0, 0), shape
        )

    return group


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


def _outputs(products, columns):
    """A^T m A of the tiles, put together to the cells of the block.

    Put side by side in the last axis, values of neighbours are neighbours in memory.
    """
    c = products[0].shape[-1]
    beside = jnp.concatenate(_sums(A_T, products), axis=-1)
    beside = jax.lax.optimization_barrier(beside.reshape((6, -1, 4 * columns * c)))
    below = jnp.concatenate(_sums(A_T, list(beside)), axis=-1)
    return below.reshape((-1, 4 * columns, c))


def _sums(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """matrix @ parts, without what is multiplied by 0, each sum in memory once."""
    sums = []
    for row in matrix:
        terms = [a * w for w, a in zip(row, parts, strict=True) if w]
        sums.append(sum(terms[1:], terms[0]))
    return jax.lax.optimization_barrier(sums)
