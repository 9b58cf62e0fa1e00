"""Every shipped experiment builds: keys are known, shapes fit, a step is traceable."""

import functools
import inspect
import json
import pathlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.data import augment, named, pipeline, recognise
from frcnn_jax.data.facts import Facts
from frcnn_jax.data.images import canvases, check_canvas
from frcnn_jax.data.sources import mix, records, shapes
from frcnn_jax.models import resnet
from frcnn_jax.training import config as configs
from frcnn_jax.training import recipe
from frcnn_jax.training.algorithms.faster_rcnn import rpn_proposals
from frcnn_jax.training.optimizer import make_optimizer, trainable_mask
from frcnn_jax.training.state import init_variables, initial_state
from frcnn_jax.training.step import predict_step, train_step
from frcnn_jax.types import Batch, Proposals

FOLDER = pathlib.Path(__file__).parents[1] / "experiments"
FILES = sorted(p.name for p in FOLDER.glob("*.py") if p.stem != "__init__")
# Arguments that make another network of an experiment.
NETWORKS = [
    ("coco_convnext_t_fpn.py", "cascade"),
    ("coco_swin_t_fpn.py", "cascade"),
    ("coco_vitdet_b.py", "cascade"),
    ("coco_vitdet_b.py", "dinov2"),
    ("coco_vitdet_b.py", "dinov2,cascade"),
    ("finetune.py", "cascade"),
]
SMALL = [(name, "runlocal") for name in FILES]
SMALL_NETWORKS = [(name, f"{arg},runlocal") for name, arg in NETWORKS]


def get_config(name, arg):
    module = configs.load_experiment(FOLDER / name)
    assert "scripts/train.py --config=experiments/" + name in module.__doc__
    config = module.get_config(arg)
    if any(recipe.is_open(config, leaf) for leaf in recipe.LEAVES):
        values, _ = recipe.choose(config.to_dict(), FACTS, recipe.device())
        recipe.fill(config, values)
    return configs.check(config)


FACTS = Facts(  # of a set of small photographs
    images=200,
    sizes=np.tile([[96, 128]], (200, 1)),
    boxes=np.tile(np.float32([[8, 8, 72, 72]]), (200, 1)),
    image=np.arange(200),
    classes=np.ones(200, int),
    slots=1,
    num_classes=4,
)


def bind_data(data):
    """TypeError for a key that neither the pipeline nor the data's source takes."""
    build = inspect.signature(pipeline.build)
    bound = build.bind(**data, batch_size=1, eval_batch_size=1, seed=0).arguments
    if data["name"] == recognise.AUTO:
        assert not set(data) - set(recognise.leaves(recognise.AUTO))
        return
    name, colon, dataset = data["name"].partition(":")
    module = named.find_source(name)
    source = dict(
        bound.get("source_kwargs", {}), **{"dataset": dataset} if colon else {}
    )
    inspect.signature(module.load).bind(split=data["train_split"], **source)
    change = inspect.signature(augment.augment)
    change.bind(
        *[None] * 3, canvas=0, short_side=0, max_side=0, **bound.get("augment") or {}
    )


def test_misspelt_data_keys_are_found():
    data = get_config("voc07_vgg16.py", None)["data"]
    bind_data(data)
    for wrong in ("flipp", "rot", "clases"):
        with pytest.raises(TypeError, match=wrong):
            bind_data({**data, wrong: 1})
    with pytest.raises(TypeError, match="split"):
        bind_data({k: v for k, v in data.items() if k != "eval_split"})
    with pytest.raises(TypeError, match="jiter"):
        bind_data({**data, "augment": dict(jiter=1)})


