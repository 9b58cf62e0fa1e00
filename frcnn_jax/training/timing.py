"""How long a compiled step of training takes, measured on the first batches."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from frcnn_jax import models
from frcnn_jax.data.images import canvases
from frcnn_jax.data.source import Source
from frcnn_jax.training import compiling, devices
from frcnn_jax.training.evaluate import build_data
from frcnn_jax.training.optimizer import make_optimizer, trainable_mask
from frcnn_jax.training.state import init_variables, initial_state
from frcnn_jax.training.step import train_step


def time_steps(
    c: Mapping[str, Any], sources: tuple[Source, Source], *, steps: int = 4
) -> tuple[float, float]:
    """Seconds of compiling a configuration's step, and the median of a few others.

    The weights are random: what is computed does not matter, and is thrown away. A
    program that an earlier start kept counts as if it were compiled now: the run's own
    has another number of steps, so it is another program, which was not kept.
    """
    data = build_data(c, sources)
    model = models.build_detector(num_classes=len(sources[0].classes), **c["model"])
    key = jax.random.key(c["seed"])
    image_shape = (*canvases(c["data"]["canvas"])[0], 3)
    variables = init_variables(key, image_shape, model=model)
    optimizer, _ = make_optimizer(c["total_steps"], c["batch_size"], **c["optimizer"])
    trainable = trainable_mask(variables["params"], c["frozen"])
    state = initial_state(
        key,
        image_shape,
        model=model,
        optimizer=optimizer,
        trainable=trainable,
        variables=variables,
        ema=c["ema_decay"] > 0,
    )
    state, key = devices.replicated((state, key))
    p_step = devices.parallel(
        partial(
            train_step, model=model, optimizer=optimizer, trainable=trainable, config=c
        ),
        in_axes=(None, 0, None),
        out_axes=(None, None),
        donate_argnums=0,
        how=c["parallel"],
    )
    batches, taken, seen = data.train_batches(), [], set()
    before = compiling.spared()
    try:
        while len(taken) < steps + len(seen):  # a canvas that is new is compiled
            batch = next(batches)
            start = time.perf_counter()
            state, metrics = p_step(state, devices.shard(batch), key)
            jax.block_until_ready(metrics)
            taken.append((batch.image.shape in seen, time.perf_counter() - start))
            seen.add(batch.image.shape)
    finally:
        batches.close()
    step = float(np.median([t for known, t in taken if known]))
    first = sum(t - step for known, t in taken if not known)
    return first + compiling.spared() - before, step
