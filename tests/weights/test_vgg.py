import jax
import numpy as np
import pytest

from frcnn_jax import models, weights
from frcnn_jax.models import vgg

# The convolutions of torchvision's `vgg16().features`, by position.
CONVS = dict(
    zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3")
        + ("4_1", "4_2", "4_3", "5_1", "5_2", "5_3"),
        strict=True,
    )
)
MODEL = dict(
    num_classes=2,
    backbone=dict(name="vgg"),
    anchors=dict(strides=(16,), sizes=(64.0,)),
    rpn=dict(channels=4),
    roi_pool={},
    box_head=dict(name="vgg", widths=(6, 5)),
)


@pytest.fixture(scope="module")
def variables():
    model = models.build_detector(**MODEL)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def arrays():
    found, channels = {}, 3
    widths = [w for w, count in vgg.STAGES for _ in range(count)]
    for at, width in zip(CONVS, widths, strict=True):
        shape = (width, channels, 3, 3)
        found[f"features.{at}.weight"] = np.arange(np.prod(shape)).reshape(shape) % 977
        found[f"features.{at}.bias"] = np.full(width, at)
        channels = width
    for at, shape in ((0, (6, 512 * 49)), (3, (5, 6)), (6, (10, 5))):
        rows = np.arange(np.prod(shape)).reshape(shape)
        found[f"classifier.{at}.weight"] = rows
        found[f"classifier.{at}.bias"] = np.full(shape[0], 100 + at)
    return {k: v.astype(np.float32) for k, v in found.items()}


def test_every_layer_finds_its_array(tmp_path, variables, arrays):
    np.savez(tmp_path / "vgg16.npz", **arrays)
    params = weights.load_backbone(tmp_path / "vgg16.npz", variables)["params"]
    for at, name in CONVS.items():
        layer, torch = (
            params["backbone"][f"conv{name}"],
            arrays[f"features.{at}.weight"],
        )
        assert (layer["bias"] == at).all()
        for y, x, i, o in ((0, 0, 0, 0), (2, 1, 2, 7), (1, 2, 1, 63)):
            assert layer["kernel"][y, x, i, o] == torch[o, i, y, x]
    fc6, fc7 = (params["box_head"][name] for name in ("fc6", "fc7"))
    torch = arrays["classifier.0.weight"]
    for y, x, c, o in ((0, 0, 0, 0), (6, 2, 511, 3), (1, 4, 17, 5)):
        assert fc6["kernel"][(y * 7 + x) * 512 + c, o] == torch[o, c * 49 + y * 7 + x]
    np.testing.assert_array_equal(fc7["kernel"], arrays["classifier.3.weight"].T)
    assert (fc6["bias"] == 100).all() and (fc7["bias"] == 103).all()
    for name in ("class_logits", "class_deltas"):
        assert not np.any(params["box_head"][name]["kernel"])


def test_what_is_missing_or_does_not_fit_is_named(tmp_path, variables, arrays):
    short = {k: v for k, v in arrays.items() if k != "features.28.bias"}
    short["features.0.weight"] = short["features.0.weight"][:, :2]
    np.savez(tmp_path / "short.npz", **short)
    with pytest.raises(ValueError, match=r"\(64, 2, 3, 3\).*features.28.bias"):
        weights.load_backbone(tmp_path / "short.npz", variables)


@pytest.mark.slow
def test_bgr_backbone_sees_the_channels_the_other_way_round():
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    rgb, bgr = vgg.Backbone(), vgg.Backbone(bgr=True)
    params = jax.jit(rgb.init)(jax.random.key(1), x)
    run = [jax.jit(model.apply)(params, x) for model in (rgb, bgr)]
    turned = jax.jit(rgb.apply)(params, x[..., ::-1])
    np.testing.assert_array_equal(run[1][16], turned[16])
    assert np.abs(run[0][16] - run[1][16]).max() > 0