def prepare(name, arg, rois=None):
    """The configuration, its model, its step, and the shapes of a state and a batch.

    `rois`: the second stage takes so many an image.
    """
    c = get_config(name, arg)
    if rois:
        c["roi_targets"]["num_samples"] = rois
    model = models.build_detector(num_classes=4, **c["model"])
    optimizer, _ = make_optimizer(c["total_steps"], c["batch_size"], **c["optimizer"])
    canvas, *_ = canvases(c["data"]["canvas"])
    b, g = c["batch_size"], c["data"]["max_boxes"]
    image_shape = (*canvas, 3)
    variables = jax.eval_shape(
        partial(init_variables, image_shape=image_shape, model=model),
        jax.random.key(0),
    )
    trainable = trainable_mask(variables["params"], c["frozen"])
    make = partial(initial_state, model=model, optimizer=optimizer, trainable=trainable)
    state = jax.eval_shape(
        lambda variables: make(jax.random.key(0), image_shape, variables=variables),
        variables,
    )
    shape, proposals = jax.ShapeDtypeStruct, None
    if c["data"].get("proposals"):
        n = c["data"]["max_proposals"]
        proposals = Proposals(
            shape((b, n, 4), np.float32),
            shape((b, n), np.float32),
            shape((b, n), bool),
        )
    batch = Batch(
        image=shape((b, *canvas, 3), np.uint8),
        image_size=shape((b, 2), np.int32),
        original_size=shape((b, 2), np.int32),
        gt_boxes=shape((b, g, 4), np.float32),
        gt_classes=shape((b, g), np.int32),
        gt_valid=shape((b, g), bool),
        gt_ignore=shape((b, g), bool),
        index=shape((b,), np.int32),
        valid=shape((b,), bool),
        proposals=proposals,
    )
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        trainable=trainable,
        config=c,
        axis_name=None,
    )
    return c, model, step, state, batch


@pytest.mark.parametrize(
    "name, arg", [(n, None) for n in FILES] + NETWORKS + SMALL + SMALL_NETWORKS
)
def test_every_key_of_an_experiment_is_known(name, arg):
    c = get_config(name, arg)
    bind_data(c["data"])
    models.build_detector(num_classes=4, **c["model"])
    canvas, *_ = canvases(c["data"]["canvas"])
    check_canvas(c["data"]["short_side"], c["data"]["max_side"], canvas)


# Tracing takes five seconds each; the keys of all are tried above.
QUICK = ("shapes_demo.py", "coco_r50_fpn.py", "voc07_vgg16_fast_rcnn.py")


def whole_and_small():
    for name in FILES:
        marks = [] if name in QUICK else [pytest.mark.slow]
        yield pytest.param(name, None, marks=marks)
    for name, arg in NETWORKS + SMALL + SMALL_NETWORKS:
        yield pytest.param(name, arg, marks=pytest.mark.slow)


@pytest.mark.parametrize("name, arg", list(whole_and_small()))
def test_experiment_builds_and_a_step_keeps_its_shapes(name, arg):
    c, model, step, state, batch = prepare(name, arg)
    b = c["batch_size"]
    after, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert all(m.shape == () for m in metrics.values())
    found = jax.eval_shape(
        partial(predict_step, model=model, config=c),
        {"params": state.params, **state.model_state},
        batch,
    )
    n = c["postprocess"]["max_detections"]
    assert found.boxes.shape == (b, n, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name, arg", SMALL + SMALL_NETWORKS)
def test_a_step_of_the_small_form_runs(name, arg, rng, monkeypatch):
    """On noise with two objects an image: finite losses, and something has moved.

    Blocks of a ResNet's stage are alike: one stage has two here, the others one each.
    The test above traces the experiment's own form, with as many blocks and RoIs as it
    has.
    """
    monkeypatch.setitem(resnet.STAGES, 50, ((1, 1, 2, 1), True))
    c, _, step, state, batch = prepare(name, arg, rois=32)

    def draw(path, x):
        if jnp.issubdtype(x.dtype, jnp.floating):
            name = jax.tree_util.keystr(path)  # Adam's second moments stay zero
            kernel = name.startswith(".params") and "kernel" in name
            fan_in = np.prod(x.shape[:-1]) if kernel else 1
            noise = rng.normal(0, (1 / fan_in) ** 0.5, x.shape)
            return np.float32(noise if kernel else np.zeros(x.shape))
        return np.zeros(x.shape, x.dtype)

    state = jax.tree_util.tree_map_with_path(draw, state)
    state = state._replace(
        model_state=jax.tree.map(lambda x: x + 1, state.model_state),
        params=jax.tree_util.tree_map_with_path(
            lambda p, x: x + ("scale" in jax.tree_util.keystr(p)), state.params
        ),
    )
    b, h, w, _ = batch.image.shape
    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch)
    batch.gt_boxes[:, :2] = [[8, 8, w / 2, h / 2], [w / 4, h / 4, w - 8, h - 8]]
    batch.gt_valid[:, :2], batch.gt_classes[:, :2] = True, 1
    batch = batch._replace(
        image=rng.integers(0, 256, batch.image.shape, np.uint8),
        image_size=np.full((b, 2), (h, w), np.int32),
        index=np.arange(b, dtype=np.int32),
    )
    if batch.proposals is not None:
        batch.proposals.boxes[:, :2] = batch.gt_boxes[:, :2] + 4
        batch.proposals.valid[:, :2] = True
    quick = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    run = jax.jit(step).lower(state, batch, jax.random.key(0))
    after, metrics = run.compile(compiler_options=quick)(
        state, batch, jax.random.key(0)
    )
    assert all(np.isfinite(m) for m in metrics.values())
    assert metrics["update_norm"] > 0 and after.step == 1


