"""The whole training step and prediction in the modes that JAX has for programs."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from frcnn_jax import models
from frcnn_jax.training.optimizer import trainable_mask
from frcnn_jax.training.state import eval_variables, initial_state
from frcnn_jax.training.step import predict_step, train_step
from tests.models.test_extents import BACKBONES, SLOW
from tests.modes.test_modes import assert_same
from tests.test_cascade import config as cascade_config
from tests.training import small
from tests.training.test_step import fast_config, with_proposals

KEY = jax.random.key(0)


@functools.cache
def parts(accumulate=1):
    c = small.config(accumulate=accumulate).to_dict()
    model = models.build_detector(num_classes=3, **c["model"])
    optimizer = optax.sgd(0.05, momentum=0.9)
    state = initial_state(KEY, (*small.CANVAS, 3), model=model, optimizer=optimizer)
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        trainable=trainable_mask(state.params),
        config=c,
    )
    predict = partial(predict_step, model=model, config=c)
    return state, step, predict


def batch():
    return jax.tree.map(jnp.asarray, small.batch(0, images=4))


@functools.cache
def plain():
    state, step, predict = parts()
    after, metrics = jax.jit(partial(step, axis_name=None))(state, batch(), KEY)
    return (after, metrics), jax.jit(predict)(eval_variables(state), batch())


def both(wrap=lambda f: f):
    """The step and the prediction under `jit`, each wrapped."""
    state, step, predict = parts()
    return (
        jax.jit(wrap(partial(step, axis_name=None)))(state, batch(), KEY),
        jax.jit(wrap(predict))(eval_variables(state), batch()),
    )


def close(found, expected):
    assert_same(jax.device_get(found), jax.device_get(expected), 1e-5)


def scan(f):
    def run(*args):
        more = jax.tree.map(lambda x: jnp.stack([x]), args)
        out = jax.lax.scan(lambda _, x: (None, f(*x)), None, more)[1]
        return jax.tree.map(lambda x: x[0], out)

    return run


def vmap(f):
    def run(*args):
        more = jax.tree.map(lambda x: jnp.stack([x, x]), args)
        return jax.tree.map(lambda x: x[1], jax.vmap(f)(*more))

    return run


CONTEXTS = dict(
    x64=jax.enable_x64,
    strict=partial(jax.numpy_dtype_promotion, "strict"),
    debug_nans=partial(jax.debug_nans, True),
    leaked_tracers=jax.checking_leaks,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTEXTS)
def test_steps_under(name):
    expected = plain()
    with CONTEXTS[name]():
        found = both()
    close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [scan, vmap, jax.checkpoint])
def test_steps_within(wrap):
    close(both(wrap), plain())


@pytest.mark.slow
def test_steps_take_numpy():
    state, step, predict = parts()
    arrays = jax.tree.map(np.asarray, (state, small.batch(0, images=4)))
    found = jax.jit(partial(step, axis_name=None))(*arrays, KEY)
    close(found, plain()[0])
    close(jax.jit(predict)(eval_variables(arrays[0]), arrays[1]), plain()[1])


@pytest.mark.slow
def test_steps_without_slots():
    state, step, predict = parts()
    none = batch()
    none = none._replace(
        **{name: getattr(none, name)[:, :0] for name in none._fields if "gt_" in name}
    )
    _, metrics = jax.jit(partial(step, axis_name=None))(state, none, KEY)
    assert all(np.isfinite(x) for x in metrics.values())


def sharded(accumulate=1):
    _, step, predict = parts(accumulate)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    return (
        jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P("batch"), P()), out_specs=(P(), P())
        ),
        jax.shard_map(
            predict, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P("batch")
        ),
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_default_shard_map_accepts_the_steps(accumulate):
    """Traced only: what comes out whole is the same on all devices."""
    state = parts()[0]
    step, predict = sharded(accumulate)
    jax.eval_shape(step, state, batch(), KEY)
    jax.eval_shape(predict, eval_variables(state), batch())


@pytest.mark.slow
def test_default_shard_map_averages():
    state = parts()[0]
    step, predict = sharded()
    close(jax.jit(step)(state, batch(), KEY), plain()[0])
    close(jax.jit(predict)(eval_variables(state), batch()), plain()[1])


@pytest.mark.slow
def test_explicit_mesh():
    state, step, predict = parts()
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch(), NamedSharding(mesh, P("batch")))
        found = jax.jit(partial(step, axis_name=None))(state, rows, KEY)
        detections = jax.jit(predict)(eval_variables(state), rows)
    close((found, detections), plain())


# -- Traced only: all backbones and algorithms -----------------------------------------


def shapes(tree, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def traced_on_an_explicit_mesh(f, shared, rows, *more):
    """`rows` are sharded over the batch, `shared` is on each device of two axes."""
    kind = (AxisType.Explicit, AxisType.Explicit)
    mesh = jax.make_mesh((2, 1), ("batch", "other"), axis_types=kind)
    shared = shapes(shared, NamedSharding(mesh, P()))
    rows = shapes(rows, NamedSharding(mesh, P("batch")))
    with jax.set_mesh(mesh):
        return jax.eval_shape(jax.jit(f), shared, rows, *more)


@pytest.mark.parametrize(
    "name", [*BACKBONES, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
)
def test_explicit_mesh_takes_the_backbone(name):
    backbone = (BACKBONES | SLOW)[name]()
    images, extent = np.zeros((2, 64, 96, 3), np.float32), np.full((2, 2), 60, np.int32)
    variables = jax.eval_shape(backbone.init, KEY, images)

    def gradient(variables, rows):
        def total(params):
            maps: Any = backbone.apply({**variables, "params": params}, *rows)
            return sum(x.sum() for x in maps.values())

        return jax.grad(total)(variables["params"])

    found = traced_on_an_explicit_mesh(gradient, variables, (images, extent))
    assert jax.tree.structure(found) == jax.tree.structure(variables["params"])


def vit_config():
    c = small.config().to_dict()
    c["model"] |= dict(
        backbone=dict(name="vit", depth=2, width=32, heads=2, window=2, relative=4),
        fpn=dict(name="simple_pyramid", channels=8),
    )
    c["model"]["backbone"] |= dict(global_blocks=(1,), stochastic_depth=0.1)
    return c


CONFIGS = dict(cascade_rcnn=cascade_config, fast_rcnn=fast_config, vit=vit_config)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_other_steps_are_traced(name):
    """With Explicit axes, in a default `shard_map`, and with x64 and strict at once."""
    c = CONFIGS[name]()
    model = models.build_detector(num_classes=3, **c["model"])
    options = dict(model=model, config=c)
    optimizer = optax.sgd(0.05, momentum=0.9)
    start = partial(initial_state, model=model, optimizer=optimizer)
    state = jax.eval_shape(partial(start, image_shape=(*small.CANVAS, 3)), KEY)
    options |= dict(optimizer=optimizer, trainable=trainable_mask(state.params))
    step, alone = (partial(train_step, **options, axis_name=a) for a in ("batch", None))
    predict = partial(predict_step, model=model, config=c)
    rows, seen = batch(), eval_variables(state)
    if name == "fast_rcnn":
        rows = with_proposals(rows)

    traced_on_an_explicit_mesh(alone, state, rows, KEY)
    traced_on_an_explicit_mesh(predict, seen, rows)

    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    over = partial(jax.shard_map, mesh=mesh)
    whole, split = P(), P("batch")
    over_step = over(step, in_specs=(whole, split, whole), out_specs=(whole, whole))
    jax.eval_shape(over_step, state, rows, KEY)
    over_predict = over(predict, in_specs=(whole, split), out_specs=split)
    jax.eval_shape(over_predict, seen, rows)

    def both():
        return jax.eval_shape(alone, state, rows, KEY), jax.eval_shape(
            predict, seen, rows
        )

    expected = both()
    with jax.enable_x64(), jax.numpy_dtype_promotion("strict"):
        assert shapes(both()) == shapes(expected)
