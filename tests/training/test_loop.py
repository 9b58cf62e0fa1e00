import dataclasses
import json
import math
import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.data import named
from frcnn_jax.data.sources import shapes
from frcnn_jax.detector import Detector
from frcnn_jax.evaluation import files
from frcnn_jax.training import checkpoint, devices, evaluate, faults, loop, propose
from frcnn_jax.training import config as configs
from frcnn_jax.training.metrics import read
from frcnn_jax.types import Detections
from tests.training import small
from tests.training.runs import assert_same_runs, interrupt


@pytest.fixture(scope="module")
def config():
    return small.config(
        checkpoint_every=2, eval_every=2, total_steps=4, ema_decay=0.9, accumulate=1
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run from start to end, without interruption."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.train_and_evaluate(config, workdir)


def test_a_run_leaves_everything_behind(whole, config):
    workdir, result = whole
    assert {"AP", "AP50", "AR100"} <= set(result)
    assert [p.name for p in sorted(checkpoint.folder(workdir).iterdir())][-1] == "4"
    assert json.loads((workdir / "config.json").read_text())["total_steps"] == 4
    annotations = files.read_annotations(workdir / "annotations_val_0-3.json")
    assert len(annotations["images"]) == 3
    files.read_detections(workdir / "detections_val_0-3.json", annotations)
    rows = read(workdir / "metrics.jsonl")
    assert [r["step"] for r in rows if r["group"] == "train"] == [1, 2, 3, 4]
    assert [r["step"] for r in rows if r["group"] == "eval"] == [2, 4]
    losses = {"rpn_cls", "rpn_box", "roi_cls", "roi_box", "total"}
    shares = {"roi_positive", "fg_accuracy"}
    norms = {f"{n}_norm_{p}" for n in ("grad", "update") for p in PARTS}
    train, evaluated = (
        next(r for r in rows[1:] if r["group"] == g) for g in ("train", "eval")
    )
    assert losses | shares | norms | {"step_seconds", "waiting"} <= set(train)
    assert losses | shares | {"proposal_AR20", "AP"} <= set(evaluated)
    assert losses <= set(result)
    assert all(math.isfinite(train[n]) for n in losses | shares | norms)


PARTS = ("backbone", "fpn", "rpn_head", "box_head")


def test_resumed_run_equals_the_uninterrupted_one(whole, config, tmp_path, monkeypatch):
    interrupt(monkeypatch, config, tmp_path, batch=6)
    loop.train_and_evaluate(config, tmp_path)
    assert_same_runs(whole[0], tmp_path)


@pytest.mark.parametrize(
    "moment", [pytest.param("step", marks=pytest.mark.slow), "evaluation"]
)
def test_sigterm_saves_and_the_next_start_goes_on(
    moment, whole, config, tmp_path, monkeypatch
):
    shard, calls = devices.shard, []
    when, saved = {"step": (1, "1"), "evaluation": (3, "2")}[moment]

    def signalled(batch):
        calls.append(batch)
        if len(calls) == when:
            os.kill(os.getpid(), signal.SIGTERM)
        return shard(batch)

    with monkeypatch.context() as patch:
        patch.setattr(devices, "shard", signalled)
        with pytest.raises(SystemExit) as info:
            loop.train_and_evaluate(config, tmp_path)
    assert info.value.code == 143
    last = checkpoint.find(tmp_path / "last")
    assert last.name == saved and not checkpoint.read_meta(last).metrics
    loop.train_and_evaluate(config, tmp_path)
    assert_same_runs(whole[0], tmp_path)


def test_saved_is_the_iterator_of_the_batch_consumed(whole, config):
    """Whatever has been made ahead: the state of step k gives batch k + 1."""
    data = evaluate.build_data(configs.check(config))
    for step in (2, 4):
        batches, fresh = data.train_batches(), data.train_batches()
        meta = checkpoint.read_meta(checkpoint.folder(whole[0]) / str(step))
        batches.set_state(meta.data)
        expected = [next(fresh) for _ in range(step + 1)][-1]
        small.assert_trees_equal(next(batches), expected)


def test_training_without_evaluation(whole, config, tmp_path):
    alone = config.copy_and_resolve_references()
    alone.data.eval_split = ""
    assert loop.train_and_evaluate(alone, tmp_path) == {}
    rows = read(tmp_path / "metrics.jsonl")
    assert {r["group"] for r in rows} == {"train"}
    last = checkpoint.find(tmp_path)
    assert last.name == "4" and not checkpoint.read_meta(last).metrics
    small.assert_trees_equal(
        checkpoint.read_arrays(last, "model"),
        checkpoint.read_arrays(checkpoint.find(whole[0] / "last"), "model"),
    )
    with pytest.raises(ValueError, match="data.eval_split is empty.*--split=NAME"):
        evaluate.build_eval_data(configs.check(alone))


def test_nothing_to_learn_from_is_said_at_once(config, tmp_path):
    empty = config.copy_and_resolve_references()
    empty.data.train_split = "train[:0]"
    with pytest.raises(ValueError, match="train.*no image"):
        loop.train_and_evaluate(empty, tmp_path)


def test_finished_run_returns_its_result_again(whole, config):
    workdir, result = whole
    assert loop.train_and_evaluate(config, workdir) == pytest.approx(result)


def test_resuming_with_another_configuration_is_refused(whole, config):
    config = config.copy_and_resolve_references()
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match="learning_rate: 0.02 -> 0.5"):
        loop.train_and_evaluate(config, whole[0])
    loop.train_and_evaluate(config, whole[0], allow_changes=True)