@pytest.mark.parametrize("name", [f for f in FILES if f.startswith("voc07_")])
def test_voc_0712_adds_the_images_of_2012(name):
    c, more = (get_config(name, arg)["data"] for arg in (None, "0712"))
    assert c["train_split"] == "2007_trainval"
    assert more["train_split"] == "2007_trainval+2012_trainval"
    assert c["eval_split"] == more["eval_split"] == "2007_test"


def test_recipes_of_detectron2_change_what_they_say():
    fpn, x101, c4, dc5, voc = (
        get_config(f"{name}.py", arg)
        for name, arg in (
            ("coco_r50_fpn", None),
            ("coco_r50_fpn", "x101,schedule=3x"),
            ("coco_r50_c4", "depth=101"),
            ("coco_r50_dc5", "schedule=3x"),
            ("voc0712_r50_c4", None),
        )
    )
    assert (fpn["total_steps"], x101["total_steps"]) == (90_000, 270_000)
    assert x101["optimizer"]["boundaries"] == (210_000, 250_000)
    backbone = x101["model"]["backbone"]
    assert (backbone["depth"], backbone["groups"], backbone["group_width"]) == (
        *(101, 32, 8),
    )
    assert "stride_in_1x1" not in backbone  # the default is in the 3x3
    assert fpn["model"]["backbone"]["stride_in_1x1"]
    # 103.53, 116.28, 123.675 and 57.375, 57.12, 58.395 of BGR, as RGB.
    assert x101["model"]["pixel_std"] == (58.395, 57.12, 57.375)
    for c in (c4, dc5, voc):
        assert c["proposals"]["train"] == dict(
            pre_nms=12000,
            post_nms=2000,
            nms_iou=0.7,
            stds=(1.0,) * 4,
            exclude_padding=False,
        )
        assert c["proposals"]["eval"]["pre_nms"] == 6000
    assert c4["model"]["box_head"]["depth"] == c4["model"]["backbone"]["depth"] == 101
    assert voc["data"]["augment"]["short_sides"] == tuple(range(480, 801, 32))
    with pytest.raises(ValueError, match="schedule=2x: expected 1x or 3x"):
        get_config("coco_r50_fpn.py", "schedule=2x")


def test_voc_of_tfds_trains_on_both_years_and_tests_on_2007(tmp_path):
    """Small sets under TFDS's names, written without TensorFlow."""
    for year in ("2007", "2012"):
        drawn = {
            split: shapes.load(split="val", num_images=n, size=64)
            for split, n in (("train", 3), ("validation", 2), ("test", 1))
        }
        records.write(drawn, tmp_path / year, name="shapes")
    c = get_config("voc07_vgg16.py", "tfds")["data"]
    assert (c["name"], c["train_split"]) == ("tfds:voc/2007", "train+validation")
    c = get_config("voc07_vgg16.py", "tfds,0712")["data"]
    sets = {
        year: dict(group, name="tfds", root=str(tmp_path / year))
        for year, group in c["datasets"].items()
    }
    train, test = (
        mix.load(split=c[split], datasets=sets)
        for split in ("train_split", "eval_split")
    )
    assert [example.image_id.split("/")[0] for example in train] == 5 * ["2007"] + 5 * [
        "2012"
    ]
    assert [example.image_id.split("/")[0] for example in test] == ["2007"]


