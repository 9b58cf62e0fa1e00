"""An image of any size in a file: resizing and padding in front of a batch of one.

    model = with_resizing(batch_model(...), config)

What has a static shape (sizes, neighbours, weights, boxes) is a program of `export`'s
functions, lowered. The sides of the image are known only when the file runs, so the
operators that read its pixels are written here.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from frcnn_jax import export
from frcnn_jax.data import images
from frcnn_jax.to_onnx.lower import lower, write
from frcnn_jax.to_onnx.simplify import unused
from frcnn_jax.to_onnx.tensors import Graph, Tensor


def with_resizing(model: onnx.ModelProto, config: Mapping[str, Any]) -> onnx.ModelProto:
    """`image` uint8 RGB `[h, w, 3]` of any h and w in, in place of a prepared batch.

    `model` is `batch_model`'s of one image, quantised or not. Out come `boxes` `[n, 4]`
    in pixels of the image given, `scores`, `classes` `[n]` and `count` `[]`: what
    `export.detect_image` finds, but for the rounding of a pixel.
    """
    graphs = _before(config), _after({x.name: x for x in model.graph.output})
    versions = dict(opset_imports=model.opset_import, ir_version=model.ir_version)
    before, after = (helper.make_model(graph, **versions) for graph in graphs)
    whole = compose.merge_models(
        compose.add_prefix(before, "resize_", rename_inputs=False),
        compose.add_prefix(model, "canvas_"),
        [("resize_pixels", "canvas_image"), ("resize_fitted", "canvas_image_size")],
    )
    given = [x.name for x in after.graph.input]
    after = compose.add_prefix(
        after, "back_", rename_inputs=False, rename_outputs=False
    )
    whole = compose.merge_models(whole, after, [(name, name) for name in given])
    whole.graph.name, whole.producer_name = model.graph.name, model.producer_name
    return whole


def _before(config) -> onnx.GraphProto:
    """From `image`: `pixels` `[1, H, W, 3]`, `fitted` `[1, 2]`, and for the boxes
    `size` `[2]`, which is the same, and `original` `[2]`."""
    data, canvas = config["data"], export.canvas_of(config)
    reduced = images.reduced_of(**data)
    graph = Graph()
    sides = graph.add("Shape", "image", start=0, end=2)
    original = Tensor((2,), np.dtype(np.int32), (2,), sides)

    def fit(original):
        sides = {k: data[k] for k in ("short_side", "max_side", "canvas")}
        size = export.fit(original, **sides)
        means = reduced and reduced != images.SMOOTH
        n = export.reduction(original, size) if means else 1
        down, across = (
            (jnp.arange(length) < side).astype(jnp.float32)
            for length, side in zip(canvas, size, strict=True)
        )
        return size, jnp.full(2, n), down[:, None, None] * across[None, :, None]

    size, n, inside = write(graph, fit, [original])
    image = graph.add("Cast", "image", to=TensorProto.FLOAT)
    if reduced == images.SMOOTH:
        pixels = _smooth(graph, image, [original, size], canvas)
    else:
        pixels = _bilinear(graph, image, [original, size, n], canvas)
    pixels = graph.add("Mul", graph.add("Round", pixels), graph.full(inside))
    found = dict(
        pixels=(graph.reshape(pixels, (1, *canvas, 3)), TensorProto.UINT8),
        fitted=(graph.reshape(graph.full(size), (1, 2)), TensorProto.INT32),
        size=(graph.full(size), TensorProto.INT32),
        original=(sides, TensorProto.INT32),
    )
    shapes = dict(pixels=(1, *canvas, 3), fitted=(1, 2), size=(2,), original=(2,))
    for name, (value, to) in found.items():
        graph.nodes.append(helper.make_node("Cast", [value], [name], name, to=to))
    unused(graph, list(found))
    return helper.make_graph(
        graph.nodes,
        "resizing",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ("h", "w", 3))],
        [
            helper.make_tensor_value_info(name, to, shapes[name])
            for name, (_, to) in found.items()
        ],
        [
            numpy_helper.from_array(value, name)
            for name, value in graph.constants.items()
        ],
    )


def _bilinear(graph, image, sizes, canvas):
    """Bilinear samples of the means of n x n pixels, as far as the canvas goes.

    The last pixel is repeated to fill the last cell.
    """

    def read(original, size, n):
        return [
            export.neighbours(original[i], size[i], canvas[i], n[i]) for i in range(2)
        ]

    original, _, n = (graph.full(t) for t in sizes)
    rest = graph.add("Mod", graph.add("Neg", original), n)
    pads = graph.add("Concat", np.zeros(3, int), rest, np.zeros(1, int), axis=0)
    cells = graph.add("Div", graph.add("Add", original, rest), n)
    pairs = (graph.reshape(x, (2, 1)) for x in (cells, n))
    sides = graph.reshape(graph.add("Concat", *pairs, axis=1), (4,))
    sides = graph.add("Concat", sides, np.array([3]), axis=0)  # h/n, n, w/n, n, 3
    image = graph.add("Reshape", graph.add("Pad", image, pads, mode="edge"), sides)
    image = graph.add("ReduceMean", image, axes=[1, 3], keepdims=0)
    image = graph.add("Round", image)
    found = [graph.full(t) for t in write(graph, read, sizes)]
    for axis, (before, after, way) in enumerate((found[:3], found[3:])):
        way = graph.reshape(way, (-1, 1, 1) if axis == 0 else (1, -1, 1))
        first, second = (
            graph.add("Gather", image, at, axis=axis) for at in (before, after)
        )
        between = graph.add("Mul", graph.add("Sub", second, first), way)
        image = graph.add("Add", first, between)
    return image


def _smooth(graph, image, sizes, canvas):
    """`data.smooth`: two products with matrices of triangles, each rounded half up."""

    def triangles(original, size):
        scale = original.astype(jnp.float32) / size
        centers = [
            (jnp.arange(length) + 0.5)[:, None] * scale[i]
            for i, length in enumerate(canvas)
        ]
        return *centers, jnp.maximum(scale, 1.0)

    *centers, widths = (graph.full(t) for t in write(graph, triangles, sizes))
    shares = []
    for axis in range(2):
        side = graph.add("Gather", graph.full(sizes[0]), np.array(axis))
        at = graph.add("Range", np.array(0), side, np.array(1))
        at = graph.add("Add", graph.add("Cast", at, to=TensorProto.FLOAT), 0.5)
        away = graph.add("Abs", graph.add("Sub", at, centers[axis]))
        width = graph.add("Gather", widths, np.array(axis))
        share = graph.add("Sub", 1.0, graph.add("Div", away, width))
        share = graph.add("Max", share, 0.0)
        total = graph.add("ReduceSum", share, np.array([1]), keepdims=1)
        shares.append(graph.add("Div", share, graph.add("Max", total, 1e-6)))

    def product(share, image):
        return graph.add(
            "Floor", graph.add("Add", graph.add("MatMul", share, image), 0.5)
        )

    image = graph.reshape(product(shares[1], image), (0, -1))  # [h, W 3]
    return graph.reshape(product(shares[0], image), (*canvas, 3))


def _after(outputs: Mapping[str, onnx.ValueInfoProto]) -> onnx.GraphProto:
    """Boxes of the canvas in pixels of the image given; no axis of a batch."""
    rows = outputs["boxes"].type.tensor_type.shape.dim[1].dim_value
    whole, real = jnp.int32, jnp.float32
    inputs = dict(
        canvas_boxes=jax.ShapeDtypeStruct((1, rows, 4), real),
        canvas_scores=jax.ShapeDtypeStruct((1, rows), real),
        canvas_classes=jax.ShapeDtypeStruct((1, rows), whole),
        canvas_count=jax.ShapeDtypeStruct((1,), whole),
        resize_size=jax.ShapeDtypeStruct((2,), whole),
        resize_original=jax.ShapeDtypeStruct((2,), whole),
    )

    def back(boxes, scores, classes, count, size, original):
        boxes = export.boxes_of_image(boxes[0], size, original)
        return boxes, scores[0], classes[0], count[0]

    return lower(back, inputs=inputs, outputs=list(outputs)).graph
