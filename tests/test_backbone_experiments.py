"""The experiments of ConvNeXt, Swin and ViT, from the first step to exported files."""

from typing import Any

import jax
import numpy as np
import pytest

from frcnn_jax import detector, export, models
from frcnn_jax.training import config as configs
from frcnn_jax.training import loop
from frcnn_jax.training.optimizer import path_name, scale_by_layer
from tests.test_experiments import FOLDER, get_config
from tests.training import small
from tests.training.runs import assert_same_runs, interrupt


@pytest.mark.parametrize(
    "name, arg",
    [
        ("coco_convnext_t_fpn.py", None),
        ("coco_convnext_t_fpn.py", "size=b,cascade"),
        ("coco_vitdet_b.py", None),
    ],
)
def test_rates_by_layer_name_every_parameter_of_the_backbone_once(name, arg):
    """But for the norms of ConvNeXt's outputs, which no classifier has."""
    c = get_config(name, arg)
    model = models.build_backbone(**c["model"]["backbone"])
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rates = jax.tree.map(lambda x: np.ones((), np.float32), {"backbone": params})
    layers, decay = c["optimizer"]["layers"], c["optimizer"]["layer_decay"]
    update = scale_by_layer(layers, decay)
    rates, _ = update.update(rates, update.init(rates))
    prefixes = [prefix for layer in layers for prefix in layer]
    for path, rate in jax.tree_util.tree_leaves_with_path(rates):
        found = [p for p in prefixes if (path_name(path) + "/").startswith(p + "/")]
        assert len(found) == ("out_norm" not in path_name(path)), path
        assert (rate < 1) == bool(found)
    found = sorted({float(x) for x in jax.tree.leaves(rates)} - {1.0})
    assert found == pytest.approx([decay**i for i in range(len(layers), 0, -1)])


def test_cascades_of_the_newest_backbones_are_those_of_the_peers():
    convnext, swin, vitdet, plain = (
        get_config(f"coco_{name}.py", arg)
        for name, arg in (
            ("convnext_t_fpn", "cascade"),
            ("swin_t_fpn", "cascade,schedule=3x"),
            ("vitdet_b", "cascade"),
            ("vitdet_b", None),
        )
    )
    for c in (convnext, swin):  # 1, 1/2, 1/4 times GIoU's 10
        assert [c["loss_weights"][f"roi_box_{i}"] for i in (1, 2, 3)] == [10, 5, 2.5]
        assert c["roi_box_loss"]["name"] == "giou" and "beta" not in c["detector_loss"]
        assert c["proposals"]["train"]["post_nms"] == 2000
    optimizer = convnext["optimizer"]
    assert (optimizer["learning_rate"], optimizer["layer_decay"]) == (2e-4, 0.7)
    assert swin["total_steps"] == 36 * 7329
    assert vitdet["cascade"]["feature_gradient"] == pytest.approx(1 / 3)
    assert vitdet["postprocess"]["stds"] == (1 / 30, 1 / 30, 1 / 15, 1 / 15)
    same = ("optimizer", "proposals", "data", "total_steps", "roi_targets")
    assert all(vitdet[group] == plain[group] for group in same)


# Runs -------------------------------------------------------------------------------

RUNS = {
    "convnext": ("coco_convnext_t_fpn.py", "runlocal,cascade"),
    "swin": ("coco_swin_t_fpn.py", "runlocal"),
    "vitdet": ("coco_vitdet_b.py", "runlocal"),
    "dinov2": ("coco_vitdet_b.py", "runlocal,dinov2,cascade"),
}
WIDTHS = dict(convnext=8, swin=32, vitdet=16, dinov2=16)
SIDE = 96


def tiny(name):
    """The experiment on generated shapes of 96 pixels, a few channels wide.

    Its optimizer, rates by layer, frozen parts, losses and jitter are its own.
    """
    file, arg = RUNS[name]
    c: Any = configs.load_experiment(FOLDER / file).get_config(arg)
    jitter = {k: v for k, v in c.data.augment.items() if k == "jitter"}
    c.data = small.config().data
    c.data.update(size=SIDE, short_side=SIDE, max_side=SIDE, canvas=(SIDE, SIDE))
    c.data.augment = jitter
    c.model.backbone.width = WIDTHS[name]
    if "fpn" in c.model:
        c.model.fpn.channels = 8
    if "box_head" not in c.model:
        c.model.box_head = {}
    elif "convs" in c.model.box_head:
        c.model.box_head.convs = (8,)
    c.model.box_head.widths = (16,)
    if "rpn" in c.model:
        c.model.rpn.channels = 8
    c.rpn_targets.num_samples = c.roi_targets.num_samples = 16
    for part in c.proposals.values():
        part.update(pre_nms=50, post_nms=20)
    c.postprocess.update(score=0.0, max_detections=10)
    c.optimizer.update(warmup_steps=0, reference_batch=0)
    c.update(total_steps=4, eval_every=4, checkpoint_every=2, log_every=1)
    return c


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """Its configuration and the folder of four steps without an interruption."""
    config = tiny(request.param)
    workdir = tmp_path_factory.mktemp(request.param)
    loop.train_and_evaluate(config, workdir)
    return config, workdir


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    config, whole = run
    interrupt(monkeypatch, config, tmp_path, batch=4)
    loop.train_and_evaluate(config, tmp_path)
    assert_same_runs(whole, tmp_path)


@pytest.mark.slow
def test_the_exported_program_detects_what_the_checkpoint_does(run):
    """Two images in a batch of StableHLO; the second has columns of padding."""
    found = detector.load(run[1], batch_size=2)
    rng = np.random.default_rng(0)
    sizes = np.int32([(SIDE, SIDE), (SIDE, 70)])
    image = rng.integers(0, 256, (2, 12, 12, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    image[1, :, 70:] = 0
    expected = found([x[:h, :w] for x, (h, w) in zip(image, sizes, strict=True)])
    assert (expected.valid.sum(1) > 3).all()
    assert np.isfinite(expected.boxes).all() and (expected.boxes <= SIDE).all()
    parts = found.model, found.variables, found.config.to_dict()
    exported = export.export_batch(*parts, platforms=("cpu",))
    program = jax.jit(jax.export.deserialize(exported.serialize()).call)
    outputs = program(image, sizes)
    np.testing.assert_array_equal(outputs["valid"], expected.valid)
    np.testing.assert_array_equal(outputs["classes"], expected.classes)
    np.testing.assert_allclose(outputs["scores"], expected.scores, atol=1e-5)
    np.testing.assert_allclose(outputs["boxes"], expected.boxes, atol=5e-3)