def test_alternating_steps_train_one_half_each():
    for step in (1, 2, 3, 4):
        c = get_config("voc07_vgg16_alternating.py", f"step={step},runlocal")
        weights, frozen = c["loss_weights"], c["frozen"]
        of_rpn, of_detector = step in (1, 3), step in (2, 4)
        model = models.build_detector(num_classes=4, **c["model"])
        assert isinstance(model, models.FasterRCNN) == (step != 2)
        if step != 2:
            assert (weights["rpn_cls"], weights["rpn_box"] > 0) == (of_rpn, of_rpn)
        assert weights["roi_cls"] == weights["roi_box"] == of_detector
        assert ("backbone" in frozen) == (step in (3, 4))
        assert ("box_head" in frozen) == of_rpn
        assert ("rpn_head" in frozen) == (step == 4)


def test_both_forms_of_eq_1_nearly_agree():
    """The paper's lambda / N_reg = 10 / 2394 stands beside practice's 1 / 256."""
    paper, practice = (get_config("voc07_vgg16.py", arg) for arg in (None, "practice"))
    assert paper["rpn_loss"]["box_normalizer"] == 38 * 63
    weight = paper["loss_weights"]["rpn_box"] / paper["rpn_loss"]["box_normalizer"]
    assert weight == pytest.approx(1 / 256, rel=0.1)
    assert "box_normalizer" not in practice["rpn_loss"]
    assert practice["loss_weights"]["rpn_box"] == 1


def sweeps():
    for name in FILES:
        module = configs.load_experiment(FOLDER / name)
        for sweep in vars(module):
            if sweep.startswith("sweep_"):
                yield name, sweep


@pytest.mark.parametrize("name, sweep", list(sweeps()))
def test_every_row_of_a_sweep_is_another_network_or_setting_that_builds(name, sweep):
    """Its leaves exist, groups are keyword arguments, a prediction is traceable."""
    module = configs.load_experiment(FOLDER / name)
    seen = []
    for changes in getattr(module, sweep)():
        c = module.get_config("runlocal")
        configs.change(c, [f"{k}={v}" for k, v in changes.items()])
        c = configs.check(c)
        assert changes and c not in seen
        seen.append(c)
        for group in c["proposals"].values():
            check_proposals(json.dumps([c["model"], c["data"]["canvas"], group]))
    assert len(seen) > 1


@functools.cache  # tracing takes a second, and most rows differ in one thing only
def check_proposals(text):
    values: Any = configs.from_json({"all": json.loads(text)})
    model, canvas, group = values["all"]
    out, size = rpn_output(json.dumps([model, canvas]))
    levels = out.level_sizes
    found = jax.eval_shape(
        lambda out: rpn_proposals(out._replace(level_sizes=levels), size, **group),
        out._replace(level_sizes=()),
    )
    assert found.boxes.shape == (1, group["post_nms"], 4)


@functools.cache
def rpn_output(text):
    """The shapes of what an RPN says of one image, and the image's size."""
    values: Any = configs.from_json({"all": json.loads(text)})
    group, canvas = values["all"]
    model = models.build_detector(num_classes=4, **group)
    canvas, *_ = canvases(canvas)
    levels = []

    def run(image):
        variables = model.init(jax.random.key(0), image)
        out: Any = model.apply(variables, image, method="rpn")
        levels.append(out.level_sizes)
        return out._replace(level_sizes=())

    out = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *canvas, 3), np.float32))
    return out._replace(level_sizes=levels[0]), jnp.array([canvas])
