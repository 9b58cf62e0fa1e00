"""What is left out of a graph once it is written: unused nodes and fixed norms."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from frcnn_jax.to_onnx.tensors import Graph


def simplify(graph: Graph, outputs: Sequence[str]) -> None:
    """Drop what no output needs, and fold a scale and an offset into convolutions."""
    unused(graph, outputs)
    fold_scales(graph)
    unused(graph, outputs)


def unused(graph: Graph, outputs: Sequence[str]) -> None:
    """Drop nodes and constants that no output needs."""
    needed, kept = set(outputs), []
    for node in reversed(graph.nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    graph.nodes = kept[::-1]
    graph.constants = {k: v for k, v in graph.constants.items() if k in needed}


def fold_scales(graph: Graph) -> None:
    """Conv, times a number a channel, plus a number a channel: one Conv.

    (x * k) m + a = x * (k m) + a, the norm that does not learn, in float32.
    """
    uses = Counter(name for node in graph.nodes for name in node.input)
    of_output = {node.output[0]: node for node in graph.nodes}

    for node in graph.nodes:
        if node.op_type not in ("Mul", "Add"):
            continue
        for x, by in (node.input, node.input[::-1]):
            conv, value = of_output.get(x), graph.constants.get(by)
            if conv is None or conv.op_type != "Conv" or uses[x] != 1 or value is None:
                continue
            kernel = graph.constants.get(conv.input[1])
            if kernel is None or value.shape != (1, len(kernel), 1, 1):
                continue
            _fold(graph, node.op_type, conv, kernel, value.reshape(-1))
            conv.output[0] = node.output[0]  # the scale's name is the result's
            of_output[node.output[0]] = conv
            node.op_type, node.output[0] = "Identity", f"folded_{node.output[0]}"
            break
    _in_order(graph)


def _fold(graph, op, conv, kernel, value):
    bias = np.zeros(len(kernel), np.float32)
    if len(conv.input) > 2:
        bias = graph.constants[conv.input[2]]
    if op == "Mul":
        kernel, bias = kernel * value[:, None, None, None], bias * value
        conv.input[1] = f"{conv.name}_kernel"
        graph.constants[conv.input[1]] = kernel
    else:
        bias = bias + value
    del conv.input[2:]
    conv.input.append(f"{conv.name}_bias")
    graph.constants[conv.input[2]] = bias


def _in_order(graph):
    """Drop the emptied nodes; a convolution stands before what reads it already."""
    graph.nodes = [n for n in graph.nodes if not n.output[0].startswith("folded_")]
