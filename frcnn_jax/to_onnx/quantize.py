"""Eight-bit whole numbers in place of floats, by onnxruntime's static quantisation.

    small = quantize(model, feeds)      # feeds: inputs of images like those to come

Weights are symmetric int8 with a scale a channel, what lies between layers uint8 with a
scale of the range that it has over `feeds`. Convolutions, matrix products, the sums of
residual blocks and pooling are quantised. Normalisation, the layers that give scores
and deltas, and all that follows from these (boxes, NMS, RoIAlign) stay in float32.
"""

import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from frcnn_jax import extras

# What chooses among the values of a last layer: no layer reads on from here.
_CHOICES = {"GatherND", "NonMaxSuppression", "TopK"}
_LAYERS = {"Conv", "MatMul"}
_OF_A_NETWORK = {*_LAYERS, "HardSwish", "MaxPool", "Relu", "Resize", "RoiAlign"}


def quantize(
    model: onnx.ModelProto, feeds: Iterable[Mapping[str, np.ndarray]]
) -> onnx.ModelProto:
    """The model with quantised layers; `feeds` are read once.

    A feed is the inputs of one call by name, as `runtime.Calibration` gives them.
    Raises ValueError where there is no feed, ImportError without onnxruntime.
    """
    extras.need("onnx", "onnxruntime")
    from onnxruntime import quantization

    reader = _reader(quantization.CalibrationDataReader, feeds)
    with tempfile.TemporaryDirectory() as folder:
        whole, small = (pathlib.Path(folder) / name for name in ("whole", "small"))
        onnx.save(model, str(whole))
        quantization.quantize_static(
            str(whole),
            str(small),
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=quantized_nodes(model),
            op_types_to_quantize=["Add", "Conv", "MatMul", "MaxPool"],
        )
        found = onnx.load(str(small))
    onnx.checker.check_model(found)
    return found


def quantized_nodes(model: onnx.ModelProto) -> list[str]:
    """The nodes that `quantize` changes, by name."""
    constants = {x.name for x in model.graph.initializer}
    read_on: set[str] = set()  # values that a later layer depends on as a map
    inner = []
    for node in reversed(model.graph.node):
        if node.op_type in _LAYERS and read_on & set(node.output):
            inner.append(node.name)
        if node.op_type in (*_LAYERS, "RoiAlign"):
            read_on.add(node.input[0])
        elif node.op_type not in _CHOICES and read_on & set(node.output):
            read_on |= set(node.input)

    found = []
    for node in model.graph.node:
        if node.name in inner:
            found.append(node.name)
        elif node.op_type == "MaxPool":
            found.append(node.name)
        elif node.op_type == "Add" and not constants & set(node.input):
            # The sum of two maps; sums of coordinates lead to no layer.
            of_maps = [_producer(model, x) for x in node.input]
            if all(x in _OF_A_NETWORK for x in of_maps):
                found.append(node.name)
    return found


def _producer(model, name) -> str:
    for node in model.graph.node:
        if name in node.output:
            return node.op_type
    return ""


def _reader(base: Any, feeds: Iterable[Mapping[str, np.ndarray]]) -> Any:
    iterator: Iterator = iter(feeds)
    first = next(iterator, None)
    if first is None:
        raise ValueError("quantize: there is no image to calibrate with")
    waiting: list = [first]

    class Reader(base):
        def get_next(self):
            return waiting.pop() if waiting else next(iterator, None)

    return Reader()
