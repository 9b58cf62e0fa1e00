"""Eight bits: which layers have them, and that the detector still finds its objects."""

import numpy as np
import onnxruntime
import pytest

from frcnn_jax import to_onnx
from frcnn_jax.to_onnx import quantize
from tests.to_onnx import test_detector as detectors


def feeds(b=4):
    image, sizes = detectors.images(b)
    return [dict(image=image[i : i + 1], image_size=sizes[i : i + 1]) for i in range(b)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of onnxruntime's tool
def test_layers_become_small_and_boxes_stay_float():
    model, variables, config = detectors.detector(**detectors.VARIANTS["c4"])
    whole = to_onnx.batch_model(model, variables, config)
    small = quantize.quantize(whole, feeds())
    sizes = [len(x.SerializeToString()) for x in (whole, small)]
    assert sizes[1] < 0.3 * sizes[0]
    of_input = {name: node.op_type for node in small.graph.node for name in node.output}
    kinds = {"DequantizeLinear"}
    quantised = [
        node
        for node in small.graph.node
        if {of_input.get(name) for name in node.input[:2]} == kinds
    ]
    found = [node.op_type for node in quantised]
    # The stem, four blocks of two or three, the RPN's 3x3; their sums. Not the last
    # layers of both heads.
    assert found.count("Conv") == 13 and found.count("Add") == 4
    assert "MatMul" not in found
    names = set(quantize.quantized_nodes(whole))
    layers = [n for n in whole.graph.node if n.op_type in ("Conv", "MatMul")]
    assert [n.op_type for n in layers if n.name not in names] == [
        *("Conv", "MatMul", "MatMul"),
    ]
    expected, answer = (detectors.run(x, **feeds()[1]) for x in (whole, small))
    assert answer["count"] == expected["count"]
    np.testing.assert_allclose(answer["scores"], expected["scores"], atol=0.02)
    assert onnxruntime.InferenceSession(small.SerializeToString()).get_inputs()


def test_no_image_to_calibrate_with_is_an_error():
    model, variables, config = detectors.detector()
    whole = to_onnx.batch_model(model, variables, config)
    with pytest.raises(ValueError, match="no image to calibrate with"):
        quantize.quantize(whole, [])
