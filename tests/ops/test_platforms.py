"""Each operation's formulation is that of the platform a program is lowered for.

Exports for one platform are made on this CPU and read: they have that platform's
formulation and no other, forward and backward.
"""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from frcnn_jax.models import rpn_head
from frcnn_jax.ops import (
    convolution,
    matching,
    modes,
    roi_align,
    roi_pool,
    roi_sums,
)

PLATFORMS = ("cpu", "cuda", "tpu")


def operations(function, platform, *shapes):
    """How often each operation of StableHLO stands in an export for `platform`."""
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    exported = jax.export.export(jax.jit(function), platforms=(platform,))(*args)
    text = exported.mlir_module()
    # Functions stand once and may be called often.
    return Counter(re.findall(r"(?<!#)stablehlo\.(\w+)", text))


def backward(function, argument=0):
    """The gradient by one argument: a function of the cotangent and the arguments."""

    def pull(g, *args):
        def of_one(x):
            return function(*args[:argument], x, *args[argument + 1 :])

        return jax.vjp(of_one, args[argument])[1](g)

    return pull


ROIS = (24, 4)
align = partial(roi_align.roi_align, stride=8)
adaptive = partial(roi_align.roi_align, stride=8, sampling_ratio=0)
pool = partial(roi_pool.roi_pool, stride=8)
conv = partial(convolution.conv, padding=1)
strided = partial(convolution.conv, padding=1, stride=2)
depthwise = convolution.depthwise_conv
X, K, Y = (1, 64, 64, 64), (3, 3, 64, 64), (1, 64, 64, 64)  # enough for Winograd
WIDE, WIDE_K, WIDE_Y = (1, 8, 8, 128), (3, 3, 128, 96), (1, 4, 4, 96)
ONE_K, ONE_Y = (1, 1, 128, 96), (1, 8, 8, 96)
MAP, POOLED = (20, 30, 8), (24, 7, 7, 8)
DEPTH_K = (3, 3, 1, 128)
LARGE, LARGE_K = (1, 9, 8, 8), (7, 7, 1, 8)
ONE_CONV = {"convolution": 1, "while": 0}

