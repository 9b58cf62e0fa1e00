"""Does a backbone keep to the extent of an image? A check for its test.

    check_extent(Backbone(widths=(8, 16)))

A layer that mixes cells and reads beyond the extent changes the maps inside; which
layers do, and what each needs, stands in `ops.extents`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frcnn_jax.ops import extents


def check_extent(
    backbone: Any,
    *,
    size: tuple[int, int] = (37, 50),
    canvas: tuple[int, int] = (64, 80),
    tolerance: float = 1e-4,
    gradients: bool = True,
) -> None:
    """ValueError if what surrounds an image changes its maps or the gradients.

    An image of `size` (h, w) alone on a canvas of that size is compared with itself on
    a larger `canvas`, in one batch with another image and with NaN beyond its extent.
    Biases are not zero, since a zero hides a missing mask. Maps may differ by
    `tolerance` of their root mean square, gradients of a sum over cells inside by ten
    times that.
    """
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, *size, 3)).astype(np.float32)
    other = rng.normal(size=(1, *canvas, 3)).astype(np.float32)
    around = np.full((1, *canvas, 3), np.nan, np.float32)
    around[:, : size[0], : size[1]] = image
    extent = np.array([size, canvas], np.int32)
    start = jax.jit(backbone.init)(jax.random.key(0), image)
    leaves, tree = jax.tree.flatten(start)
    noise = [rng.uniform(0, 0.2, x.shape).astype(np.float32) for x in leaves]
    leaves = [x + n if x.ndim < 2 else x for x, n in zip(leaves, noise, strict=True)]
    variables = tree.unflatten(leaves)
    run = jax.jit(lambda *args: _run(backbone, gradients, size, *args))
    alone, by_alone = run(variables, image, None)
    both, by_both = run(variables, np.concatenate([around, other]), extent)
    for stride, expected in alone.items():
        h, w = expected.shape[1:3]
        found = np.asarray(both[stride][:1, :h, :w], np.float64)
        _compare(f"the map of stride {stride}", found, expected, tolerance)
    for path, expected in jax.tree_util.tree_leaves_with_path(by_alone):
        found = by_both
        for step in path:
            found = found[step.key]
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        _compare(f"the gradient of {name}", np.asarray(found), expected, 10 * tolerance)


def _run(backbone, gradients, size, variables, images, extent):
    """Maps, and gradients of the first image's cells inside by every parameter."""

    def maps(params):
        found = backbone.apply({**variables, "params": params}, images, extent)
        total = jnp.float32(0)
        for stride, x in found.items():
            h, w = (-(-side // extents.stride_of(stride)) for side in size)
            x = x[0, :h, :w]
            weight = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
            total += (x * weight).sum()
        return total, found

    if not gradients:
        return maps(variables["params"])[1], {}
    grads, found = jax.grad(maps, has_aux=True)(variables["params"])
    return found, grads


def _compare(what, found, expected, tolerance):
    expected = np.asarray(expected, np.float64)
    scale = np.sqrt((expected**2).mean()) + 1e-30
    off = np.abs(found - expected).max() / scale
    if not off <= tolerance:  # NaN is not
        raise ValueError(
            f"{what} changes with what lies beyond the extent, by {off:.2g} of its "
            f"root mean square where {tolerance:g} is rounding: a layer reads cells "
            "that are not the image's; give it inside(x, extent), see ops.extents"
        )
