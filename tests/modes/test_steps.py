"""The whole training step and prediction in the modes that JAX has for programs."""

import functools
from functools import partial

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
from tests.modes.test_modes import assert_same
from tests.training import small

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
