"""Resizing inside a file: the pixels and sizes of `data.images.prepare`."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from frcnn_jax import export
from frcnn_jax.data import images
from frcnn_jax.to_onnx import resizing
from frcnn_jax.to_onnx.lower import IR_VERSION, OPSET

CASES = {
    "one canvas": dict(canvas=(80, 104)),
    "two canvases": dict(canvas=((80, 104), (104, 80))),
    "without means": dict(canvas=(80, 104), reduced=False),
    "smooth": dict(canvas=(80, 104), reduced="smooth"),
}
SIZES = [(75, 100), (100, 75), (31, 40), (149, 201), (301, 200), (650, 777), (3, 400)]


def session(data):
    model = helper.make_model(
        resizing._before(dict(data=data)),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_prepare(name):
    data = dict(short_side=75, max_side=100) | CASES[name]
    detect = session(data)
    rng = np.random.default_rng(0)
    for h, w in SIZES:
        image = images.resize(rng.integers(0, 256, (9, 11, 3), np.uint8), (h, w))
        found: list[Any] = list(detect.run(None, dict(image=image)))
        pixels, fitted, size, original = found
        expected, wanted = images.prepare(
            image, 75, 100, data["canvas"], reduced=images.reduced_of(**data)
        )
        assert tuple(size) == tuple(fitted[0]) == wanted
        assert tuple(original) == (h, w)
        whole = np.zeros((*export.canvas_of(dict(data=data)), 3), np.uint8)
        whole[: expected.shape[0], : expected.shape[1]] = expected
        apart = np.abs(pixels[0].astype(int) - whole)
        # OpenCV's weights are in fixed point, 1/32 of a pixel after means.
        assert apart.max() <= 2 and apart.mean() < 0.2
        assert not pixels[0, size[0] :].any() and not pixels[0, :, size[1] :].any()
