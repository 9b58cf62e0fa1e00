"""What formats mean by four numbers: worked by hand, and back again."""

import numpy as np
import pytest

from frcnn_jax.data import conventions

SIZE = (40, 80)  # high, wide
BOX = [[8.0, 10.0, 24.0, 30.0]]
WRITTEN = {
    "xyxy": [8, 10, 24, 30],
    "xywh": [8, 10, 16, 20],
    "inclusive": [8, 10, 23, 29],
    "voc": [9, 11, 24, 30],
    "xyxy_normalized": [0.1, 0.25, 0.3, 0.75],
    "yxyx_normalized": [0.25, 0.1, 0.75, 0.3],
    "center_normalized": [0.2, 0.5, 0.2, 0.5],
}


def test_every_convention_has_its_line():
    assert set(WRITTEN) == set(conventions.CONVENTIONS)


@pytest.mark.parametrize("convention", WRITTEN)
def test_by_hand(convention):
    written = np.array([WRITTEN[convention]], np.float64)
    read = conventions.to_xyxy(written, convention, SIZE)
    np.testing.assert_allclose(read, BOX, rtol=1e-12)
    back = conventions.from_xyxy(np.array(BOX), convention, SIZE)
    np.testing.assert_allclose(back, written, rtol=1e-12)


@pytest.mark.parametrize("convention", WRITTEN)
def test_round_trip(rng, convention):
    low = rng.uniform(0, 50, (20, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 30, (20, 2))], axis=1)
    before = boxes.copy()
    for box_type in (np.float64, np.float32):
        written = conventions.from_xyxy(boxes.astype(box_type), convention, SIZE)
        assert written.dtype == box_type
        back = conventions.to_xyxy(written, convention, SIZE)
        np.testing.assert_allclose(back, boxes, atol=1e-5)
    np.testing.assert_array_equal(boxes, before)
    none = np.zeros((0, 4))
    assert conventions.to_xyxy(none, convention, SIZE).shape == (0, 4)


def test_what_cannot_be_converted():
    with pytest.raises(ValueError, match="convention='yolo': expected one of"):
        conventions.to_xyxy(np.zeros((1, 4)), "yolo")
    with pytest.raises(ValueError, match="'yxyx_normalized' needs the size"):
        conventions.from_xyxy(np.zeros((1, 4)), "yxyx_normalized")
