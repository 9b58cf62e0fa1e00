"""Anchors written out by hand, and their order."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.ops import anchors, boxes


def test_cell_anchors_have_their_area_and_ratio():
    sizes, ratios = (32, 100.5), (0.5, 1.0, 2.0, 3.3)
    cells = anchors.cell_anchors(sizes, ratios)
    assert cells.dtype == np.float32 and cells.shape == (8, 4)
    expected = [(size, ratio) for ratio in ratios for size in sizes]  # sizes inside
    for (x1, y1, x2, y2), (size, ratio) in zip(cells, expected, strict=True):
        assert (x1, y1) == (-x2, -y2)
        assert math.sqrt((x2 - x1) * (y2 - y1)) == pytest.approx(size, rel=1e-6)
        assert (y2 - y1) / (x2 - x1) == pytest.approx(ratio, rel=1e-6)


def test_rounded_cell_anchors_by_hand():
    # 32 over and times sqrt(1/2), 1, sqrt(2), halved: 22.6, 11.3; 16; 11.3, 22.6
    np.testing.assert_array_equal(
        anchors.rounded_cell_anchors(32),
        [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]],
    )
    # half to even: 1.5 -> 2, 2.5 -> 2
    np.testing.assert_array_equal(
        anchors.rounded_cell_anchors((3, 5), (1.0,)), [[-2, -2, 2, 2], [-2, -2, 2, 2]]
    )


def test_legacy_cell_anchors_are_those_of_the_paper():
    # First and last pixel, counted from one, as py-faster-rcnn's source prints them.
    published = jnp.array(
        [
            [-83.0, -39, 100, 56],
            [-175, -87, 192, 104],
            [-359, -183, 376, 200],
            [-55, -55, 72, 72],
            [-119, -119, 136, 136],
            [-247, -247, 264, 264],
            [-35, -79, 52, 96],
            [-79, -167, 96, 184],
            [-167, -343, 184, 360],
        ]
    )
    np.testing.assert_array_equal(
        anchors.legacy_cell_anchors(), boxes.from_inclusive(published, origin=1)
    )
    assert anchors.legacy_cell_anchors(scales=(4, 8, 16, 32)).shape == (12, 4)


def test_grid_by_hand():
    cells = np.array([[-1, -2, 1, 2], [-4, -4, 4, 4]], np.float32)
    expected = [
        [-1, -2, 1, 2],
        [-4, -4, 4, 4],
        [9, -2, 11, 2],
        [6, -4, 14, 4],
        [19, -2, 21, 2],
        [16, -4, 24, 4],
        [-1, 8, 1, 12],
        [-4, 6, 4, 14],
        [9, 8, 11, 12],
        [6, 6, 14, 14],
        [19, 8, 21, 12],
        [16, 6, 24, 14],
    ]
    ours = anchors.grid(cells, (2, 3), 10)
    np.testing.assert_array_equal(ours, expected)
    middle = anchors.grid(cells, (2, 3), 10, offset=0.5)
    np.testing.assert_array_equal(middle, ours + 5)


def test_grid_is_ordered_as_a_convolution_is():
    h, w, k = 3, 4, 2
    ours = anchors.grid(anchors.cell_anchors((8, 16), (1.0,)), (h, w), 4)
    x, y, side, _ = (np.asarray(v).reshape(h, w, k) for v in boxes.to_center(ours))
    for i, j, n in np.ndindex(h, w, k):
        assert (y[i, j, n], x[i, j, n], side[i, j, n]) == (4 * i, 4 * j, 8 * (n + 1))


def test_pyramid_joins_the_levels_small_stride_first():
    feature_sizes, strides, sizes = [(4, 6), (2, 3), (1, 2)], (8, 16, 32), (16, 32, 64)
    ours = anchors.pyramid(feature_sizes, strides, sizes, (0.5, 2.0), offset=0.5)
    levels = [
        anchors.grid(anchors.cell_anchors(s, (0.5, 2.0)), hw, d, offset=0.5)
        for hw, d, s in zip(feature_sizes, strides, sizes, strict=True)
    ]
    np.testing.assert_array_equal(ours, np.concatenate(levels))
    assert ours.shape == (2 * (24 + 6 + 2), 4) and ours.dtype == jnp.float32


def test_pyramid_takes_several_sizes_and_other_cells():
    ours = anchors.pyramid(
        [(2, 2), (1, 1)],
        (16, 32),
        ((32, 48), (64, 96)),
        cells=anchors.rounded_cell_anchors,
    )
    assert ours.shape == ((4 + 1) * 6, 4)
    np.testing.assert_array_equal(ours, np.round(ours))


def test_pyramid_is_the_same_compiled():
    def build():
        return anchors.pyramid([(13, 21), (7, 11)], (8, 16), (30, 70.5))

    np.testing.assert_array_equal(jax.jit(build)(), build())


def test_pyramid_names_levels_that_do_not_fit():
    with pytest.raises(ValueError, match="found 2, 1 and 2"):
        anchors.pyramid([(2, 2), (1, 1)], (16,), (32, 64))
