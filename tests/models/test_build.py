"""Groups of keyword arguments that do not fit are named; what fits is found by name."""

import pytest

from frcnn_jax.models import build_backbone, build_detector
from tests.models.test_faster_rcnn import TINY, by_shape, images


@pytest.mark.parametrize(
    "group, key",
    [
        *(("backbone", "depht"), ("fpn", "chanels"), ("anchors", "size")),
        *(("rpn", "channel"), ("roi_align", "outputsize"), ("box_head", "width")),
    ],
)
def test_misspelt_key_is_named_with_its_group(group, key):
    config = {**TINY, group: {**TINY[group], key: 1}}
    with pytest.raises(TypeError, match=rf"(?s){group}.*unexpected \['{key}'\]"):
        build_detector(**config)


def test_unknown_group_is_named():
    with pytest.raises(TypeError, match="neck"):
        build_detector(**TINY, neck={})


@pytest.mark.parametrize(
    "name", ["resnett", "layers", "", "nowhere.at_all", ".resnet", "resnet.Backbone"]
)
def test_unknown_backbone_lists_what_there_is(name):
    with pytest.raises(ValueError) as error:
        build_backbone(name)
    assert f"backbone.name={name!r}" in str(error.value)
    listed = str(error.value)
    assert "'resnet'" in listed and "'tiny'" in listed and "'fpn'" not in listed


def test_unknown_box_head_lists_what_there_is():
    with pytest.raises(ValueError, match=r"box_head.name='tiny'.*'resnet'"):
        build_detector(**{**TINY, "box_head": dict(name="tiny")})


def test_own_backbone_by_dotted_path(tmp_path, monkeypatch):
    package = tmp_path / "someones"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "net.py").write_text(
        "from flax import linen as nn\n"
        "class Backbone(nn.Module):\n"
        "    @nn.compact\n"
        "    def __call__(self, images):\n"
        "        return {8: nn.Conv(4, (8, 8), (8, 8))(images)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = build_detector(
        num_classes=2,
        backbone=dict(name="someones.net", pretrained="file.npz"),
        anchors=dict(strides=(8,), sizes=(16.0,)),
        roi_align=dict(strides=(8,)),
    )
    (out, _, _), _ = by_shape(model, images(32, 32))
    assert out.logits.shape == (1, 4 * 4 * 3)


@pytest.mark.parametrize(
    "group, value, message",
    [
        ("rpn", dict(objectness="tanh"), "objectness='tanh'"),
        ("anchors", dict(strides=(4, 8), sizes=(8.0,)), "2 strides"),
        ("anchors", dict(strides=(8, 4), sizes=(8.0, 4.0)), "ascend"),
        ("anchors", dict(strides=(4, 8), sizes=(8.0, (4.0, 8.0))), r"\[3, 6\] anchors"),
        ("anchors", dict(strides=(4, 64), sizes=(8.0, 8.0)), r"no features.*\[64\]"),
        ("roi_align", dict(strides=(4, 32)), r"roi_align.strides=\(4, 32\).*\[32\]"),
    ],
)
def test_wrong_value_is_named(group, value, message):
    with pytest.raises(ValueError, match=message):
        by_shape(build_detector(**{**TINY, group: value}), images(32, 32))


def test_lists_serve_as_tuples():
    """As JSON gives them back; modules must stay hashable."""
    anchors = dict(strides=[4, 8, 16], sizes=[8.0, [16.0], 32.0])
    backbone = dict(name="tiny", widths=[8, 8], groups=4)
    model = build_detector(**{**TINY, "anchors": anchors, "backbone": backbone})
    assert hash(model) == hash(model)
    assert by_shape(model, images(32, 32))[0][0].anchors.shape[2] == 4