CASES = {  # function, shapes, what a CPU has, what others have; None: some
    "1x1": (convolution.conv, (WIDE, ONE_K), dict(convolution=0, dot_general=1),
        dict(convolution=1, dot_general=0)),
    "1x1, of x": (backward(convolution.conv), (ONE_Y, WIDE, ONE_K),
        dict(convolution=0, dot_general=1), dict(convolution=1, dot_general=0)),
    "1x1, of the kernel": (backward(convolution.conv, 1), (ONE_Y, WIDE, ONE_K),
        dict(convolution=0, dot_general=1), dict(convolution=1, dot_general=0)),
    "winograd": (conv, (X, K), {"convolution": 0, "while": 1}, ONE_CONV),
    "winograd, of x": (backward(conv), (Y, X, K),
        {"convolution": 0, "while": 1}, ONE_CONV),
    "winograd, of the kernel": (backward(conv, 1), (Y, X, K),
        {"convolution": 0, "while": 1}, ONE_CONV),
    "nine products": (strided, (WIDE, WIDE_K), ONE_CONV, ONE_CONV),
    "nine products, of x": (backward(strided), (WIDE_Y, WIDE, WIDE_K),
        ONE_CONV, ONE_CONV),
    "nine products, of the kernel": (backward(strided, 1), (WIDE_Y, WIDE, WIDE_K),
        {"convolution": 0, "while": 1, "dot_general": 1}, ONE_CONV),
    "depthwise": (depthwise, (WIDE, DEPTH_K),
        dict(convolution=0, multiply=9), dict(convolution=1, multiply=0)),
    "depthwise, of x": (backward(depthwise), (WIDE, WIDE, DEPTH_K),
        dict(convolution=0, multiply=9), dict(convolution=1, multiply=0)),
    "depthwise, of the kernel": (backward(depthwise, 1), (WIDE, WIDE, DEPTH_K),
        dict(convolution=0, multiply=9), dict(convolution=1, multiply=0)),
    "depthwise 7x7, of the kernel": (backward(depthwise, 1), (LARGE, LARGE, LARGE_K),
        {"convolution": 0, "while": 1, "multiply": 1}, {"convolution": 1, "while": 0}),
    "RoIAlign": (align, (MAP, ROIS), {"while": 0, "gather": 16},
        {"while": 0, "gather": 16}),
    "adaptive RoIAlign": (adaptive, (MAP, ROIS), {"while": 3}, {"while": 2}),
    "adaptive RoIAlign, backward": (backward(adaptive), (POOLED, MAP, ROIS),
        {"while": 3, "scatter": 4}, {"while": 2, "scatter": 4}),
    "RoIPool": (pool, (MAP, ROIS), {"while": 3}, {"while": 2}),
    "RoIPool, backward": (backward(pool), (POOLED, MAP, ROIS),
        {"while": 6, "scatter": 1}, {"while": 2, "scatter": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_export_has_the_formulation_of_its_platform_alone(name):
    function, shapes, on_cpu, elsewhere = CASES[name]
    for platform in PLATFORMS:
        found = operations(function, platform, *shapes)
        expected = on_cpu if platform == "cpu" else elsewhere
        assert {key: found[key] for key in expected} == expected, platform


def test_roi_align_on_a_tpu_sums_rows_before_it_shapes_them():
    for platform in PLATFORMS:
        found = operations(align, platform, MAP, ROIS)
        assert found["optimization_barrier"] == (platform == "tpu")


def test_roi_align_of_a_tpu_gives_what_the_others_give(rng, monkeypatch):
    monkeypatch.setattr(roi_sums, "ROIS", 2)
    flat = jnp.asarray(rng.normal(size=(60, 8)), jnp.bfloat16)
    y, x = (jnp.asarray(rng.integers(0, 30, (5, n, 4))) for n in (3, 7))
    weights = (jnp.asarray(rng.random(a.shape), jnp.float32) for a in (y, x))
    args = flat, y, x, *weights
    found, expected = (
        jax.jit(f)(*args)
        for f in (roi_sums._gather_in_blocks, roi_sums._gather_written_out)
    )
    assert found.shape == (5, 3, 7, 8) and found.dtype == jnp.bfloat16
    assert jnp.array_equal(found, expected)


def test_the_gradient_of_roi_align_sorts_once_on_a_tpu_and_never_elsewhere():
    expected = {"cpu": (1, 1, 0), "cuda": (0, 16, 0), "tpu": (2, 1, 1)}
    for platform in PLATFORMS:
        found = operations(backward(align), platform, POOLED, MAP, ROIS)
        counts = tuple(found[name] for name in ("while", "scatter", "sort"))
        assert counts == expected[platform], platform


def test_many_rois_are_aligned_in_blocks_on_a_tpu():
    for platform in PLATFORMS:
        found = operations(align, platform, MAP, (300, 4))
        assert found["while"] == (platform == "tpu")


def test_boxes_are_taken_column_by_column_on_a_tpu(rng):
    def taken(x, index):
        return modes.take_rows(x, index.astype(jnp.int32))

    for platform in PLATFORMS:
        found = operations(taken, platform, (90, 4), (7,))
        assert found["gather"] == (4 if platform == "tpu" else 1)
    boxes, index = rng.normal(size=(90, 4)), rng.integers(0, 90, (3, 7))
    found = modes._take_columns(jnp.float32(boxes), jnp.int32(index[0]))
    assert jnp.array_equal(found, jnp.float32(boxes[index[0]]))


def test_few_overlaps_are_matched_at_once_on_cuda():
    def match(boxes, gt_boxes):
        crowd = gt_boxes[:, 0] > 9
        rules = dict(fg_iou=0.7, bg_iou=0.3, force_best=True)
        return matching.match(boxes, gt_boxes, ~crowd | crowd, crowd, **rules)

    for boxes in (2100, 20_000):
        for platform in PLATFORMS:
            found = operations(match, platform, (boxes, 4), (100, 4))
            at_once = platform == "cuda" and boxes == 2100
            assert found["while"] == (0 if at_once else 2), (boxes, platform)


def test_a_sample_is_one_sort_on_cuda_and_two_searches_elsewhere():
    def draw(labels):
        rules = dict(num_samples=8, fg_fraction=0.5)
        return matching.sample(jax.random.key(0), labels.astype(jnp.int32), **rules)

    for platform in PLATFORMS:
        expected = 1 if platform == "cuda" else 2
        assert operations(draw, platform, (100,))["sort"] == expected


def test_products_have_the_precision_that_jax_is_told():
    """A TPU multiplies float32 in bfloat16 unless it is told otherwise."""
    for function, shapes in ((conv, (X, K)), (backward(conv, 1), (Y, X, K))):
        args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        for wanted in (None, "float32"):
            with jax.default_matmul_precision(wanted):
                exported = jax.export.export(jax.jit(function), platforms=("tpu",))
                text = exported(*args).mlir_module()
            assert ("HIGHEST" in text) == (wanted == "float32")


def rpn(x, kernel, bias, first, second):
    weights = (kernel, bias), (first, jnp.zeros(3)), (second, jnp.zeros(12))
    head = rpn_head.sampled_head(rpn_head.last_layers, 8, weights, x)
    return head["logits"]


def test_the_rpn_head_has_the_convolutions_of_its_platform():
    shapes = X, K, (64,), (1, 1, 64, 3), (1, 1, 64, 12)
    for function, more in ((rpn, ()), (backward(rpn), ((1, 64, 64, 3),))):
        for platform in PLATFORMS:
            found = operations(function, platform, *more, *shapes)
            # One cell of a patch is a product of matrices everywhere.
            assert (found["convolution"] == 0) == (platform == "cpu")
            if not more:
                assert (found["dot_general"] > 0) == (platform == "cpu")


def test_other_convolutions_are_the_same_everywhere():
    for shapes, options in (
        ((WIDE, WIDE_K), dict(padding=1, stride=3)),
        ((WIDE, WIDE_K), dict(padding=0)),
        (((1, 8, 8, 8), (7, 7, 8, 8)), dict(padding=3, stride=2)),
    ):
        for platform in PLATFORMS:
            found = operations(partial(convolution.conv, **options), platform, *shapes)
            assert found["convolution"] == 1 and found["while"] == 0


def test_one_export_for_all_platforms_has_all_formulations():
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (X, K)]
    exported = jax.export.export(jax.jit(conv), platforms=PLATFORMS)(*args)
    text = exported.mlir_module()
    assert "stablehlo.while" in text and "stablehlo.convolution" in text
