"""What each primitive of a program becomes: convolutions, pooling, matrix products."""

import math

import numpy as np

from frcnn_jax.to_onnx.shapes import materialised, out, reshape
from frcnn_jax.to_onnx.tensors import Graph, Tensor, known


def convolution(
    graph: Graph,
    x: Tensor,
    kernel: Tensor,
    shape,
    *,
    pads,
    stride=(1, 1),
    dilation=(1, 1),
    groups=1,
    bias: Tensor | None = None,
) -> Tensor:
    """Conv of a map `[n, h, w, i]` with a kernel HWIO."""
    if kernel.constant:
        value = np.broadcast_to(kernel.value, kernel.shape)
        weights = graph.constant(value.transpose((3, 2, 0, 1)))
    else:
        weights = graph.add("Transpose", graph.full(kernel), perm=[3, 2, 0, 1])
    inputs = [graph.channels_first(x), weights]
    if bias is not None:
        inputs.append(graph.full(bias))
    name = graph.add(
        "Conv",
        *inputs,
        kernel_shape=list(kernel.shape[:2]),
        pads=[int(p[0]) for p in pads] + [int(p[1]) for p in pads],
        strides=list(map(int, stride)),
        dilations=list(map(int, dilation)),
        group=int(groups),
    )
    return Tensor(shape, x.dtype, shape, name, image=shape)


def _general(graph, eqn, inputs):
    p = eqn.params
    d = p["dimension_numbers"]
    nhwc = (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)
    plain = set(p["lhs_dilation"]) == {1} and p["batch_group_count"] == 1
    if tuple(map(tuple, (d.lhs_spec, d.rhs_spec, d.out_spec))) != nhwc or not plain:
        raise NotImplementedError("a convolution that is not NHWC by HWIO")
    x, kernel = inputs
    return convolution(
        graph,
        x,
        kernel,
        out(eqn).shape,
        pads=p["padding"],
        stride=p["window_strides"],
        dilation=p["rhs_dilation"],
        groups=p["feature_group_count"],
    )


def _ours(graph, eqn, inputs):
    """`ops.convolution`'s own primitives, whatever a platform would make of them."""
    x, kernel, *bias = inputs
    half = kernel.shape[0] // 2
    stride = eqn.params["stride"]
    depthwise = eqn.params["kind"] == "depthwise"
    return convolution(
        graph,
        x,
        kernel,
        out(eqn).shape,
        pads=((half, half), (half, half)),
        stride=(stride, stride),
        groups=kernel.shape[3] if depthwise else 1,
        bias=bias[0] if bias else None,
    )


def _window(graph, eqn, inputs):
    (x, *_), p = inputs, eqn.params
    pool = eqn.primitive.name == "reduce_window_max"
    (n, h, w, c), pads = p["window_dimensions"], p["padding"]
    strides, outside = p["window_strides"], (*pads[0], *pads[3])
    dilated = {*p["base_dilation"], *p["window_dilation"]} != {1}
    if (n, c) != (1, 1) or any(outside) or dilated:
        raise NotImplementedError("a window over channels")
    common = dict(
        kernel_shape=[h, w],
        pads=[pads[1][0], pads[2][0], pads[1][1], pads[2][1]],
        strides=list(map(int, strides[1:3])),
    )
    name = graph.channels_first(x)
    if pool:
        name = graph.add("MaxPool", name, **common)
    else:  # the sum is the mean over the whole window times its cells
        name = graph.add("AveragePool", name, count_include_pad=1, **common)
        name = graph.add("Mul", name, np.array(h * w, np.float32))
    shape = out(eqn).shape
    return Tensor(shape, x.dtype, shape, name, image=shape)


def _dot_general(graph, eqn, inputs):
    a, b = inputs
    (ca, cb), (ba, bb) = eqn.params["dimension_numbers"]
    ca, cb, ba, bb = (tuple(map(int, axes)) for axes in (ca, cb, ba, bb))
    shape = out(eqn).shape
    dense = not ba and ca == (len(a.shape) - 1,) and cb == (0,) and len(b.shape) == 2
    if dense and b.constant and a.image is not None:
        found = _dense_of_map(graph, a, b, shape)
        if found is not None:
            return found
    if dense:
        name = graph.add("MatMul", graph.full(a), graph.full(b))
        return Tensor(shape, a.dtype, shape, name)
    free_a = tuple(i for i in range(len(a.shape)) if i not in (*ca, *ba))
    free_b = tuple(i for i in range(len(b.shape)) if i not in (*cb, *bb))
    batch = tuple(a.shape[i] for i in ba)

    def arranged(t, perm, last):
        if perm != tuple(range(len(perm))):
            name = graph.add("Transpose", graph.full(t), perm=list(perm))
        else:
            name = graph.full(t)
        return graph.reshape(name, (*batch, *last))

    def size(t, axes):
        return math.prod(t.shape[i] for i in axes)

    left = arranged(a, (*ba, *free_a, *ca), (size(a, free_a), size(a, ca)))
    right = arranged(b, (*bb, *cb, *free_b), (size(b, cb), size(b, free_b)))
    name = graph.reshape(graph.add("MatMul", left, right), shape)
    return Tensor(shape, a.dtype, shape, name)


def _dense_of_map(graph, a, b, shape):
    """A product with maps as they lie: their rows of the matrix change places."""
    n, h, w, c = a.image
    matrix = np.broadcast_to(b.value, b.shape)
    if a.shape[-1] == h * w * c and math.prod(a.shape[:-1]) == n:
        turned = matrix.reshape((h, w, c, -1)).transpose((2, 0, 1, 3))
        left = graph.reshape(a.name, (*a.shape[:-1], h * w * c))
        name = graph.add("MatMul", left, turned.reshape((h * w * c, -1)))
        return Tensor(shape, a.dtype, shape, name)
    if a.shape[-1] == c:
        kernel = known(matrix[None, None])
        image = (n, h, w, shape[-1])
        x = Tensor(a.image, a.dtype, a.image, a.name, image=a.image)
        found = convolution(graph, x, kernel, image, pads=((0, 0), (0, 0)))
        return reshape(graph, found, shape)
    return None


def _activation(op, **attributes):
    def rule(graph, eqn, inputs):
        (x,) = inputs
        if x.image is None:
            x = materialised(graph, x)
        return graph.elementwise(op, [x], x.dtype, **attributes)

    return rule


RULES = {
    "conv_general_dilated": _general,
    "conv": _ours,
    "conv_bias": _ours,
    "reduce_window_max": _window,
    "reduce_window_sum": _window,
    "dot_general": _dot_general,
}
# Functions of `jax.nn` that are one operator.
FUNCTIONS = {
    "hard_silu": _activation("HardSwish"),
    "hard_sigmoid": _activation("HardSigmoid", alpha=1 / 6, beta=0.5),
}
