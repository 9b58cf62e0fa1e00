"""Pillow's bilinear resizing, and Detectron2's sizes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import export
from frcnn_jax.data import images
from frcnn_jax.data.smooth import smooth

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "resize.npz")
COUNT = len(GOLDENS.files) // 2


@pytest.mark.parametrize("i", range(COUNT))
def test_every_pixel_is_pillow_s(i):
    image, expected = GOLDENS[f"image{i}"], GOLDENS[f"resized{i}"]
    np.testing.assert_array_equal(smooth(image, expected.shape[:2]), expected)
    reduced = images.shrink(image, expected.shape[:2], reduced="smooth")
    np.testing.assert_array_equal(reduced, expected)


def test_a_slow_loop_agrees(rng):
    """Weights of a triangle in float64, each pass rounded."""

    def one(line, wanted):
        scale = len(line) / wanted
        out = []
        for i in range(wanted):
            center, s = (i + 0.5) * scale, max(1.0, scale)
            w = [max(0.0, 1 - abs(x + 0.5 - center) / s) for x in range(len(line))]
            out.append(np.floor(np.dot(w, line) / sum(w) + 0.5))
        return np.array(out)

    image = rng.integers(0, 256, (13, 9, 3), np.uint8)
    for h, w in ((5, 4), (20, 14), (13, 3)):
        wide = np.apply_along_axis(one, 1, image.astype(float), w)
        expected = np.apply_along_axis(one, 0, wide, h)
        # Fixed point and float64 may fall on either side of one half, which is common
        # where the weights have small denominators.
        assert np.abs(smooth(image, (h, w)) - expected).max() <= 1
        assert (smooth(image, (h, w)) == expected).mean() > 0.9


def test_the_exported_resizing_is_within_two_levels():
    resize = jax.jit(export.resize, static_argnames=("canvas", "reduced"))
    for i in (0, 1, 2):
        image, expected = GOLDENS[f"image{i}"], GOLDENS[f"resized{i}"]
        h, w = expected.shape[:2]
        found = resize(image, jnp.array([h, w]), canvas=(96, 128), reduced="smooth")
        apart = np.abs(np.int32(found[:h, :w]) - expected)
        assert apart.max() <= 2 and (apart == 0).mean() > 0.9  # halves, either way
        assert not found[h:].any() and not found[:, w:].any()


def detectron2_size(h, w, short, longest):
    """`ResizeShortestEdge.get_output_shape`, in its floats."""
    scale = short * 1.0 / min(h, w)
    newh, neww = (short, scale * w) if h < w else (scale * h, short)
    if max(newh, neww) > longest:
        scale = longest * 1.0 / max(newh, neww)
        newh, neww = newh * scale, neww * scale
    return int(newh + 0.5), int(neww + 0.5)


def test_sizes_are_detectron2_s():
    """Exact halves, which its floats may miss, are the only ones that may differ."""
    canvas = (4000, 4000)
    sizes = [(h, w) for h in range(200, 700, 7) for w in range(200, 701, 4)]
    apart = []
    for h, w in sizes:
        ours = images.fit((h, w), 800, 1333, canvas)
        if ours != detectron2_size(h, w, 800, 1333):
            apart.append((h, w))
    assert len(apart) <= len(sizes) / 1000, apart
    assert images.fit((480, 333), 800, 1333, canvas) == (1153, 800)
    # 800 * 481 / 320 = 1202.5
    assert images.fit((481, 320), 800, 1333, canvas) == (1203, 800)
