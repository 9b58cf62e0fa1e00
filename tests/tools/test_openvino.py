"""The ONNX files in OpenVINO, detection by detection: make test-tools."""

import numpy as np
import onnx
import pytest

from frcnn_jax import to_onnx
from frcnn_jax.to_onnx import runtime
from tests.to_onnx.test_detector import detector, images

pytestmark = [
    pytest.mark.tools,
    pytest.mark.filterwarnings("ignore"),  # of packages that are not ours
]


def assert_same(file, folder, *calls):
    pytest.importorskip("openvino")
    onnx.save(file, folder / "model.onnx")
    ours = runtime.Session(folder / "model.onnx")
    theirs = runtime.OpenVINO(folder / "model.onnx")
    for arrays in calls:
        expected, found = ours(*arrays), theirs(*arrays)
        assert (expected["count"] > 3).all()
        for name in ("count", "classes"):  # in the same order
            np.testing.assert_array_equal(found[name], expected[name])
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)
        np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=2e-3)


def test_batches_find_the_same_in_the_same_order(tmp_path):
    file = to_onnx.batch_model(*detector(), batch_size=2)
    image, sizes = map(np.asarray, images(4))
    assert_same(file, tmp_path, (image[:2], sizes[:2]), (image[2:], sizes[2:]))


def test_images_of_any_size_do_too(tmp_path):
    file = to_onnx.image_model(*detector())
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (6, 8, 3), np.uint8)
    whole = cells.repeat(67, 0).repeat(52, 1)
    sizes = ((48, 64), (100, 77), (400, 310))
    calls = [(whole[:h, :w],) for h, w in sizes]
    assert_same(file, tmp_path, *calls)
