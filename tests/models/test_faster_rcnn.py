import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import proposals
from frcnn_jax.models import (
    box_head,
    build,
    build_detector,
    faster_rcnn,
    rpn_head,
)
from frcnn_jax.ops import roi_align, roi_pool

TINY = dict(
    num_classes=3,
    backbone=dict(name="tiny", widths=(8, 8), groups=4),
    fpn=dict(channels=8),
    anchors=dict(strides=(4, 8, 16), sizes=(8.0, 16.0, 32.0)),
    rpn=dict(channels=8),
    roi_align=dict(strides=(4, 8), output_size=3, canonical_size=32.0),
    box_head=dict(widths=(16,)),
)
C4 = dict(
    backbone=dict(name="resnet", depth=50, out_strides=(16,)),
    anchors=dict(strides=(16,), sizes=((32, 64, 128, 256, 512),)),
    rpn=dict(channels=1024),
    roi_align=dict(strides=(16,), output_size=14),
    box_head=dict(name="resnet", depth=50),
)


@pytest.fixture(scope="module")
def tiny():
    """A small detector, its variables and two normalised images of odd size."""
    model = build_detector(**TINY)
    images = jax.random.normal(jax.random.key(1), (2, 36, 50, 3))
    return model, jax.jit(model.init)(jax.random.key(0), images), images


def by_shape(model, *args):
    return jax.eval_shape(
        lambda *a: model.init_with_output(jax.random.key(0), *a), *args
    )


def images(h, w, b=1):
    return jax.ShapeDtypeStruct((b, h, w, 3), jnp.float32)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# The whole network


def test_r50_fpn_has_torchvisions_parameters():
    """torchvision's fasterrcnn_resnet50_fpn with 91 classes: 41,755,286 parameters.

    Two differences of bookkeeping: its frozen batch norms are buffers where ours count
    scale and bias (2 x 26,560), and it predicts a box for the background as well,
    4 x (1024 + 1).
    """
    model = build_detector(
        num_classes=90, backbone=dict(name="resnet", depth=50), fpn={}
    )
    _, variables = by_shape(model, images(64, 64))
    params = variables["params"]
    assert set(params) == {"backbone", "fpn", "rpn_head", "box_head"}
    norms = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params["backbone"])
        if "bn" in path[-2].key
    ]
    assert sum(norms) == count(variables["batch_stats"]) == 2 * 26_560
    assert count(params) - sum(norms) + 4 * (1024 + 1) == 41_755_286


def test_c4_has_15_anchors_a_place_and_stage_4_in_the_head():
    model = build_detector(num_classes=20, **C4)
    (out, logits, deltas), variables = by_shape(model, images(70, 100, 2))
    assert list(out.features) == [16]
    assert out.logits.shape == (2, 5 * 7 * 15) and out.anchors.shape == (2, 525, 4)
    assert out.deltas.shape == (2, 525, 4)
    assert logits.shape == (2, 1, 21) and deltas.shape == (2, 1, 20, 4)
    assert "fpn" not in variables["params"]
    assert "layer4" not in variables["params"]["backbone"]
    assert "layer4" in variables["params"]["box_head"]


def test_outputs_fit_each_other(tiny):
    model, variables, x = tiny
    sizes = []

    def apply(variables, x):
        out, *more = model.apply(variables, x)
        sizes.append(out.level_sizes)
        return out, *more

    out, logits, deltas = jax.eval_shape(apply, variables, x)
    assert list(out.features) == [4, 8, 16]
    assert sizes[0] == (9 * 13 * 3, 5 * 7 * 3, 3 * 4 * 3)
    assert out.logits.shape == (2, 492) and out.deltas.shape == (2, 492, 4)
    assert out.anchors.shape == (2, 492, 4)
    assert logits.shape == (2, 1, 4) and deltas.shape == (2, 1, 3, 4)


def test_every_trainable_part_gets_a_finite_gradient(tiny):
    model, variables, x = tiny
    rois = jnp.float32([[[2, 3, 20, 30], [0, 0, 50, 36]], [[5, 5, 9, 9], [0, 0, 0, 0]]])

    def loss(model):
        out = model.rpn(x)
        logits, deltas = model.detect(out.features, rois)
        return sum((a**2).sum() for a in (out.logits, out.deltas, logits, deltas))

    grads = jax.jit(jax.grad(lambda v: model.apply(v, method=loss)))(variables)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all(), path
        assert np.abs(g).max() > 0, path