def test_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.optimizer.learning_rate = 1e20
    with pytest.raises(
        FloatingPointError, match="not finite at step .*roi_cls.*last good .*none"
    ):
        loop.train_and_evaluate(config, tmp_path)
    (kept,) = tmp_path.glob("not_finite_*.npz")
    batch, step = faults.load_batch(kept)
    assert kept.name == f"not_finite_{step}.npz" and batch.image.shape[0] == 2
    assert not any(checkpoint.folder(tmp_path).iterdir())


def test_other_classes_in_the_same_folder_are_refused(whole, config, monkeypatch):
    workdir, _ = whole
    load = shapes.load
    other = lambda **kw: dataclasses.replace(load(**kw), classes=tuple("abcd"))  # noqa: E731
    monkeypatch.setattr(shapes, "load", other)
    with pytest.raises(ValueError, match="was trained on classes .*another --workdir"):
        loop.train_and_evaluate(config, workdir)


def test_evaluating_on_other_classes_is_refused(whole, tmp_path, monkeypatch):
    load = shapes.load
    other = lambda **kw: dataclasses.replace(load(**kw), classes=tuple("abcd"))  # noqa: E731
    monkeypatch.setattr(shapes, "load", other)
    with pytest.raises(ValueError, match="knows the classes .*circle.*the data has"):
        evaluate.evaluate_checkpoint(whole[0], tmp_path)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"data.shrt_side": 64}, ValueError, "shrt_side"),
        ({"model.backbone.name": "resnext"}, ValueError, "resnext.*resnet"),
        ({"model.backbone.widhts": (8, 8)}, TypeError, "widhts"),
        ({"rpn_targets.fg_iuo": 0.7}, TypeError, "fg_iuo"),
        ({"proposals.train.pre_nmss": 7}, TypeError, "pre_nmss"),
        ({"optimizer.momentun": 0.9}, TypeError, "momentun"),
        ({"batch_size": 3}, ValueError, "batch_size=3 .* 2 devices: use 2 or 4"),
        ({"data.name": "shape"}, ValueError, "'shape'.*shapes"),
        ({"init_from": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"model.backbone.pretrained": "no.npz"}, FileNotFoundError, "no.npz"),
        ({"frozen": ("backbon",)}, ValueError, "backbon"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_mistakes_in_the_configuration_are_named(change, error, message, tmp_path):
    config = small.config()
    for name, value in change.items():
        *groups, leaf = name.split(".")
        group = config
        for g in groups:
            group = group[g]
        group[leaf] = value
    with pytest.raises(error, match=message):
        loop.train_and_evaluate(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [shapes.CLASSES, ("thing",)])
def test_fine_tuning_starts_from_the_weights_of_the_run(
    classes, whole, config, tmp_path, caplog, monkeypatch
):
    """A step that learns nothing leaves them; other classes make two layers fresh."""
    load, step = shapes.load, lambda state: state._replace(step=state.step + 1)
    monkeypatch.setattr(loop, "train_step", lambda state, *_, **__: (step(state), LOSS))
    monkeypatch.setattr(loop, "validate_step", found_nothing)
    monkeypatch.setattr(shapes, "load", lambda **kw: with_classes(load(**kw), classes))
    config = config.copy_and_resolve_references()
    config.init_from, config.total_steps = str(whole[0]), 1
    with caplog.at_level("INFO", logger="frcnn_jax"):
        loop.train_and_evaluate(config, tmp_path)
    source = checkpoint.find(whole[0])
    before, after = (
        checkpoint.read_variables(where)["params"]
        for where in (source, checkpoint.find(tmp_path))
    )
    fresh: Any = "nothing"
    if len(classes) == 1:
        fresh = [
            f"params/box_head/{layer}/{leaf}"
            for layer in ("class_deltas", "class_logits")
            for leaf in ("bias", "kernel")
        ]
        for layer, columns in (("class_logits", 2), ("class_deltas", 4)):
            before["box_head"].pop(layer)
            kernel = after["box_head"].pop(layer)["kernel"]
            assert kernel.shape[-1] == columns and np.ptp(kernel) > 0
    assert f"initialised from {source}, but for {fresh}" in caplog.text
    small.assert_trees_equal(before, after)
    assert any(leaf.any() for leaf in jax.tree.leaves(after))


LOSS = dict(total=np.float32(0))


def found_nothing(variables, batch, key, **_):
    b, n = batch.image.shape[0], 3
    boxes, zeros = jnp.zeros((b, n, 4)), jnp.zeros((b, n))
    found = Detections(boxes, zeros, zeros.astype(int), zeros.astype(bool))
    names = ("images", "objects", "sampled", "positive", "correct")
    return found, dict.fromkeys(names, jnp.zeros(()))


def with_classes(source, classes):
    """Every object is of one of the first `classes`."""
    last = np.int32(len(classes))
    examples = [e._replace(classes=np.minimum(e.classes, last)) for e in source]
    return dataclasses.replace(
        source, examples=examples, classes=classes, category_ids=()
    )


@pytest.mark.slow
def test_no_step_compiles_what_the_first_has_compiled(tmp_path, monkeypatch):
    """Neither in a fresh run nor in a resumed one."""
    compiled: list[list[str]] = []  # names of programs, by step
    shard = devices.shard

    def marked(batch):  # before every step
        compiled.append([])
        return shard(batch)

    def listener(event, *_, fun_name="", **__):
        if "backend_compile" in event and compiled:
            compiled[-1].append(fun_name)

    monkeypatch.setattr(devices, "shard", marked)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for steps in (6, 12):  # the last one saves, and Orbax compiles too
            config = small.config(
                total_steps=steps, eval_every=steps, checkpoint_every=steps
            )
            compiled.clear()
            loop.train_and_evaluate(config, tmp_path, allow_changes=True)
            first, *rest = compiled[:5]
            assert len(first) == 1  # the step itself
            assert not any(first[0] in later for later in rest)
            assert not any(rest[1:])  # a first line of progress has its own in step 2
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.slow
def test_a_picture_of_more_pixels_has_larger_boxes(whole):
    """Pixels repeated 2 or 3 times: what is resized for the network is the same.

    But for `data.reduced`, whose means of 2x2 pixels cut those of three apart.
    """
    where = checkpoint.find(whole[0])
    model, variables, meta = checkpoint.load_model(where)
    # The parameters, not their mean, whose scores are all but equal after 4 steps.
    variables["params"] = checkpoint.read_arrays(where, "model")["params"]
    meta.config.postprocess.score = 0.01
    meta.config.data.reduced = False
    detector = Detector(model, variables, meta, batch_size=2)
    image = shapes.load(split="val", size=64)[0].image
    images = [image.repeat(n, 0).repeat(n, 1) for n in (1, 2, 3)]
    found = detector(images)
    assert found.valid[0].any()
    for i, n in enumerate((1, 2, 3)):
        np.testing.assert_allclose(
            found.boxes[i], n * found.boxes[0], rtol=1e-4, atol=1e-3
        )
        np.testing.assert_allclose(found.scores[i], found.scores[0], rtol=1e-4)


def test_any_batch_size_and_the_detector_find_the_same(whole, tmp_path):
    where = checkpoint.folder(whole[0]) / "4"
    found = {}
    for batch_size in (2, 4):  # three images: the last batch is filled up
        annotations, found[batch_size], *_ = evaluate.evaluate_checkpoint(
            where,
            tmp_path,
            changes=[f"eval_batch_size={batch_size}", "postprocess.score=0.01"],
            pictures=1,
        )
    ids = [image["id"] for image in annotations["images"]]
    assert len(ids) == 3 and {d["image_id"] for d in found[2]} == set(ids)
    (picture,) = tmp_path.glob("pictures_*/0000.jpg")
    assert picture.stat().st_size > 1000

    model, variables, meta = checkpoint.load_model(where)
    meta.config.postprocess.score = 0.01
    detector = Detector(model, variables, meta, batch_size=2)
    source = named.load_source("shapes", split="val[:3]", size=64)
    detections = detector([source[i].image for i in range(3)])
    single = []
    for i, image_id in enumerate(ids):
        one = type(detections)(*(field[i] for field in detections))
        size = source[i].image.shape[:2]
        single += files.to_results(one, image_id, size, size, detector.category_ids)

    for other in (found[4], single):
        assert len(found[2]) == len(other)
        for x, y in zip(found[2], other, strict=True):
            assert x["image_id"] == y["image_id"]
            assert x["category_id"] == y["category_id"]
            np.testing.assert_allclose(x["bbox"], y["bbox"], atol=1e-2)
            np.testing.assert_allclose(x["score"], y["score"], atol=1e-5)


def test_the_rpn_of_a_run_proposes_in_pixels_of_the_images_on_disk(whole):
    source, found = propose.rpn_of_checkpoint(
        whole[0], changes=["proposals.eval.post_nms=7"]
    )
    assert list(found) == [str(source[i].image_id) for i in range(3)]
    for objects, boxes in propose.with_objects(source, found):
        assert 0 < len(boxes) <= 7 and objects.shape[1] == 4
        assert (boxes >= 0).all() and (boxes <= 64 + 1e-3).all()
    scores = found[str(source[0].image_id)].scores
    assert (np.diff(scores) <= 0).all() and (scores > 0).all()
    with pytest.raises(KeyError, match="no proposals for image.*make_proposals"):
        list(propose.with_objects(source, {}))


@pytest.mark.slow
def test_replay_tells_the_image_that_is_to_blame(whole, tmp_path):
    batch = small.batch(0)
    classes = batch.gt_classes.copy()
    classes[1] = 99  # that no class of the model is
    path = tmp_path / "not_finite_4.npz"
    faults.save_batch(path, batch._replace(gt_classes=classes), step=4)
    step, (good, bad) = faults.replay(path, whole[0])
    assert step == 4 and (good["index"], bad["index"]) == (10, 11)
    assert all(map(math.isfinite, good.values()))
    assert not all(map(math.isfinite, bad.values()))
    assert "nan" in faults.format_table([good, bad]).splitlines()[-1]
