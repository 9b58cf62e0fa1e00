"""A run written by commit 1ab75cd, before modules moved to other folders."""

import json
import pathlib
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from frcnn_jax.data import named
from frcnn_jax.models.box_head import BoxHead
from frcnn_jax.models.build import build_box_head
from frcnn_jax.training import checkpoint, evaluate
from frcnn_jax.training import config as configs
from frcnn_jax.training.optimizer import make_optimizer
from frcnn_jax.training.state import initial_state

RUN = pathlib.Path(__file__).parents[1] / "goldens" / "old_run"


def test_its_names_of_modules_are_those_of_before():
    config = checkpoint.read_meta(checkpoint.find(RUN)).config
    assert config.data.name == "frcnn_jax.data.shapes"
    assert config.model.box_head.name == "faster_rcnn"


def test_it_detects_what_the_code_of_before_did(tmp_path):
    named = ["data.name=frcnn_jax.data.shapes"]  # a dotted path is code to be named
    found = evaluate.evaluate_checkpoint(RUN, tmp_path, changes=named).detections
    expected = json.loads((RUN / "expected.json").read_text())
    assert len(found) == len(expected) > 5
    for a, b in zip(found, expected, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        np.testing.assert_allclose(a["bbox"], b["bbox"], atol=0.01)
        np.testing.assert_allclose(a["score"], b["score"], atol=1e-4)


def test_its_state_is_restored_whole(tmp_path):
    shutil.copytree(RUN / "checkpoints", tmp_path / "checkpoints")
    model, variables, meta = checkpoint.load_model(checkpoint.find(RUN))
    c = configs.check(meta.config)
    optimizer, _ = make_optimizer(c["total_steps"], c["batch_size"], **c["optimizer"])
    make = partial(initial_state, image_shape=(64, 64, 3), model=model)
    fresh = make(jax.random.key(0), optimizer=optimizer, variables=variables)
    writer = checkpoint.manager(tmp_path)
    state, meta = checkpoint.restore(writer, fresh)
    writer.close()
    assert int(state.step) == meta.step == 2
    moved = jax.tree.map(lambda x: bool(np.any(np.asarray(x))), state.opt_state)
    assert any(jax.tree.leaves(moved))  # the momentum, zero in a fresh state
    jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])


@pytest.mark.parametrize("name", ["faster_rcnn", "frcnn_jax.models.faster_rcnn"])
def test_box_heads_by_their_names_of_before(name):
    head = build_box_head(name, num_classes=2, widths=(8,))
    assert isinstance(head, BoxHead)


def test_sources_by_their_names_of_before():
    old, new = (
        named.load_source(name, split="val[:1]", size=64)
        for name in ("frcnn_jax.data.shapes", "shapes")
    )
    np.testing.assert_array_equal(old[0].boxes, new[0].boxes)
    with pytest.raises(ImportError):
        named.load_source("frcnn_jax.data.nothing", split="val")
