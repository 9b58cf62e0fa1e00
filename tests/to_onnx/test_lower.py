"""Programs beside themselves: JAX runs them, and onnxruntime what became of them."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import linen as nn

from frcnn_jax import models, to_onnx
from frcnn_jax.models.build import pool_rois
from frcnn_jax.models.fpn import upsample
from frcnn_jax.ops import convolution, direct_conv, maps
from frcnn_jax.ops.nms import nms_indices
from frcnn_jax.to_onnx import detection


def both(function, *arrays):
    """What JAX and what onnxruntime give, as lists of arrays."""
    inputs = {f"x{i}": x for i, x in enumerate(arrays)}
    expected = jax.tree.leaves(jax.jit(function)(*arrays))
    model = to_onnx.checked(
        to_onnx.lower(
            lambda *x: jax.tree.leaves(function(*x)),
            inputs={
                k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in inputs.items()
            },
            outputs=[f"y{i}" for i in range(len(expected))],
        )
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return expected, session.run(None, inputs), model


def assert_alike(function, *arrays, atol=1e-5):
    expected, found, model = both(function, *arrays)
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=atol)
    return model


def real(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(*shape, low=-9, high=9):
    rng = np.random.default_rng(1)
    return rng.integers(low, high, shape).astype(np.int32)


X, MAP = real(3, 4), real(2, 8, 10, 6)
KERNEL, BIAS = real(3, 3, 6, 5, seed=1), real(5, seed=2)

CASES = dict(
    numbers=(lambda x: [jnp.exp(x), jnp.sin(0.0) - x**2, jax.nn.sigmoid(x), x**3], X),
    selection=(lambda x: [jnp.where(x > 0, x, 2.0), jnp.clip(x, -0.5, 0.5)], X),
    whole_numbers=(lambda i: [i // 4, i % 4, i // -3, i % -3, i * i - 1], whole(20)),
    ranges=(
        lambda x: [jax.lax.top_k(x, 3)[1] // 2, jax.lax.top_k(x, 3)[1] % 2],
        real(2, 9),
    ),
    ties=(
        lambda i: [jax.lax.top_k(i.astype(jnp.float32), 7), i.argmax(1)],
        whole(3, 9, low=0, high=3),
    ),
    sorting=(
        lambda i: [jnp.argsort(i > 0, stable=True), jnp.sort(i.astype(float), 1)],
        whole(3, 9, low=0, high=3),
    ),
    finite=(
        lambda x: [jnp.nan_to_num(x / 0 * 0, nan=3.0), jnp.isfinite(jnp.log(x))],
        X,
    ),
    rounding=(lambda x: [jnp.round(4 * x), jnp.floor(x), (9 * x).astype(int)], X),
    sums=(lambda x: [x.sum(), x.mean(0), x.max(1), (x > 0).any(1), x.cumsum(1)], X),
    shapes=(
        lambda x: [x.T, x[::-1], x[:, 1::2], jnp.roll(x, 1, 1), jnp.stack([x, -x], 1)],
        X,
    ),
    padding=(lambda x: jnp.pad(x, ((1, 0), (0, 2)), constant_values=3), X),
    rows=(
        lambda x, i: [x[i], x[:, i], x.at[i].get(mode="clip")],
        *(X, whole(3, low=0, high=3)),
    ),
    own_rows=(jax.vmap(lambda x, i: x[i]), real(3, 5, 2), whole(3, 4, low=0, high=5)),
    matrices=(
        lambda x, y: [jnp.einsum("bqhd,bkhd->bhqk", x, y), x[0, 0] @ y[0, 0].T],
        *(real(2, 3, 4, 5), real(2, 6, 4, 5, seed=3)),
    ),
    softmax=(lambda x: jax.nn.softmax(x, -1), X),
    gelu=(lambda x: [jax.nn.gelu(x, approximate=False), jax.nn.hard_swish(x)], X),
    convolution=(lambda x: convolution.conv(x, KERNEL, BIAS, padding=1), MAP),
    halving=(lambda x: convolution.conv(x, KERNEL, padding=1, stride=2), MAP),
    pointwise=(lambda x: convolution.conv(x, KERNEL[:1, :1], BIAS), MAP),
    one_cell=(lambda x: convolution.conv(x[:, :1, :1], KERNEL[:1, :1], BIAS), MAP),
    depthwise=(
        lambda x: convolution.depthwise_conv(x, real(5, 5, 1, 6), stride=2),
        MAP,
    ),
    groups=(
        lambda x: direct_conv.direct_conv(
            x, real(3, 3, 2, 6), groups=3, dilation=2, padding=2
        ),
        MAP,
    ),
    pooling=(
        lambda x: [
            maps.max_pool(x, window=3, stride=2, padding=1),
            maps.max_pool(x, window=2, stride=2, same=True),
        ],
        real(1, 7, 9, 4),
    ),
    response=(lambda x: maps.local_response_norm(x, alpha=0.5), MAP),
    norm_and_relu=(
        lambda x: maps.relu(
            convolution.conv(x, KERNEL, padding=1) * BIAS[None, None, None] + 0.5
        ),
        MAP,
    ),
    excitation=(
        lambda x: (y := maps.relu(x)) * jax.nn.sigmoid(y.mean((1, 2), keepdims=True)),
        MAP,
    ),
    masked=(
        lambda x, i: maps.relu(
            jnp.where(
                (jnp.arange(8)[None] < i[:, None])[:, :, None, None],
                convolution.conv(x, KERNEL, padding=1),
                0.0,
            )
        ),
        *(MAP, np.int32([3, 8])),
    ),
    pyramid=(
        lambda x: (
            convolution.conv(x, KERNEL, padding=1)[:, :7, :9]
            + upsample(convolution.conv(x, KERNEL, padding=1)[:, :4, :5], (7, 9))
        ),
        MAP,
    ),
    flattened=(
        lambda x: (
            convolution.conv(x, KERNEL, padding=1).reshape(1, 2, -1) @ real(400, 3)
        ),
        MAP,
    ),
    columns=(
        lambda x: convolution.conv(x, KERNEL, padding=1).reshape(-1, 5) @ real(5, 3),
        MAP,
    ),
    concatenated=(
        lambda x: jnp.concatenate([convolution.conv(x, KERNEL, padding=1), x], -1),
        MAP,
    ),
)


@pytest.mark.parametrize("name", CASES)
def test_a_program_gives_the_same(name):
    function, *arrays = CASES[name]
    assert_alike(function, *arrays, atol=1e-4)


def operators(model):
    return [node.op_type for node in model.graph.node]


def test_maps_are_not_turned_between_convolutions_and_norms_are_in_the_weights():
    def net(x):
        for _ in range(3):
            y = convolution.conv(x, real(3, 3, 6, 6), padding=1)
            y = y * real(6)[None, None, None] + real(6, seed=1)[None, None, None]
            x = maps.relu(x + y)
        return x

    found = operators(assert_alike(net, MAP, atol=1e-3))
    assert (
        sorted(found)
        == ["Add"] * 3 + ["Cast"] + ["Conv"] * 3 + ["Relu"] * 3 + ["Transpose"] * 2
    )


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.LayerNorm()(nn.Dense(4)(x))


def test_flax_layers():
    module = Normed()
    variables = module.init(jax.random.key(0), X)
    assert_alike(lambda x: module.apply(variables, x), X)


def test_what_has_no_rule_is_named():
    with pytest.raises(ValueError, match="the operation while has no form in ONNX"):
        both(lambda x: jax.lax.while_loop(lambda y: (y < 9).all(), jnp.exp, x), X)
    with pytest.raises(ValueError, match="a gather that may read outside"):
        both(lambda x, i: x.at[i].get(mode="fill"), X, whole(3))


# NMS and RoIAlign ------------------------------------------------------------------


@pytest.mark.parametrize("m, levels", [(20, 1), (5, 3), (70, 3)])
def test_nms_keeps_the_same_in_the_same_order(m, levels):
    """Crowds with equal scores, boxes that do not count, and NaN among these."""
    rng = np.random.default_rng(m)
    corner = rng.uniform(0, 40, (2, 60, 2)).round()
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, corner.shape)], -1)
    scores = (rng.normal(size=(2, 60)) * 3).round() / 2
    valid = rng.random((2, 60)) < 0.8
    boxes[0, ~valid[0]], scores[0, ~valid[0]] = np.nan, np.nan
    classes = np.arange(60, dtype=np.int32) % levels

    def keep(boxes, scores, valid):
        def one(boxes, scores, valid):
            return nms_indices(
                boxes,
                scores,
                valid,
                iou_threshold=0.4,
                max_output=m,
                classes=jnp.asarray(classes),
            )

        return jax.vmap(one)(boxes, scores, valid)

    f32 = np.float32
    expected, found, model = both(keep, f32(boxes), f32(scores), valid)
    assert 5 <= np.sum(expected[1]) < np.sum(valid)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])
    assert "NonMaxSuppression" in operators(model)


@pytest.mark.parametrize("aligned, samples", [(True, 2), (False, 2), (True, 0)])
@pytest.mark.parametrize("extents", [False, True])
def test_roi_align_is_ours(aligned, samples, extents):
    rng = np.random.default_rng(0)
    features = {s: real(2, 64 // s, 96 // s, 3, seed=s) for s in (4, 8, 16)}
    corner = rng.uniform(0, 20, (2, 30, 2))
    side = np.exp(rng.uniform(0, 4, corner.shape))
    rois = np.concatenate([corner, corner + side], -1).astype(np.float32)
    size = np.int32([[64, 96], [40, 64]])
    if extents:
        rois = np.minimum(rois, size[:, None, [1, 0, 1, 0]]).astype(np.float32)
    # At the border and below a cell: an unaligned RoI has samples beyond the extent.
    rois[1, :4] = [
        [9, 39, 40, 40],
        [63, 2, 64, 30],
        [62, 38, 64, 40],
        [0, 37.5, 64, 40],
    ]
    rois[1, 20:] = 0
    options = dict(
        strides=(4, 8, 16),
        output_size=4,
        aligned=aligned,
        sampling_ratio=samples,
        canonical_size=32,
    )

    def pool(function):
        def apply(rois, size, *levels):
            ends = {s: (-(-size[:, 0] // s), -(-size[:, 1] // s)) for s in features}
            given = dict(zip(features, levels, strict=True))
            extent = ends if extents else None
            return [function(given, rois, extent=extent, **options)]

        return apply

    expected = jax.jit(pool(pool_rois))(rois, size, *features.values())
    inputs = dict(rois=rois, size=size) | {f"c{s}": f for s, f in features.items()}
    model = to_onnx.lower(
        pool(detection.pooled),
        inputs={k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in inputs.items()},
        outputs=["pooled"],
    )
    # Those with samples beyond the extent have an operator of their own.
    assert operators(model).count("RoiAlign") == (6 if extents and not aligned else 3)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, inputs)
    np.testing.assert_allclose(found, expected[0], atol=1e-4)


def test_roi_pool_is_refused():
    model = models.build_detector(
        num_classes=3, backbone=dict(name="tiny"), roi_pool=dict(stride=8)
    )
    with pytest.raises(ValueError, match="train with model.roi_align"):
        detection.with_operators(model)
