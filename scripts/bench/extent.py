"""What it costs that padding changes nothing: prediction and training step, both ways.

    python scripts/bench/extent.py --sizes=480x640,800x1344 --rounds=11

The same detector with and without the extents of its images (`ops.extents`), which
fill 80 % of the canvas. Both ways take turns in one process. Shown are the medians of
seconds, of processor seconds, and of the ratio of each turn, and what XLA plans of
memory. Measure on a machine that does nothing else. The last line is one JSON object.
"""

import importlib
import json
import time
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from absl import flags

from frcnn_jax import models
from frcnn_jax.models import FasterRCNN
from frcnn_jax.training import cli
from frcnn_jax.training.compiling import announced
from frcnn_jax.training.metrics import log_to_stderr
from frcnn_jax.training.optimizer import trainable_mask
from frcnn_jax.training.state import eval_variables, initial_state
from frcnn_jax.training.step import predict_step, train_step
from frcnn_jax.types import Batch

EXPERIMENT = flags.DEFINE_string("experiment", "coco_r50_fpn", "Of experiments/.")
SIZES = flags.DEFINE_list("sizes", ["480x640", "800x1344"], "HxW of each canvas.")
ROUNDS = flags.DEFINE_integer("rounds", 11, "Turns of each way.", lower_bound=1)
TRAINING = flags.DEFINE_bool("training", True, "Time the training step too.")
KEY = jax.random.key(0)


class Whole(FasterRCNN):
    """The detector as it is without extents: every canvas is an image."""

    def extent(self, image_size):
        """No extents."""
        del image_size
        return None


def make_batch(canvas: tuple[int, int]) -> Batch:
    """One image that fills 80 % of the canvas, with five objects."""
    rng = np.random.default_rng(0)
    size = (np.array([canvas]) * 0.8**0.5).astype(np.int32)
    corner = rng.uniform(0, size[0, ::-1] / 2, (1, 5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(30, 200, (1, 5, 2))], -1)
    return Batch(
        image=rng.integers(0, 256, (1, *canvas, 3), np.uint8),
        image_size=size,
        original_size=size,
        gt_boxes=np.float32(boxes),
        gt_classes=np.ones((1, 5), np.int32),
        gt_valid=np.ones((1, 5), bool),
        gt_ignore=np.zeros((1, 5), bool),
        index=np.zeros(1, np.int32),
        valid=np.ones(1, bool),
    )


def programs(canvas: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Compiled programs with their arguments: `{program: {way: (program, args)}}`."""
    module = importlib.import_module(f"experiments.{EXPERIMENT.value}")
    config = module.get_config().to_dict()
    built = models.build_detector(num_classes=80, **config["model"])
    fields = {name: getattr(built, name) for name in built.__dataclass_fields__}
    fields = {k: v for k, v in fields.items() if k not in ("parent", "name")}
    batch, optimizer = jax.device_put(make_batch(canvas)), optax.sgd(1e-3, momentum=0.9)
    state = initial_state(KEY, (*canvas, 3), model=built, optimizer=optimizer)
    found: dict[str, dict[str, Any]] = dict(prediction={})
    for way, model in dict(without=Whole(**fields), extents=built).items():
        predict = jax.jit(partial(predict_step, model=model, config=config))
        args: tuple = eval_variables(state), batch
        with announced(f"the prediction, {way}"):
            found["prediction"][way] = predict.lower(*args).compile(), args
        if TRAINING.value:
            step = partial(train_step, model=model, optimizer=optimizer, config=config)
            step = partial(step, trainable=trainable_mask(state.params), axis_name=None)
            args = state, batch, KEY
            with announced(f"the training step, {way}"):
                compiled = jax.jit(step).lower(*args).compile()
            found.setdefault("training step", {})[way] = compiled, args
    return found


def measure(ways: dict[str, Any]) -> dict[str, Any]:
    """Medians of both ways in turns, and the memory that XLA plans."""
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(ROUNDS.value + 1):
        for way, (program, args) in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(program(*args))
            if turn:
                spent = time.perf_counter() - wall, time.process_time() - cpu
                times[way].append(spent)
    both = {way: np.array(rows) for way, rows in times.items()}
    ratio = np.median(both["extents"] / both["without"], 0)
    row: dict[str, Any] = dict(ratio=ratio[0], processor_ratio=ratio[1])
    for way, (program, _) in ways.items():
        row[way], row[f"{way}_processor"] = np.median(both[way], 0).tolist()
        row[f"{way}_bytes"] = program.memory_analysis().temp_size_in_bytes
    row["bytes_ratio"] = row["extents_bytes"] / row["without_bytes"]
    return {k: float(f"{v:.6g}") for k, v in row.items()}


def main(_):
    log_to_stderr()
    rows = {}
    for text in SIZES.value:
        h, w = map(int, text.split("x"))
        for name, ways in programs((h, w)).items():
            row = rows[f"{name} {text}"] = measure(ways)
            print(
                f"{name} {text}: {row['extents']:.3f} s, ratio {row['ratio']:.3f}, of "
                f"processor time {row['processor_ratio']:.3f}, of memory "
                f"{row['bytes_ratio']:.3f}",
                flush=True,
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    cli.run(main)