def test_bfloat16_inside_float32_outside():
    model = build_detector(**TINY, dtype="bfloat16")
    (out, logits, deltas), variables = by_shape(model, images(32, 32))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert {f.dtype for f in out.features.values()} == {jnp.dtype("bfloat16")}
    for array in (out.logits, out.deltas, out.anchors, logits, deltas):
        assert array.dtype == jnp.float32


# Pixels


def test_normalize_is_zero_outside_the_image():
    model = build_detector(
        **TINY, pixel_mean=(10.0, 20.0, 30.0), pixel_std=(1.0, 2.0, 4.0)
    )
    image = np.full((2, 3, 4, 3), 50, np.uint8)
    out = model.normalize(jnp.asarray(image), jnp.array([[2, 3], [3, 4]]))
    expected = np.broadcast_to(np.float32([40, 15, 5]), out.shape).copy()
    expected[0, 2:] = expected[0, :, 3:] = 0
    expected[1, 3:] = expected[1, :, 4:] = 0
    assert out.dtype == jnp.float32 and out.shape == (2, 32, 32, 3)  # pad_to
    np.testing.assert_array_equal(out, expected)


# RPN


@functools.cache
def planted_rpn(num_anchors, objectness="sigmoid"):
    """An RPN head that copies channel a of its input into the logit of anchor a."""
    head = rpn_head.RPNHead(num_anchors, num_anchors, objectness)
    logits = num_anchors * (2 if objectness == "softmax" else 1)
    conv = np.zeros((3, 3, num_anchors, num_anchors), np.float32)
    conv[1, 1] = np.eye(num_anchors)
    copy = np.eye(num_anchors, dtype=np.float32)
    if objectness == "softmax":
        copy = np.stack([np.zeros_like(copy), copy], -1).reshape((num_anchors, -1))
    params = {
        "conv": {"kernel": conv, "bias": np.zeros(num_anchors, np.float32)},
        "objectness": {
            "kernel": copy[None, None],
            "bias": np.zeros(logits, np.float32),
        },
        "deltas": {
            "kernel": np.zeros((1, 1, num_anchors, 4 * num_anchors), np.float32),
            "bias": np.arange(4.0 * num_anchors, dtype=np.float32),
        },
    }
    return jax.jit(partial(head.apply, {"params": params}))


@pytest.mark.parametrize("objectness", ["sigmoid", "softmax"])
@pytest.mark.parametrize(
    "stride, y, x, a", [(8, 2, 3, 4), (16, 1, 0, 5), (16, 0, 1, 0)]
)
def test_rpn_logits_stand_where_their_anchors_stand(objectness, stride, y, x, a):
    ratios = (0.5, 1.0, 2.0)
    sizes = {8: (16.0, 20.0), 16: (32.0, 40.0)}
    features = {s: np.zeros((1, n, n + 1, 6), np.float32) for s, n in ((8, 4), (16, 2))}
    features[stride][0, y, x, a] = 1
    logits, deltas = planted_rpn(6, objectness)(jax.tree.map(jnp.asarray, features))
    anchors = build.anchor_pyramid(
        {s: f.shape[1:3] for s, f in features.items()},
        strides=(8, 16),
        sizes=tuple(sizes.values()),
        aspect_ratios=ratios,
    )
    planted = np.argwhere(np.asarray(logits))
    assert planted.shape == (1, 3 if objectness == "softmax" else 2)
    assert planted[0][2:].tolist() in ([], [1])  # index 1 is "object"
    x1, y1, x2, y2 = np.asarray(anchors[planted[0][1]])
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == (x * stride, y * stride)
    ratio, size = divmod(a, 2)  # for each ratio, for each size
    np.testing.assert_allclose((y2 - y1) / (x2 - x1), ratios[ratio], rtol=1e-5)
    np.testing.assert_allclose(
        np.sqrt((y2 - y1) * (x2 - x1)), sizes[stride][size], rtol=1e-5
    )
    np.testing.assert_array_equal(deltas[0, planted[0][1]], 4 * a + np.arange(4))


