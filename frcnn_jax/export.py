"""A detector as one StableHLO program: weights, preprocessing and NMS inside.

    exported = export_image(model, variables, config)      # one image of any size
    exported = export_batch(model, variables, config)      # a batch of prepared images
    pathlib.Path("model.stablehlo").write_bytes(exported.serialize())

`jax.export.deserialize(...)` brings it back where only JAX is installed, on any of the
platforms it was made for. h w are the sides of an image as it comes, H W those of the
network's canvas, n is `max_detections`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int, UInt8

from frcnn_jax.data import images
from frcnn_jax.data.images import Canvas
from frcnn_jax.training import algorithms
from frcnn_jax.training.step import predict_step
from frcnn_jax.types import Batch, Detections

PLATFORMS = ("cpu", "cuda", "tpu")


def export_image(
    model: Any,
    variables: Any,
    config: Mapping[str, Any],
    *,
    size: tuple[int, int] | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
    """`uint8 RGB [h, w, 3]` -> `{"boxes": [n, 4], "scores", "classes", "valid": [n]}`.

    Resizing and padding are inside; boxes are in pixels of the image given. It takes
    any h and w and compiles for each new pair; with `size` (h, w) it takes only that
    one. Raises ValueError for a model that needs proposals from outside.
    """
    check(config)
    scope = export.SymbolicScope(["h >= 1", "w >= 1"])
    shape = size or export.symbolic_shape("h, w", scope=scope)
    detect = partial(detect_image, variables, model=model, config=config)
    image = jax.ShapeDtypeStruct((*shape, 3), jnp.uint8)
    return export.export(jax.jit(detect), platforms=platforms)(image)


def export_batch(
    model: Any,
    variables: Any,
    config: Mapping[str, Any],
    *,
    batch_size: int = 0,
    platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
    """`(uint8 RGB [b, H, W, 3], int32 (h, w) [b, 2])` -> detections `[b, n]`.

    The images are resized and lie at the top left of their canvas, as `data.images.
    prepare` leaves them; boxes are in pixels of the canvas. `batch_size` 0 takes any b.
    Raises ValueError for a model that needs proposals from outside.
    """
    check(config)
    b = batch_size or export.symbolic_shape("b")[0]
    detect = partial(detect_batch, variables, model=model, config=config)
    image = jax.ShapeDtypeStruct((b, *canvas_of(config), 3), jnp.uint8)
    image_size = jax.ShapeDtypeStruct((b, 2), jnp.int32)
    return export.export(jax.jit(detect), platforms=platforms)(image, image_size)


def canvas_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) that holds every canvas of the configuration."""
    heights, widths = zip(*images.canvases(config["data"]["canvas"]), strict=True)
    return max(heights), max(widths)


def resize(
    image: UInt8[Array, "h w 3"],
    size: Int[Array, "2"],
    *,
    canvas: tuple[int, int],
    reduced: bool | str = True,
) -> UInt8[Array, "H W 3"]:
    """Bilinear resizing to `size` (h', w'), at the top left of a canvas of zeros.

    What `data.images.prepare` does: with `reduced`, means of n x n pixels come first
    where both sides are n = 2, 4 or 8 times as large as wanted; then output pixel i
    samples them at `(i + 1/2) h / (n h') - 1/2`. OpenCV's weights are in fixed point
    there (1/32 pixel for n > 1), so a few levels may differ. With "smooth" the weights
    are those of `data.smooth`, in float32: a level or two may differ. `size` is a
    value, known only when it runs.
    """
    down, across = (jnp.arange(n) for n in canvas)
    inside = (down < size[0])[:, None] & (across < size[1])[None]
    if reduced == images.SMOOTH:
        pixels = _smooth(image, size, canvas)
        return jnp.where(inside[..., None], pixels, 0).astype(jnp.uint8)
    n = reduction(jnp.stack(image.shape[:2]), size) if reduced else jnp.int32(1)
    branches = [partial(_sample_means, n=k, canvas=canvas) for k in (1, 2, 4, 8)]
    chosen = sum((n >= k).astype(jnp.int32) for k in (2, 4, 8))
    pixels = jax.lax.switch(chosen, branches, image, size)
    return jnp.where(inside[..., None], jnp.round(pixels), 0).astype(jnp.uint8)


