import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.training import arrays, checkpoint, devices
from frcnn_jax.training.optimizer import make_optimizer
from frcnn_jax.training.state import initial_state
from tests.training import small

CLASSES = ("circle", "square", "triangle")
META = dict(classes=CLASSES, category_ids=(1, 2, 7))


def make_state(config, *, num_classes=3, seed=0, ema=False):
    model = models.build_detector(num_classes=num_classes, **config.model.to_dict())
    optimizer, _ = make_optimizer(4, **config.optimizer.to_dict())
    make = partial(initial_state, image_shape=(*small.CANVAS, 3), model=model)
    state = make(jax.random.key(seed), optimizer=optimizer, ema=ema)
    return devices.replicated(state._replace(step=state.step + 5))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints at steps 5 (AP 0.5) to 8 (AP 0.2)."""
    workdir, config = tmp_path_factory.mktemp("run"), small.config()
    state = make_state(config)
    writer = checkpoint.manager(workdir)
    save = partial(checkpoint.save, writer, config=config, data={"next": 3}, **META)
    for more, ap in enumerate((0.5, 0.1, None, 0.2)):
        step = save(state._replace(step=state.step + more))
        if ap is not None:
            checkpoint.record(writer, step, {"AP": ap})
    writer.close()
    return workdir, config, state


def test_the_best_and_the_last_two_are_kept(saved):
    workdir, _, _ = saved
    steps = [p.name for p in checkpoint.folder(workdir).iterdir()]
    assert sorted(steps) == ["5", "7", "8"]
    assert checkpoint.find(workdir).name == "5"
    assert checkpoint.find(workdir / "best").name == "5"
    assert checkpoint.find(workdir, best=False).name == "8"
    assert checkpoint.find(workdir / "last").name == "8"
    assert checkpoint.find(workdir / "checkpoints" / "7").name == "7"


def test_restored_state_has_the_same_bits(saved):
    workdir, config, state = saved
    blank = make_state(config, seed=1)
    restored, meta = checkpoint.restore(checkpoint.manager(workdir), blank)
    small.assert_trees_equal(restored._replace(step=state.step), state)
    assert int(restored.step) == 8
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert meta.config.to_dict() == config.to_dict()
    assert meta.classes == CLASSES and meta.category_ids == (1, 2, 7)
    assert meta.data == {"next": 3} and meta.metrics == {"AP": 0.2}


def test_model_is_rebuilt_from_the_checkpoint_alone(saved):
    workdir, _, state = saved
    model, variables, meta = checkpoint.load_model(checkpoint.find(workdir))
    small.assert_trees_equal(variables["params"], state.params)
    assert model.box_head.num_classes == 3 and meta.step == 5


def test_half_written_checkpoint_is_not_found(saved, tmp_path):
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp" / "meta").mkdir(parents=True)
    (tmp_path / "checkpoints" / "8").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*scripts/train.py"):
        checkpoint.find(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda step: shutil.rmtree(step / "training"),
        lambda step: (step / "meta" / "metadata").write_text('{"format"'),
        lambda step: (step / "model" / "_METADATA").write_text("{"),
        lambda step: [cut(f) for f in (step / "model").glob("**/d/*")],
    ],
    ids=["part", "meta", "names", "arrays"],
)
# Orbax gives up at the first array; what reads the others finds nobody to tell.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_truncated_checkpoint_is_never_loaded(damage, saved, tmp_path):
    """And says what to do; once it is done, the one before is there."""
    workdir, config, state = saved
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "checkpoints" / "8")
    with pytest.raises(ValueError, match="8.* damaged or incomplete .*remove"):
        checkpoint.restore(checkpoint.manager(tmp_path), state)
    shutil.rmtree(tmp_path / "checkpoints" / "8")
    restored, _ = checkpoint.restore(checkpoint.manager(tmp_path), state)
    assert int(restored.step) == 7


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_loss_that_is_not_finite_names_the_checkpoint_to_go_on_from(saved):
    """The one of the step before holds the parameters that gave it."""
    writer = checkpoint.manager(saved[0])
    assert checkpoint.good_before(writer, 12).endswith(
        f"last good checkpoint: {checkpoint.folder(saved[0])}/8"
    )
    said = checkpoint.good_before(writer, 9)
    assert said.startswith("8 holds the parameters that gave this loss")
    assert said.endswith("/7")
    assert checkpoint.good_before(writer, 3).endswith("none yet")


def test_missing_checkpoint_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: expected a run's folder"):
        checkpoint.find(tmp_path / "nowhere")


def test_checkpoint_of_another_model_is_refused(saved):
    workdir, config, _ = saved
    other = small.config()
    other.model.fpn.channels = 12
    with pytest.raises(ValueError, match=r"fpn/.* has shape .*8.*expected .*12"):
        checkpoint.restore(checkpoint.manager(workdir), make_state(other))


def test_fine_tuning_keeps_all_but_the_class_dependent_layers(saved):
    workdir, config, state = saved
    source = checkpoint.read_variables(checkpoint.find(workdir))
    fresh = make_state(config, num_classes=5, seed=1)
    target = {"params": fresh.params, **fresh.model_state}
    merged, kept = arrays.fine_tune(source, target, where=workdir)
    assert sorted(kept) == [
        f"params/box_head/{layer}/{leaf}"
        for layer in ("class_deltas", "class_logits")
        for leaf in ("bias", "kernel")
    ]
    head = merged["params"].pop("box_head")
    assert head["class_logits"]["kernel"].shape[-1] == 6
    np.testing.assert_array_equal(
        head["fc1"]["kernel"], state.params["box_head"]["fc1"]["kernel"]
    )
    for part, tree in merged["params"].items():
        small.assert_trees_equal(tree, state.params[part])


def test_fast_rcnn_gives_all_but_the_rpn_to_faster_rcnn(saved):
    workdir, _, state = saved
    source = {"params": {k: v for k, v in state.params.items() if k != "rpn_head"}}
    target = {"params": jax.tree.map(np.zeros_like, state.params)}
    merged, kept = arrays.fine_tune(source, target, where=workdir)
    assert len(kept) == 6 and all(n.startswith("params/rpn_head/") for n in kept)
    assert not any(leaf.any() for leaf in jax.tree.leaves(merged["params"]["rpn_head"]))
    for part, tree in source["params"].items():
        small.assert_trees_equal(tree, merged["params"][part])
    with pytest.raises(ValueError, match="unexpected params/rpn_head"):
        arrays.fine_tune(target, source, where=workdir)


def test_fine_tuning_from_another_architecture_is_refused(saved):
    workdir, config, _ = saved
    source = checkpoint.read_variables(checkpoint.find(workdir))
    target = jax.tree.map(np.asarray, source)
    target["params"]["fpn2"] = target["params"].pop("fpn")
    with pytest.raises(
        ValueError, match=r"(?s)missing params/fpn2/.*unexpected params/fpn/"
    ):
        arrays.fine_tune(source, target, where=workdir)
    target["params"]["fpn"] = target["params"].pop("fpn2")
    target["params"]["rpn_head"]["conv"]["bias"] = np.zeros(9)
    with pytest.raises(
        ValueError, match=r"rpn_head/conv/bias has shape \(8,\), expected"
    ):
        arrays.fine_tune(source, target, where=workdir)


def test_unknown_format_is_refused(saved, tmp_path):
    workdir, _, _ = saved
    meta = json.loads((checkpoint.find(workdir) / "meta" / "metadata").read_text())
    other = tmp_path / "checkpoints" / "1" / "meta"
    other.mkdir(parents=True)
    (other / "metadata").write_text(json.dumps(dict(meta, format=99)))
    with pytest.raises(ValueError, match="checkpoint format 99, this version reads 1"):
        checkpoint.read_meta(other.parent)


def test_running_mean_is_restored_and_is_what_predicts(saved, tmp_path):
    _, config, _ = saved
    state = make_state(config, ema=True)
    mean = jax.tree.map(lambda x: x + 1, state.params)
    state = state._replace(ema_params=mean)
    writer = checkpoint.manager(tmp_path)
    checkpoint.save(writer, state, config=config, **META)
    writer.wait_until_finished()
    blank = make_state(config, seed=1, ema=True)
    restored, _ = checkpoint.restore(writer, blank)
    small.assert_trees_equal(restored, state)
    small.assert_trees_equal(
        checkpoint.load_model(checkpoint.find(tmp_path))[1]["params"], mean
    )
    with pytest.raises(ValueError, match="unexpected ema_params/.*"):
        checkpoint.restore(writer, blank._replace(ema_params=None))
    writer.close()
