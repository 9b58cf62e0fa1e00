"""State dicts of torchvision: names, layouts, what does not fit, and the way back."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from frcnn_jax import models
from frcnn_jax.weights import torchvision

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
V2 = dict(
    fpn=dict(norm="frozen"),
    rpn=dict(depth=2),
    box_head=dict(convs=(256,) * 4, widths=(1024,), norm="frozen"),
)
DETECTORS = {
    "fasterrcnn_resnet50_fpn": dict(backbone=dict(name="resnet"), fpn={}),
    "fasterrcnn_resnet50_fpn_v2": dict(backbone=dict(name="resnet"), **V2),
    "fasterrcnn_mobilenet_v3_large_fpn": dict(
        backbone=dict(name="mobilenet"),
        fpn={},
        anchors=dict(
            strides=(32, 32, 64),
            levels=(32, 33, 66),
            sizes=((32.0, 64.0, 128.0, 256.0, 512.0),) * 3,
        ),
        roi_align=dict(strides=(32,)),
    ),
}
SMALL = dict(
    backbone=dict(name="resnet", depth=10),
    fpn=dict(channels=4),
    rpn=dict(channels=4),
    box_head=dict(widths=(5, 6)),
)


def shapes(*, num_classes, **parts):
    model = models.build_detector(num_classes=num_classes, **parts)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def numbered(tree):
    """Every number of every array is another one."""
    counter = iter(range(10**9))
    return jax.tree.map(
        lambda x: next(counter) + np.linspace(0, 0.9, x.size).reshape(x.shape), tree
    )


@pytest.fixture(scope="module")
def small():
    variables = shapes(num_classes=3, **SMALL)
    filled = jax.tree.map(np.float32, numbered(variables))
    return variables, filled, torchvision.export_detector(filled)


@pytest.mark.parametrize("name", DETECTORS)
def test_names_and_shapes_are_torchvisions(name):
    expected = json.loads((GOLDENS / "torchvision_names.json").read_text())[name]
    tree = shapes(num_classes=90, **DETECTORS[name])
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), tree)
    found = torchvision.export_detector(zeros)
    assert {k: list(v.shape) for k, v in found.items()} == expected


def test_export_and_load_are_inverse(small, tmp_path):
    variables, filled, state = small
    counters = {"backbone.body.bn1.num_batches_tracked": np.int64(5)}
    np.savez(tmp_path / "x.npz", **state, **counters)
    loaded, report = torchvision.load_detector(tmp_path / "x.npz", variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, filled)
    again = torchvision.export_detector(loaded)
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array)
    assert len(report) == len(state) + 1
    assert "ignored backbone.body.bn1.num_batches_tracked" in report
    line = "(64, 3, 7, 7) -> params/backbone/conv1/kernel (7, 7, 3, 64) (conv)"
    assert f"backbone.body.conv1.weight {line}" in report


def test_layouts_number_by_number(small):
    _, filled, state = small
    box, ours = filled["params"]["box_head"], state
    conv = filled["params"]["rpn_head"]["conv"]["kernel"]
    assert ours["rpn.head.conv.0.0.weight"][3, 1, 0, 2] == conv[0, 2, 1, 3]
    # PyTorch flattens [c, y, x], we [y, x, c]; four channels, seven by seven.
    weight, kernel = ours["roi_heads.box_head.fc6.weight"], box["fc1"]["kernel"]
    channel, y, x = 3, 5, 2
    assert weight[1, channel * 49 + y * 7 + x] == kernel[(y * 7 + x) * 4 + channel, 1]
    assert ours["roi_heads.box_head.fc7.weight"][4, 2] == box["fc2"]["kernel"][2, 4]
    # Row c - 1 of ours is class c; the background has logits but no box.
    scores = ours["roi_heads.box_predictor.cls_score.weight"]
    assert scores[3, 5] == box["class_logits"]["kernel"][5, 3]
    deltas = ours["roi_heads.box_predictor.bbox_pred.weight"]
    assert deltas[4 * 2 + 3, 5] == box["class_deltas"]["kernel"][5, 4 * 1 + 3]
    assert not deltas[:4].any()
    assert not ours["roi_heads.box_predictor.bbox_pred.bias"][:4].any()


def test_chosen_classes_keep_their_rows(small, tmp_path):
    _, filled, state = small
    np.savez(tmp_path / "x.npz", **state)
    two = shapes(num_classes=2, **SMALL)
    loaded, _ = torchvision.load_detector(tmp_path / "x.npz", two, classes=(3, 1))
    was, now = filled["params"]["box_head"], loaded["params"]["box_head"]
    np.testing.assert_array_equal(
        now["class_logits"]["bias"], was["class_logits"]["bias"][[0, 3, 1]]
    )
    np.testing.assert_array_equal(
        now["class_deltas"]["kernel"],
        was["class_deltas"]["kernel"].reshape(-1, 3, 4)[:, [2, 0]].reshape(-1, 8),
    )
    with pytest.raises(ValueError, match=r"cls_score.bias has shape \(4,\)"):
        torchvision.load_detector(tmp_path / "x.npz", two)


def test_names_of_torchvisions_first_files(small, tmp_path):
    variables, filled, state = small
    old = {}
    for name, array in state.items():
        if name.startswith(("rpn.head.conv.", "backbone.fpn.")):
            *module, kind = name.split(".")
            cut = 2 if name.startswith("rpn") else 1
            name = ".".join([*module[:-cut], kind])
        old[name] = array
    assert {"rpn.head.conv.weight", "backbone.fpn.inner_blocks.0.weight"} <= set(old)
    assert {"backbone.fpn.layer_blocks.3.bias"} <= set(old)
    np.savez(tmp_path / "x.npz", **old)
    loaded, _ = torchvision.load_detector(tmp_path / "x.npz", variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, filled)


def test_what_does_not_fit_is_named(small, tmp_path):
    variables, _, state = small
    path = tmp_path / "x.npz"

    def load(**changes):
        arrays = {**state, **changes}
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        return torchvision.load_detector(path, variables)

    with pytest.raises(ValueError, match="not in the file: backbone.body.conv1.weight"):
        load(**{"backbone.body.conv1.weight": None})
    with pytest.raises(ValueError, match="not in the model: backbone.extra.weight"):
        load(**{"backbone.extra.weight": np.zeros(3)})
    with pytest.raises(ValueError, match=r"fc7.bias has shape \(7,\), .*needs \(6,\)"):
        load(**{"roi_heads.box_head.fc7.bias": np.zeros(7)})
    with pytest.raises(ValueError, match="fc6.weight of shape"):
        load(**{"roi_heads.box_head.fc6.weight": np.zeros((5, 195))})
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ValueError, match="holds no detector .*such as a;.*torchvision"):
        torchvision.load_detector(path, variables)
    with pytest.raises(ValueError, match="box_head/fc9x/kernel has no place"):
        torchvision.places({("params", "box_head", "fc9x", "kernel"): np.zeros(2)})


# Backbones alone


def flat(tree):
    return traverse_util.flatten_dict(tree)


@pytest.mark.parametrize("prefix", ["", "backbone.body."])
def test_backbone_of_a_classifier_or_a_detector(small, tmp_path, prefix):
    variables, filled, state = small
    body = {
        k.replace("backbone.body.", prefix): v
        for k, v in state.items()
        if k.startswith("backbone.body.") or prefix
    }
    body["fc.weight" if not prefix else "rpn.unknown"] = np.zeros((3, 3))
    np.savez(tmp_path / "x.npz", **body)
    start = jax.tree.map(lambda x: jnp.full(x.shape, -1.0), variables)
    loaded = flat(torchvision.load_backbone(tmp_path / "x.npz", start))
    for key, value in flat(filled).items():
        expected = value if key[1] == "backbone" else np.full(value.shape, -1)
        np.testing.assert_array_equal(loaded[key], expected)


def test_a_c4_detector_takes_stage_four_into_its_head(small, tmp_path):
    _, filled, state = small
    prefix = "backbone.body."
    body = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    np.savez(tmp_path / "x.npz", **body)
    variables = shapes(
        num_classes=3,
        backbone=dict(name="resnet", depth=10, out_strides=(16,)),
        anchors=dict(strides=(16,), sizes=((32, 64),)),
        roi_align=dict(strides=(16,), output_size=14),
        box_head=dict(name="resnet", depth=10),
    )
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), variables)
    loaded = torchvision.load_backbone(tmp_path / "x.npz", zeros)["params"]
    was = filled["params"]["backbone"]
    jax.tree.map(
        np.testing.assert_array_equal, loaded["box_head"]["layer4"], was["layer4"]
    )
    np.testing.assert_array_equal(
        loaded["backbone"]["conv1"]["kernel"], was["conv1"]["kernel"]
    )
    assert not loaded["box_head"]["class_logits"]["kernel"].any()


def test_mobilenet_of_a_classifier(tmp_path):
    tree = shapes(num_classes=2, **DETECTORS["fasterrcnn_mobilenet_v3_large_fpn"])
    filled = jax.tree.map(np.float32, numbered(tree))
    state = torchvision.export_detector(filled)
    body = {
        k.replace("backbone.body.", "features."): v
        for k, v in state.items()
        if k.startswith("backbone.body.")
    }
    np.savez(tmp_path / "x.npz", **body, **{"classifier.0.weight": np.zeros(2)})
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), tree)
    loaded = torchvision.load_backbone(tmp_path / "x.npz", zeros)
    jax.tree.map(
        np.testing.assert_array_equal,
        loaded["params"]["backbone"],
        filled["params"]["backbone"],
    )


# The parts that only torchvision's models have


def head(rng, *, depth):
    module = models.rpn_head.RPNHead(num_anchors=2, channels=4, depth=depth)
    features = {8: jnp.asarray(rng.normal(size=(1, 3, 5, 4)), jnp.float32)}
    return module, features, module.init(jax.random.key(0), features)


def test_a_deeper_rpn_head_is_the_same_convolution_again(rng):
    deep, features, variables = head(rng, depth=2)
    assert sorted(variables["params"]) == ["conv", "conv2", "deltas", "objectness"]
    # A second convolution that passes positive maps on changes nothing.
    identity = np.zeros((3, 3, 4, 4), np.float32)
    identity[1, 1] = np.eye(4)
    params = {**variables["params"], "conv2": dict(kernel=identity, bias=np.zeros(4))}
    shallow, *_ = head(rng, depth=1)
    one = {k: v for k, v in params.items() if k != "conv2"}
    for a, b in zip(
        deep.apply({"params": params}, features),
        shallow.apply({"params": one}, features),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_box_head_with_convolutions_and_frozen_norms(rng):
    head = models.box_head.BoxHead(2, (6,), (4, 5), "frozen")
    x = jnp.asarray(rng.normal(size=(2, 3, 7, 7, 4)), jnp.float32)
    variables = jax.jit(head.init)(jax.random.key(0), x)
    apply = jax.jit(head.apply)
    assert sorted(variables["params"]) == [
        *("class_deltas", "class_logits", "conv1", "conv1_norm", "conv2"),
        *("conv2_norm", "fc1"),
    ]
    assert sorted(variables["batch_stats"]) == ["conv1_norm", "conv2_norm"]
    assert "bias" not in variables["params"]["conv1"]
    logits, deltas = apply(variables, x)
    assert logits.shape == (2, 3, 3) and deltas.shape == (2, 3, 2, 4)
    # RoIs do not see each other.
    alone, _ = apply(variables, x[1:, 2:])
    np.testing.assert_allclose(logits[1:, 2:], alone, atol=1e-6)
    with pytest.raises(ValueError, match="box_head.norm='instance'.*'frozen'"):
        models.box_head.BoxHead(2, norm="instance")


def test_two_maps_of_one_stride_in_the_pyramid(rng):
    with pytest.raises(ValueError, match="fpn.norm='x'"):
        models.fpn.FPN(norm="x")
    pyramid = models.fpn.FPN(channels=3)
    features = {
        32: jnp.asarray(rng.normal(size=(1, 3, 4, 2)), jnp.float32),
        33: jnp.asarray(rng.normal(size=(1, 3, 4, 5)), jnp.float32),
    }
    variables = pyramid.init(jax.random.key(0), features)
    out = pyramid.apply(variables, features)
    assert {k: v.shape for k, v in out.items()} == {
        32: (1, 3, 4, 3),
        33: (1, 3, 4, 3),
        66: (1, 2, 2, 3),
    }
    # The coarser map is added as it is, cell by cell.
    changed = {**features, 33: features[33].at[0, 0, 0].add(1.0)}
    p = variables["params"]
    step = jnp.einsum("c,cd->d", jnp.ones(5), p["lateral33"]["kernel"][0, 0])
    delta = pyramid.apply(variables, changed)[32] - out[32]
    np.testing.assert_allclose(
        delta[0, 0, 0], step @ p["output32"]["kernel"][1, 1], atol=1e-5
    )
    np.testing.assert_allclose(delta[0, 2:], 0, atol=1e-6)


def test_anchors_with_torchvisions_strides_and_named_levels():
    anchors = models.build.anchor_pyramid(
        {32: (3, 4), 33: (3, 4), 66: (2, 2)},
        strides=(32, 32, 64),
        levels=(32, 33, 66),
        sizes=(32, 64, 128),
        aspect_ratios=(1.0,),
        rounding="torchvision",
    )
    centres = np.asarray(anchors[:, :2] + anchors[:, 2:]) / 2
    np.testing.assert_array_equal(centres[:12], centres[12:24])
    # 96 x 128 pixels over 2 x 2 cells: strides 48 and 64.
    np.testing.assert_array_equal(centres[24:], [[0, 0], [64, 0], [0, 48], [64, 48]])
    np.testing.assert_array_equal(
        np.asarray(anchors[:, 2] - anchors[:, 0]), [32] * 12 + [64] * 12 + [128] * 4
    )
    with pytest.raises(ValueError, match=r"anchors.levels=\(32,\): expected one key"):
        models.build_detector(
            num_classes=2,
            backbone=dict(name="mobilenet"),
            anchors=dict(strides=(32, 32), sizes=(32, 64), levels=(32,)),
        )