def reduction(size: Int[Array, "2"], wanted: Int[Array, "2"]) -> Int[Array, ""]:
    """`data.images.reduction` of sizes that are known only when it runs.

    >>> int(reduction(jnp.array((3000, 4000)), jnp.array((300, 400))))
    8
    """
    powers = jnp.array([1, 2, 4, 8])
    return jnp.max(jnp.where(powers <= jnp.min(size // wanted), powers, 1))


def _smooth(image, size, canvas) -> Float[Array, "H W 3"]:
    """`data.smooth.smooth` as two products with matrices of triangles."""

    def shares(length, wanted, count):
        scale = jnp.asarray(length, jnp.float32) / wanted
        centers = (jnp.arange(count) + 0.5) * scale
        away = jnp.arange(length)[None] + 0.5 - centers[:, None]
        found = jnp.maximum(1 - jnp.abs(away) / jnp.maximum(scale, 1.0), 0)
        return found / jnp.maximum(found.sum(1, keepdims=True), 1e-6)

    product = partial(jnp.einsum, precision="highest")
    across = shares(image.shape[1], size[1], canvas[1])
    down = shares(image.shape[0], size[0], canvas[0])
    wide = jnp.floor(product("hwc,Ww->hWc", image.astype(jnp.float32), across) + 0.5)
    return jnp.floor(product("hWc,Hh->HWc", wide, down) + 0.5)


def _sample_means(image, size, *, n, canvas) -> Float[Array, "H W 3"]:
    """Bilinear samples of the means of n x n pixels, as far as the canvas goes."""
    rows, down = _neighbours(image.shape[0], size[0], canvas[0], n)
    columns, across = _neighbours(image.shape[1], size[1], canvas[1], n)
    image = image.astype(jnp.float32)
    found = jnp.zeros((*canvas, 3))
    for row, weight in zip(rows, (1 - down, down), strict=True):
        band = jnp.zeros((canvas[0], *image.shape[1:]))
        for k in range(n):
            band += image[row[:, k]]
        for column, share in zip(columns, (1 - across, across), strict=True):
            cells = jnp.zeros((*canvas, 3))
            for k in range(n):
                cells += band[:, column[:, k]]
            mean = jnp.round(cells / n**2)
            found += mean * weight[:, None, None] * share[None, :, None]
    return found


def _neighbours(length, size, count, n):
    """Pixels `[count, n]` of the cells before and after each sample; its way between.

    The last pixel is repeated to fill the last cell.
    """
    *cells, way = neighbours(length, size, count, n)
    pixels = [
        jnp.minimum(cell[:, None] * n + jnp.arange(n)[None], length - 1)
        for cell in cells
    ]
    return pixels, way


def neighbours(
    length: Any, size: Int[Array, ""], count: int, n: int | Array
) -> tuple[Int[Array, "i"], Int[Array, "i"], Float[Array, "i"]]:
    """Cells of n pixels before and after each of `count` samples, and its way between.

    Sample i of `size` in `length` pixels is at `(i + 1/2) length / (n size) - 1/2`.
    `length` may be a dimension of unknown size.
    """
    last = jnp.asarray(length) - 1
    cells = last // n
    at = (jnp.arange(count) + 0.5) * ((last + 1) / (n * size)) - 0.5
    at = jnp.clip(at, 0, cells.astype(jnp.float32))
    before = jnp.floor(at).astype(jnp.int32)
    return before, jnp.minimum(before + 1, cells), at - before


def fit(
    size: Int[Array, "2"],
    *,
    short_side: int,
    max_side: int,
    canvas: Canvas,
) -> Int[Array, "2"]:
    """(h, w) after resizing an image of `size`, as `data.images.prepare` chooses it.

    `choose_canvas` and `fit` of that module, in int32: of the canvases the one that
    shrinks the image least, of those the smallest. Equal for sides whose product with
    `max_side` is below 2^30.
    """
    h, w = size
    sides = (short_side, jnp.minimum(h, w)), (max_side, jnp.maximum(h, w))

    def on(option):
        scales = (*sides, (option[0], h), (option[1], w))
        fitted = [images.rounded(size * p, q) for p, q in scales]
        return jnp.maximum(jnp.stack(fitted).min(0), 1)

    # The first of the largest: the smallest canvas of those that shrink least.
    options = sorted(images.canvases(canvas), key=lambda c: c[0] * c[1])
    found = jnp.stack([on(option) for option in options])
    return found[jnp.argmax(found[:, 0] * found[:, 1])]


def detect_image(
    variables: Any, image: Array, *, model: Any, config: Mapping[str, Any]
) -> dict[str, Array]:
    """What `export_image` exports."""
    data, canvas = config["data"], canvas_of(config)
    original = jnp.stack([jnp.asarray(side, jnp.int32) for side in image.shape[:2]])
    sides = {k: data[k] for k in ("short_side", "max_side", "canvas")}
    size = fit(original, **sides)
    reduced = images.reduced_of(**data)
    pixels = resize(image, size, canvas=canvas, reduced=reduced)
    found = detect_batch(
        variables, pixels[None], size[None], model=model, config=config
    )
    boxes = boxes_of_image(found["boxes"][0], size, original)
    return {name: x[0] for name, x in found.items()} | {"boxes": boxes}


def boxes_of_image(
    boxes: Float[Array, "n 4"], size: Int[Array, "2"], original: Int[Array, "2"]
) -> Float[Array, "n 4"]:
    """Boxes in an image of `original` (h, w), of those at its `size` on the canvas."""
    back = jnp.tile((original / size)[::-1], 2)[None]
    limit = jnp.tile(original[::-1], 2)[None]
    return jnp.clip(boxes * back, 0, limit)


def detect_batch(
    variables: Any,
    image: Array,
    image_size: Array,
    *,
    model: Any,
    config: Mapping[str, Any],
) -> dict[str, Array]:
    """What `export_batch` exports."""
    b = image.shape[0]
    batch = Batch(
        image=image,
        image_size=image_size,
        original_size=image_size,
        gt_boxes=jnp.zeros((b, 0, 4)),
        gt_classes=jnp.zeros((b, 0), jnp.int32),
        gt_valid=jnp.zeros((b, 0), bool),
        gt_ignore=jnp.zeros((b, 0), bool),
        index=jnp.zeros((b,), jnp.int32),
        valid=jnp.ones((b,), bool),
    )
    found: Detections = predict_step(variables, batch, model=model, config=config)
    return dict(found._asdict())


def check(config: Mapping[str, Any]) -> None:
    """ValueError for an algorithm that needs proposals from outside."""
    if not algorithms.of(config).PROPOSES:
        raise ValueError(
            f"algorithm={algorithms.name_in(config)!r} needs proposals from outside: "
            "only a network that proposes its own can be exported whole"
        )
