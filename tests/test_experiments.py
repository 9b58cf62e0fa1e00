"""Every shipped experiment builds: keys are known, shapes fit, a step is traceable."""

import importlib.util
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.data import pipeline
from frcnn_jax.training import config as configs
from frcnn_jax.training.optimizer import make_optimizer, trainable_mask
from frcnn_jax.training.step import initial_state, predict_step, train_step
from frcnn_jax.types import Batch

FOLDER = pathlib.Path(__file__).parents[1] / "experiments"
FILES = sorted(
    p.name for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "common")
)


def get_config(name, arg):
    spec = importlib.util.spec_from_file_location("experiment", FOLDER / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "scripts/train.py --config=experiments/" + name in module.__doc__
    return configs.check(module.get_config(arg))


@pytest.mark.parametrize("arg", [None, "runlocal"])
@pytest.mark.parametrize("name", FILES)
def test_experiment_builds_and_a_step_keeps_its_shapes(name, arg):
    c = get_config(name, arg)
    model = models.build_detector(num_classes=4, **c["model"])
    optimizer, _ = make_optimizer(c["total_steps"], **c["optimizer"])
    canvas, b, g = c["data"]["canvas"], c["batch_size"], c["data"]["max_boxes"]
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *canvas, 3)))[
        "params"
    ]
    trainable = trainable_mask(params, c["frozen"])
    state = jax.eval_shape(
        partial(
            initial_state,
            image_shape=(*canvas, 3),
            model=model,
            optimizer=optimizer,
            trainable=trainable,
        ),
        jax.random.key(0),
    )
    shape = jax.ShapeDtypeStruct
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
    )
    after, metrics = jax.eval_shape(
        partial(
            train_step,
            model=model,
            optimizer=optimizer,
            trainable=trainable,
            config=c,
            axis_name=None,
        ),
        state,
        batch,
        jax.random.key(0),
    )
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
    pipeline.check_canvas(c["data"]["short_side"], c["data"]["max_side"], canvas)
