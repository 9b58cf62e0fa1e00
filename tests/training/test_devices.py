import pathlib
import platform
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.training import config as configs
from frcnn_jax.training import devices
from frcnn_jax.training.optimizer import make_optimizer, trainable_mask
from frcnn_jax.training.state import initial_state
from frcnn_jax.training.step import train_step, varying
from tests.training import small

ROOT = pathlib.Path(__file__).parents[2]


def trained(how, *, steps=3, images=2):
    """Losses of each step and the last state; on all devices there are."""
    config = small.config()
    c = configs.check(config)
    model = models.build_detector(num_classes=3, **c["model"])
    optimizer, _ = make_optimizer(steps, **c["optimizer"])
    key = jax.random.key(0)
    state = initial_state(key, (*small.CANVAS, 3), model=model, optimizer=optimizer)
    trainable = trainable_mask(state.params)
    state, key = devices.replicated((state, key))
    step = devices.parallel(
        partial(
            train_step, model=model, optimizer=optimizer, trainable=trainable, config=c
        ),
        in_axes=(None, 0, None),
        out_axes=(None, None),
        donate_argnums=0,
        how=how,
    )
    losses = []
    for k in range(steps):
        batch = devices.shard(small.batch(k, images=images, slots=6))
        state, metrics = step(state, batch, key)
        losses.append({name: float(value) for name, value in metrics.items()})
    return losses, jax.device_get(state)


@pytest.mark.slow
def test_shard_map_gives_what_pmap_gives():
    for a, b in zip(trained("pmap"), trained("shard_map"), strict=True):
        small.assert_trees_equal(a, b)


@pytest.mark.parametrize("averaged", [True, False])
def test_shard_map_refuses_a_step_that_forgets_the_mean(averaged):
    """A device's own gradient may not come out as that of all."""

    def step(params, batch):
        chosen = varying(params, "batch")
        grads = jax.grad(lambda p: (p * batch).sum())(chosen)
        if averaged:
            grads = jax.lax.pmean(grads, "batch")
        return params - grads

    x = np.arange(4, dtype=np.float32)
    run = devices.parallel(step, in_axes=(None, 0), out_axes=None, how="shard_map")
    if averaged:  # the devices' sums are 1 and 5
        assert run(np.float32(0), devices.shard(x)) == -3
        return
    with pytest.raises(ValueError, match="out_specs"):
        run(np.float32(0), devices.shard(x))


def test_another_way_to_be_parallel_is_refused():
    with pytest.raises(ValueError, match="parallel='pjit': expected 'pmap' or"):
        devices.parallel(lambda x: x, in_axes=(0,), how="pjit")


@pytest.mark.parametrize("size, near", [(1, "use 2"), (3, "use 2 or 4")])
def test_batch_size_that_does_not_split_names_the_nearest(size, near):
    with pytest.raises(ValueError, match=f"batch_size={size} .* 2 devices: {near}"):
        devices.check_batch_size("batch_size", size)


def test_what_is_gathered_has_the_order_of_what_was_sharded():
    x = np.arange(24).reshape(4, 3, 2)
    np.testing.assert_array_equal(devices.gather(devices.shard(x)), x)


@pytest.mark.parametrize("variable", [None, "", "elsewhere"])
def test_what_is_compiled_is_kept_for_the_next_start(monkeypatch, tmp_path, variable):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    if variable is not None:  # the user's own choice stays
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", variable)
    devices.keep_compiled()
    folder = str(tmp_path / "frcnn_jax" / platform.node())
    expected = {} if variable is not None else {"jax_compilation_cache_dir": folder}
    assert changed == expected


COUNT = """
import jax, sys
import numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from tests.training import test_devices
assert jax.device_count() == int(sys.argv[1])
losses, state = test_devices.trained("pmap", steps=5, images=8)
np.savez(sys.argv[2], losses=[loss["total"] for loss in losses],
         **{str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))})
"""


@pytest.mark.slow
def test_one_to_eight_devices_give_the_same(tmp_path):
    """Five steps of eight images: only the order of sums differs."""
    found = {}
    for n in (1, 2, 4, 8):
        path = tmp_path / f"{n}.npz"
        subprocess.run(
            [sys.executable, "-c", COUNT, str(n), str(path)], check=True, cwd=ROOT
        )
        found[n] = np.load(path)
    for n in (2, 4, 8):
        np.testing.assert_allclose(found[n]["losses"], found[1]["losses"], rtol=1e-5)
        for name, leaf in found[1].items():
            np.testing.assert_allclose(found[n][name], leaf, rtol=1e-4, atol=1e-6)
