r"""A checkpoint in float32, and with its products rounded as a TPU rounds them.

    python tests/parity/compare_precision.py --checkpoint=runs/bccd --passes=1

A TPU multiplies float32 in one pass of bfloat16 unless `jax_default_matmul_precision`
says otherwise: both operands are rounded to bfloat16 (8 bits of significand), products
and sums are float32. `--passes=1` does that on any machine, with `lax.reduce_precision`
in front of every convolution and dense layer; what else a network computes is float32
on both. `--passes=3` has each operand as the sum of two bfloat16, three products of
four: the precision "high". It is an emulation: sums have the order of this machine.

Printed are the largest difference of each output over its root mean square, the worst
of `--images`, the second stage on the same RoIs; then AP of both, and how many
detections of at least `--score` have one of the same class with an IoU of 0.9 on the
other side, and by how much their scores differ. Networks of convolutions and dense
layers (ResNet, VGG, ZF); attention is not rounded. The last line on stdout is one JSON
object.
"""

import contextlib
import json
import pathlib
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from frcnn_jax.evaluation import coco  # noqa: E402
from frcnn_jax.ops import boxes as box_ops  # noqa: E402
from frcnn_jax.ops import convolution  # noqa: E402
from frcnn_jax.training import algorithms, cli, evaluate, trained  # noqa: E402
from frcnn_jax.training import config as configs  # noqa: E402
from frcnn_jax.training.metrics import log_to_stderr  # noqa: E402
from tests.parity.detections import relative  # noqa: E402

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "A folder for detections.", required=True)
PASSES = flags.DEFINE_enum("passes", "1", ["1", "3"], "Passes of bfloat16.")
IMAGES = flags.DEFINE_integer("images", 20, "Images to compare.", lower_bound=1)
SCORE = flags.DEFINE_float("score", 0.3, "The least score that is paired.")
SET = cli.define_changes()


def as_bfloat16(x: Any) -> Any:
    """`x` rounded to bfloat16's 8 exponent and 7 stored significand bits."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def rounded(product: Any, passes: int) -> Any:
    """`product(a, b)` of float32 in so many passes of bfloat16."""

    def run(a, b, *args, **kwargs):
        multiply = partial(product, **kwargs)
        if a.dtype != jnp.float32:
            return product(a, b, *args, **kwargs)
        high = as_bfloat16(a), as_bfloat16(b)
        out = multiply(*high, *args)
        if passes == 3:
            low = as_bfloat16(a - high[0]), as_bfloat16(b - high[1])
            out += multiply(high[0], low[1], *args) + multiply(low[0], high[1], *args)
        return out

    return run


@contextlib.contextmanager
def products_of_a_tpu(passes: int):
    """Every product that is traced within has its operands rounded.

    Convolutions are XLA's own, as on a TPU, and not the formulations of a CPU.
    """
    jax.clear_caches()
    kept = jax.lax.conv_general_dilated, jax.lax.dot_general, convolution._kind
    jax.lax.conv_general_dilated = rounded(kept[0], passes)
    jax.lax.dot_general = rounded(kept[1], passes)
    convolution._kind = lambda *_: "direct"
    try:
        yield
    finally:
        jax.lax.conv_general_dilated, jax.lax.dot_general, convolution._kind = kept
        jax.clear_caches()


def network(model: Any, c: dict[str, Any]):
    """A compiled function of variables, a batch and RoIs: what the network says.

    It returns the features, the outputs of both stages, and the RoIs of the second one:
    where None is given, its own proposals. Products are those of its first call.
    """
    algorithm = algorithms.of(c)

    def stages(bound, batch, rois):
        stage = algorithm.first_stage(bound, batch)
        if rois is None:
            rois = algorithm.propose(stage, batch, **c["proposals"]["eval"])
        logits, deltas = bound.detect(
            stage.features, rois.boxes, extent=bound.extent(batch.image_size)
        )
        found = {f"features/{s}": x for s, x in stage.features.items()}
        found |= dict(rpn_logits=stage.rpn.logits, rpn_deltas=stage.rpn.deltas)
        return found | dict(class_logits=logits, class_deltas=deltas), rois

    return jax.jit(lambda v, b, r: model.apply(v, b, r, method=stages))


def apart(exact: dict[str, Any], other: dict[str, Any], valid: Any) -> dict[str, float]:
    """The largest difference of each output over its root mean square."""
    found: dict[str, float] = {}
    for name, value in exact.items():
        pair = [np.asarray(v, np.float64) for v in (other[name], value)]
        if name.startswith("class"):
            pair = [v[np.asarray(valid)] for v in pair]
        kind = name.partition("/")[0]
        found[kind] = max(found.get(kind, 0.0), relative(*pair))
    return found


def pairs(a: list[dict], b: list[dict], score: float) -> tuple[int, int, float]:
    """Detections of `a` of at least `score`, those that `b` has, and scores apart."""
    rows: dict[Any, list[dict]] = {}
    for d in b:
        rows.setdefault((d["image_id"], d["category_id"]), []).append(d)
    count, met, gap = 0, 0, 0.0
    for d in a:
        if d["score"] < score:
            continue
        count += 1
        there = rows.get((d["image_id"], d["category_id"]), [])
        if not there:
            continue
        iou = np.asarray(box_ops.iou(_corners([d]), _corners(there)))[0]
        if iou.max() >= 0.9:
            met += 1
            gap = max(gap, abs(there[int(iou.argmax())]["score"] - d["score"]))
    return count, met, gap


def _corners(rows: list[dict]) -> Any:
    return box_ops.from_xywh(np.array([d["bbox"] for d in rows], np.float32))


def main(_):
    log_to_stderr()
    passes = int(PASSES.value)
    model, variables, meta, where = trained.load(CHECKPOINT.value)
    configs.change(meta.config, SET.value)
    c = configs.check(meta.config)
    data = evaluate.build_eval_data(c)
    batches, seen = [], 0
    for batch in data.eval_batches():
        if seen >= IMAGES.value:
            break
        batches.append(batch)
        seen += int(batch.valid.sum())
    run = network(model, c)
    exact = [run(variables, batch, None) for batch in batches]
    worst: dict[str, float] = {}
    with products_of_a_tpu(passes):
        run = network(model, c)
        for batch, (values, rois) in zip(batches, exact, strict=True):
            other, _ = run(variables, batch, rois)
            for name, value in apart(values, other, rois.valid).items():
                worst[name] = max(worst.get(name, 0.0), value)
    output = pathlib.Path(OUTPUT.value)
    found, scores = [], {}
    for name in ("float32", f"passes{passes}"):
        how = products_of_a_tpu(passes) if found else contextlib.nullcontext()
        with how:
            annotations, detections, *_ = evaluate.evaluate_checkpoint(
                where, output / name, changes=SET.value
            )
        found.append(detections)
        metrics = coco.evaluate(annotations, detections)
        scores[name] = {k: metrics[k] for k in ("AP", "AP50", "AP75")}
    count, met, gap = pairs(*found, SCORE.value)
    for name, value in worst.items():
        print(f"{name:14} {value:.1e}")
    for name, values in scores.items():
        print(f"{name:14} " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))
    print(
        f"{met} of {count} detections of {SCORE.value} or more are there, too, with "
        f"scores within {gap:.1e}"
    )
    print(
        json.dumps(
            dict(
                images=seen,
                apart=worst,
                scores=scores,
                detections=count,
                paired=met,
                score_gap=gap,
            )
        )
    )


if __name__ == "__main__":
    cli.run(main)