def test_anchor_rounding_of_other_codes():
    one = partial(build.anchor_pyramid, {16: (1, 1)}, strides=(16,))
    legacy = one(sizes=((128, 256, 512),), rounding="legacy")
    # The nine of py-faster-rcnn, inclusive pixels from one; our corners are continuous.
    listed = [
        *([-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200]),
        *([-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264]),
        *([-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360]),
    ]
    np.testing.assert_array_equal(legacy, np.array(listed) - np.array([1, 1, 0, 0]))
    torchvision = one(sizes=(32.0,), rounding="torchvision")
    np.testing.assert_array_equal(torchvision[0], [-23, -11, 23, 11])
    with pytest.raises(ValueError, match="anchors.rounding='up'"):
        one(sizes=(32.0,), rounding="up")


# Box head


def test_detect_pools_each_image_from_its_own_maps(tiny, rng):
    model, variables, _ = tiny
    features = {
        s: jnp.float32(rng.normal(size=(2, -(-36 // s), -(-50 // s), 8)))
        for s in (4, 8, 16)
    }
    start = rng.uniform(0, 20, (2, 4, 2))
    rois = np.concatenate([start, start + rng.uniform(2, 30, (2, 4, 2))], -1)
    rois = jnp.float32(rois)
    detect = jax.jit(partial(model.apply, method="detect"))
    logits, deltas = detect(variables, features, rois)
    head = partial(model.box_head.apply, {"params": variables["params"]["box_head"]})

    @jax.jit
    def one_image(features, rois):
        pooled = roi_align.multilevel_roi_align(
            features, rois, output_size=3, canonical_size=32
        )
        return head(pooled[None])

    for b in range(2):
        one_logits, one_deltas = one_image(
            {4: features[4][b], 8: features[8][b]}, rois[b]
        )
        np.testing.assert_allclose(logits[b], one_logits[0], atol=1e-6)
        np.testing.assert_allclose(deltas[b], one_deltas[0], atol=1e-6)


def test_box_head_flattens_y_x_channel():
    head = box_head.BoxHead(num_classes=1, widths=(1,))
    x = jnp.arange(12.0).reshape((1, 1, 2, 3, 2))
    params = jax.jit(head.init)(jax.random.key(0), x)["params"]
    pick = np.zeros((12, 1), np.float32)
    pick[1 * 6 + 2 * 2 + 1] = 1  # y 1, x 2, channel 1
    params["fc1"] = {"kernel": pick, "bias": np.zeros(1, np.float32)}
    params["class_logits"] = {
        "kernel": np.ones((1, 2), np.float32),
        "bias": np.zeros(2),
    }
    logits, _ = head.apply({"params": params}, x)
    np.testing.assert_array_equal(logits, np.full((1, 1, 2), x[0, 0, 1, 2, 1]))


def test_class_agnostic_head_has_one_row():
    model = build_detector(**{**TINY, "box_head": dict(class_agnostic=True)})
    (_, logits, deltas), _ = by_shape(model, images(32, 32))
    assert logits.shape == (1, 1, 4) and deltas.shape == (1, 1, 1, 4)


def test_new_layers_start_as_small_gaussians():
    model = build_detector(num_classes=80, backbone=TINY["backbone"], fpn={})
    model = model.clone(levels=(4, 8, 16))
    rpn = jax.jit(model.rpn_head.init)(
        jax.random.key(0), {4: jnp.zeros((1, 2, 2, 256))}
    )
    head = jax.jit(model.box_head.init)(jax.random.key(0), jnp.zeros((1, 1, 7, 7, 4)))
    for name, layer, std in [
        *(
            (name, rpn["params"][name], 0.01)
            for name in ("conv", "objectness", "deltas")
        ),
        ("class_logits", head["params"]["class_logits"], 0.01),
        ("class_deltas", head["params"]["class_deltas"], 0.001),
    ]:
        np.testing.assert_allclose(np.std(layer["kernel"]), std, rtol=0.1, err_msg=name)
        assert (layer["bias"] == 0).all()


# The paper: RoIPool, 2k scores, k = 3, 9, 12, external proposals

PAPER = dict(
    num_classes=2,
    backbone=dict(name="zf"),
    anchors=dict(strides=(16,), sizes=((128, 256, 512),), rounding="legacy"),
    rpn=dict(objectness="softmax"),
    roi_pool=dict(output_size=6),
    box_head=dict(name="zf", widths=(8, 8)),
)


@pytest.mark.parametrize(
    "sizes, ratios, k",
    [
        ((128,), (0.5, 1, 2), 3),
        ((128, 256, 512), (1,), 3),
        ((128, 256, 512), (0.5, 1, 2), 9),
        ((64, 128, 256, 512), (0.5, 1, 2), 12),  # COCO
    ],
)
@pytest.mark.parametrize("objectness, scores", [("sigmoid", ()), ("softmax", (2,))])
def test_rpn_makes_k_guesses_at_each_place(sizes, ratios, k, objectness, scores):
    """The tutorial: 8 x 8 places and k = 3 make 8 x 8 x 3 guesses."""
    anchors = dict(PAPER["anchors"], sizes=(sizes,), aspect_ratios=ratios)
    changes = dict(anchors=anchors, rpn=dict(objectness=objectness))
    (out, _, _), variables = by_shape(
        build_detector(**(PAPER | changes)), images(128, 128)
    )
    assert out.features[16].shape == (1, 8, 8, 256)
    assert out.logits.shape == (1, 8 * 8 * k, *scores)
    assert out.deltas.shape == (1, 8 * 8 * k, 4)
    head = variables["params"]["rpn_head"]
    assert head["conv"]["kernel"].shape == (3, 3, 256, 256)
    assert head["objectness"]["kernel"].shape == (1, 1, 256, k * (2 if scores else 1))
    assert head["deltas"]["kernel"].shape == (1, 1, 256, 4 * k)


def test_tutorials_8_by_8_map_gives_192_proposals():
    anchors = build.anchor_pyramid({16: (8, 8)}, strides=(16,), sizes=(128.0,))
    features = {16: jax.random.normal(jax.random.key(1), (1, 8, 8, 16))}
    head = rpn_head.RPNHead(3, 16, objectness="softmax")
    (logits, deltas), _ = jax.jit(head.init_with_output)(jax.random.key(0), features)
    select = jax.jit(partial(proposals.select_proposals, nms_iou=1.0))
    found = select(anchors, logits[0], deltas[0], jnp.array([128, 128]))
    assert found.valid.sum() == len(anchors) == 8 * 8 * 3 == 192
    assert (found.boxes[:192] >= 0).all() and (found.boxes[:192] <= 128).all()


def test_detect_pools_the_maximum_of_quantised_cells(rng):
    model = build_detector(**PAPER)
    features = {16: jnp.float32(rng.normal(size=(2, 9, 11, 256)))}
    rois = jnp.float32([[[0, 0, 90, 100], [30, 20, 170, 140]], [[5, 5, 60, 60]] * 2])
    pooled = model.pool(features, rois)
    assert pooled.shape == (2, 2, 6, 6, 256)
    for b in range(2):
        alone = roi_pool.roi_pool(features[16][b], rois[b], stride=16, output_size=6)
        np.testing.assert_array_equal(pooled[b], alone)
    with pytest.raises(ValueError, match=r"roi_pool.stride=16.*\[8\]"):
        model.pool({8: features[16]}, rois)


def test_fast_rcnn_is_faster_rcnn_without_rpn():
    faster = build_detector(**PAPER)
    rest = {k: v for k, v in PAPER.items() if k not in ("anchors", "rpn")}
    fast = build_detector(**rest, external_proposals=True)
    assert isinstance(faster, faster_rcnn.FasterRCNN)
    assert not isinstance(fast, faster_rcnn.FasterRCNN)
    (logits, deltas), variables = by_shape(fast, images(64, 64, 2))
    assert logits.shape == (2, 1, 3) and deltas.shape == (2, 1, 2, 4)
    _, expected = by_shape(faster, images(64, 64, 2))
    expected["params"].pop("rpn_head")
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(roi_align={}), ValueError, "both roi_align and roi_pool"),
        (dict(roi_pool=dict(size=7)), TypeError, r"roi_pool.*\['size'\].*output_size"),
        (dict(external_proposals=True), ValueError, "leave out anchors and rpn"),
    ],
)
def test_groups_that_exclude_each_other_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        build_detector(**(PAPER | changes))
