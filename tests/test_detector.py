import numpy as np
import pytest

from frcnn_jax.detector import Detector, check_image, load


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((8, 8, 3), np.float32), "dtype float32"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "for a batch pass a list"),
    ],
)
def test_wrong_image_is_described(image, message):
    with pytest.raises(ValueError, match=message):
        check_image(image)


def test_a_single_name_is_no_list_of_images():
    with pytest.raises(ValueError, match="'a.jpg': expected a list"):
        Detector.__call__(None, "a.jpg")


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: expected a run's folder"):
        load(tmp_path / "gone")
