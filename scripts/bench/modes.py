"""What a mode costs: x64 for the pure functions, `shard_map` beside pmap for a step.

    python scripts/bench/modes.py [--repeats=20]

On two devices of a CPU unless JAX finds others. The ways of one comparison alternate
in one process; shown are medians in milliseconds, compilation left out. The last line
is one JSON object.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments import shapes_demo
from frcnn_jax import models, nms, proposals, targets
from frcnn_jax.training import config as configs
from frcnn_jax.training import devices
from frcnn_jax.training.compiling import announced
from frcnn_jax.training.metrics import log_to_stderr
from frcnn_jax.training.optimizer import make_optimizer, trainable_mask
from frcnn_jax.training.state import initial_state
from frcnn_jax.training.step import train_step
from frcnn_jax.types import Batch

REPEATS = flags.DEFINE_integer("repeats", 20, "Runs of each way.", lower_bound=1)


def medians(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds of each way, which take turns; the first turn compiles."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            if not turn:
                with announced(name):
                    jax.block_until_ready(run())
                continue
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(x) for name, x in times.items()}


def some_boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    corner = rng.uniform(0, 600, (*shape, 2))
    side = rng.uniform(10, 200, corner.shape)
    return np.concatenate([corner, corner + side], -1).astype(np.float32)


def functions(repeats: int) -> dict[str, dict[str, float]]:
    """Two images of 60,000 anchors, with x64 off, on, and on with float64 inputs."""
    rng = np.random.default_rng(0)
    a, b, g = 60_000, 2, 100
    anchors, size = some_boxes(rng, a), np.full((b, 2), 800, np.int32)
    scores = rng.normal(size=(b, a)).astype(np.float32)
    deltas = (0.1 * rng.normal(size=(b, a, 4))).astype(np.float32)
    valid = np.arange(g) < np.array([[8], [20]])
    keys = jax.random.split(jax.random.key(0), b)
    work = {
        "rpn_targets": (
            jax.vmap(targets.rpn_targets, (0, None, 0, 0)),
            (keys, anchors, some_boxes(rng, b, g), valid),
        ),
        "select_proposals": (
            jax.vmap(proposals.select_proposals, (None, 0, 0, 0)),
            (anchors, scores, deltas, size),
        ),
        "nms_indices": (
            jax.vmap(partial(nms.nms_indices, iou_threshold=0.7, max_output=1000)),
            (some_boxes(rng, b, 4000), scores[:, :4000]),
        ),
    }

    def runner(f: Callable, arrays: tuple, x64: bool, wide: bool) -> Callable:
        def cast(x):
            floats = wide and jnp.issubdtype(x.dtype, jnp.floating)
            return jnp.asarray(x, jnp.float64) if floats else jnp.asarray(x)

        with jax.enable_x64(x64):
            arrays, jitted = jax.tree.map(cast, arrays), jax.jit(f)

        def run():
            with jax.enable_x64(x64):
                return jitted(*arrays)

        return run

    return {
        name: medians(
            {
                "x64 off": runner(f, arrays, False, False),
                "x64 on": runner(f, arrays, True, False),
                "float64 inputs": runner(f, arrays, True, True),
            },
            repeats,
        )
        for name, (f, arrays) in work.items()
    }


def step(repeats: int) -> dict[str, float]:
    """The training step of shapes_demo, two images a device."""
    c = configs.check(shapes_demo.get_config())
    canvas = c["data"]["canvas"]
    canvas = tuple(canvas[0]) if not isinstance(canvas[0], int) else tuple(canvas)
    model = models.build_detector(num_classes=3, **c["model"])
    optimizer, _ = make_optimizer(repeats, **c["optimizer"])
    key = jax.random.key(0)
    state = initial_state(key, (*canvas, 3), model=model, optimizer=optimizer)
    trainable = trainable_mask(state.params)
    rng = np.random.default_rng(0)
    b, g = 2 * jax.device_count(), c["data"]["max_boxes"]
    valid = np.broadcast_to(np.arange(g) < 3, (b, g))
    corner = rng.uniform(0, min(canvas) / 2, (b, g, 2))
    boxes = np.concatenate([corner, corner + min(canvas) / 4], -1).astype(np.float32)
    size = np.full((b, 2), canvas, np.int32)
    batch = Batch(
        image=rng.integers(0, 256, (b, *canvas, 3), np.uint8),
        image_size=size,
        original_size=size,
        gt_boxes=boxes,
        gt_classes=valid.astype(np.int32),
        gt_valid=valid,
        gt_ignore=np.zeros_like(valid),
        index=np.arange(b, dtype=np.int32),
        valid=np.ones(b, bool),
    )
    batch = devices.shard(batch)
    state, key = devices.replicated((state, key))
    ways = {
        how: devices.parallel(
            partial(
                train_step,
                model=model,
                optimizer=optimizer,
                trainable=trainable,
                config=c,
            ),
            in_axes=(None, 0, None),
            out_axes=(None, None),
            how=how,
        )
        for how in ("pmap", "shard_map")
    }
    return medians(
        {how: partial(run, state, batch, key) for how, run in ways.items()}, repeats
    )


def main(argv: Sequence[str]) -> None:
    del argv
    log_to_stderr()
    found = functions(REPEATS.value) | {"train_step": step(REPEATS.value)}
    for name, ways in found.items():
        first = next(iter(ways.values()))
        for way, ms in ways.items():
            print(f"{name:20s} {way:15s} {ms:9.2f} ms  x{ms / first:.2f}")
    print(json.dumps({"device": jax.devices()[0].device_kind, "ms": found}))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    app.run(main)
