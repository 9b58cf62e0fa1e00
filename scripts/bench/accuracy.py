r"""AP of ours and of torchvision's R50-FPN after the same minutes: sets, sides, seeds.

    make peer
    python scripts/bench/accuracy.py --workdir=runs/accuracy --seeds=0,1,2 \
        --weights=resnet50_imagenet_keras_fp16.npz --steps=560 \
        --on=bccd,experiments/bccd_r50_fpn.py:runlocal,data.root=BCCD_FOLDER

`--on=NAME,EXPERIMENT,LEAF=VALUE,...` is a set: its experiment is the recipe that
torchvision gets, and says how its data is read. Three sides train on it from the same
ImageNet weights, each trial alone, one after the other:

| side | what it is |
| --- | --- |
| torchvision | its detector, trained `--steps` steps by the experiment's recipe |
| same | ours by that recipe (`tests/parity/compare_training.py` trains both) |
| finetune | ours by `--recipe`, in the minutes of torchvision with the seed |

torchvision tries each of `--rates` with the first seed, and goes on with the better.
Minutes are of the clock, from the start of the process to the metrics, compiling and
evaluating included. Called again, the script goes on where it was cut off; a trial that
ended is not repeated. AP is computed by one code; the interval of a difference holds
95 % of the draws of images and seeds (`frcnn_jax.evaluation.intervals`). The last line
on stdout is one JSON object.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from frcnn_jax.evaluation import coco, intervals
from frcnn_jax.training import cli
from frcnn_jax.training import config as configs
from frcnn_jax.training.metrics import log_to_stderr

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIDES = ("torchvision", "same", "finetune")
RESULT = "trial.json"

ON = flags.DEFINE_multi_string("on", None, "NAME,EXPERIMENT,LEAF=VALUE,...: a set.")
WORKDIR = flags.DEFINE_string("workdir", None, "A folder.", required=True)
WEIGHTS = flags.DEFINE_string("weights", "", "ImageNet weights of a ResNet-50.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "The seeds.")
RATES = flags.DEFINE_list("rates", ["0.005", "0.01"], "torchvision's learning rates.")
STEPS = flags.DEFINE_integer("steps", 560, "Steps of torchvision.", lower_bound=1)
ONLY = flags.DEFINE_list("sides", list(SIDES), "The sides to train.")
DRAWS = flags.DEFINE_integer("draws", 500, "Draws of an interval.", lower_bound=1)
TRIED = flags.DEFINE_integer("tried", 1, "Recipes of ours that were tried before.")
PEER = flags.DEFINE_string(
    "peer", str(ROOT / ".venv-peer/bin/python"), "A Python with torch and torchvision."
)
RECIPE = flags.DEFINE_string(
    "recipe", "experiments/finetune.py", "Our recipe: an experiment that has `minutes`."
)
FINETUNE = flags.DEFINE_list("finetune", [], "LEAF=VALUE, ... of our recipe.")


class Set(NamedTuple):
    """A set as `--on` names it."""

    name: str
    experiment: str
    changes: tuple[str, ...]


class Trial(NamedTuple):
    """What one trial left: its metrics, and what it took."""

    side: str
    seed: int
    rate: str
    metrics: dict[str, float]
    seconds: float
    processor: float
    annotations: dict[str, Any]
    detections: list[dict[str, Any]]


def parsed(text: str) -> Set:
    """The set that one `--on` names."""
    name, *rest = text.split(",")
    if not rest or "=" in name or "=" in rest[0]:
        raise app.UsageError(
            f"--on={text}: expected NAME,EXPERIMENT,LEAF=VALUE,..., such as "
            "bccd,experiments/bccd_r50_fpn.py:runlocal,data.root=FOLDER"
        )
    return Set(name, rest[0], tuple(rest[1:]))


def recipe_command(chosen: Set, side: str, seed: int, rate: str, at: pathlib.Path):
    """Trains ours or torchvision by the recipe of the set's experiment."""
    only = "torchvision" if side == "torchvision" else "ours"
    leaves = [
        *chosen.changes,
        *(f"seed={seed}", f"total_steps={STEPS.value}", f"eval_every={STEPS.value}"),
        *(f"optimizer.learning_rate={rate}", "optimizer.reference_batch=0"),
        f"model.backbone.pretrained={WEIGHTS.value}",
    ]
    return [
        *(sys.executable, ROOT / "tests/parity/compare_training.py"),
        *(f"--config={chosen.experiment}", f"--workdir={at}", f"--only={only}"),
        *(f"--peer={PEER.value}", *(f"--config.{leaf}" for leaf in leaves)),
    ]


def finetune_command(chosen: Set, seed: int, minutes: float, at: pathlib.Path):
    """Trains ours by our recipe, on the same splits."""
    config = cli.load(chosen.experiment)
    configs.change(config, chosen.changes)
    data = config.data
    leaves = [f"data.{k}={data[k]}" for k in ("name", "root", "train_split")]
    leaves += [f"data.eval_split={data['eval_split']}", f"seed={seed}"]
    leaves += [f"minutes={minutes:.2f}", f"model.backbone.pretrained={WEIGHTS.value}"]
    return [
        *(sys.executable, ROOT / "scripts/train.py", f"--workdir={at}"),
        f"--config={ROOT / RECIPE.value}",
        *(f"--config.{leaf}" for leaf in (*leaves, *FINETUNE.value)),
    ]


def measured(command: list[Any], at: pathlib.Path) -> None:
    """Runs a trial's command; adds its seconds to those of earlier starts."""
    at.mkdir(parents=True, exist_ok=True)
    file = at / "spent.json"
    clock, processor = json.loads(file.read_text()) if file.exists() else (0.0, 0.0)
    clock, processor = clock - time.perf_counter(), processor - _processor()
    with (at / "log.txt").open("a") as log:
        try:
            done = subprocess.run(
                list(map(str, command)), stdout=log, stderr=log, cwd=ROOT, check=False
            )
        finally:
            clock, processor = clock + time.perf_counter(), processor + _processor()
            file.write_text(json.dumps([clock, processor]))
    if done.returncode:
        last = (at / "log.txt").read_text().strip().splitlines()[-1:]
        raise app.UsageError(f"{at}/log.txt: exit code {done.returncode}: {last}")


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def trial(chosen: Set, side: str, seed: int, rate: str, minutes: float = 0) -> Trial:
    """The trial's result; trains what has not ended yet."""
    label = f"{side}_{rate}" if side != "finetune" else side
    at = pathlib.Path(WORKDIR.value).absolute() / chosen.name / label / str(seed)
    if not (at / RESULT).exists():
        print(f"{chosen.name}: {label}, seed {seed}: training", file=sys.stderr)
        if side == "finetune":
            measured(finetune_command(chosen, seed, minutes, at / "run"), at)
        else:
            measured(recipe_command(chosen, side, seed, rate, at), at)
        truth, found = files_of(at, side)
        metrics = coco.evaluate(truth, found)
        kept = {k: metrics[k] for k in ("AP", "AP50", "AP75")}
        (at / RESULT).write_text(json.dumps(kept))
    truth, found = files_of(at, side)
    seconds, processor = json.loads((at / "spent.json").read_text())
    kept = json.loads((at / RESULT).read_text())
    return Trial(side, seed, rate, kept, seconds, processor, truth, found)


def files_of(at: pathlib.Path, side: str) -> tuple[dict[str, Any], list[dict]]:
    """Annotations and detections that a trial left."""
    run = at / {"same": "ours", "finetune": "run"}.get(side, side)
    detections = next(run.glob("detections*.json"))
    if side == "finetune":
        truth = next(run.glob("annotations*.json"))
    else:
        truth = at / "shared/eval.json"
    return tuple(json.loads(path.read_text()) for path in (truth, detections))


def trials(chosen: Set) -> Iterator[Trial]:
    """Every trial of a set: torchvision's first, since they set the minutes."""
    seeds = [int(seed) for seed in SEEDS.value]
    tried = [trial(chosen, "torchvision", seeds[0], rate) for rate in RATES.value]
    yield from tried
    rate = better_rate(tried)
    minutes = {t.seed: t.seconds / 60 for t in tried if t.rate == rate}
    for seed in seeds[1:]:
        other = trial(chosen, "torchvision", seed, rate)
        minutes[seed] = other.seconds / 60
        yield other
    for side in ("same", "finetune"):
        for seed in seeds if side in ONLY.value else ():
            yield trial(chosen, side, seed, rate, minutes[seed])


def better_rate(theirs: list[Trial]) -> str:
    """The rate of torchvision that has the highest AP with the first seed."""
    first = [t for t in theirs if t.seed == theirs[0].seed]
    return max(first, key=lambda t: t.metrics["AP"]).rate


def rows_of(found: list[Trial]) -> list[dict[str, Any]]:
    """A row for each side and rate."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for t in found:
        groups.setdefault((t.side, t.rate), []).append(t)
    return [
        dict(
            side=side,
            rate=rate if side != "finetune" else "chosen",
            seeds={t.seed: round(t.metrics["AP"], 4) for t in group},
            AP=float(np.mean([t.metrics["AP"] for t in group])),
            AP50=float(np.mean([t.metrics["AP50"] for t in group])),
            minutes=float(np.mean([t.seconds for t in group])) / 60,
            processor_minutes=float(np.mean([t.processor for t in group])) / 60,
        )
        for (side, rate), group in groups.items()
    ]


def differences(found: list[Trial], draws: int) -> dict[str, tuple[float, ...]]:
    """AP of ours minus that of torchvision's better rate, with the interval."""
    theirs = [t for t in found if t.side == "torchvision"]
    best = better_rate(theirs)
    theirs = [t for t in theirs if t.rate == best]
    truth = theirs[0].annotations
    out = {}
    for side in ("same", "finetune"):
        ours = [t for t in found if t.side == side]
        if not ours:
            continue
        for t in ours:
            if _images(t.annotations) != _images(truth):
                raise ValueError(f"{side}: other evaluation images than torchvision's")
        out[side] = intervals.difference(
            truth,
            [t.detections for t in ours],
            [t.detections for t in theirs],
            draws=draws,
        )
    return out


def _images(annotations: dict[str, Any]) -> list[tuple[Any, str]]:
    names = [
        (i["id"], pathlib.Path(i["file_name"]).name) for i in annotations["images"]
    ]
    return sorted(names, key=str)


def show(chosen: Set, rows: list[dict], gaps: dict[str, tuple[float, ...]]) -> None:
    print(
        f"{chosen.name}: {'side':12} {'rate':>7} {'AP':>6} {'AP50':>6} minutes  of CPU"
    )
    for r in rows:
        print(
            f"{chosen.name}: {r['side']:12} {r['rate']:>7} {r['AP']:6.3f} "
            f"{r['AP50']:6.3f} {r['minutes']:7.1f} {r['processor_minutes']:7.1f}  "
            + ", ".join(f"seed {k}: {v:.3f}" for k, v in r["seeds"].items())
        )
    for side, (mean, low, high) in gaps.items():
        print(
            f"{chosen.name}: {side} - torchvision: {100 * mean:+.1f} AP, 95 % of the "
            f"draws in {100 * low:+.1f} to {100 * high:+.1f}"
        )
    print(
        f"{chosen.name}: configurations tried: torchvision {len(RATES.value)}, ours "
        f"{TRIED.value}"
    )


def main(_):
    log_to_stderr()
    if not ON.value:
        raise app.UsageError("--on=NAME,EXPERIMENT,LEAF=VALUE,... names a set")
    if wrong := set(ONLY.value) - set(SIDES):
        raise app.UsageError(f"--sides={','.join(sorted(wrong))}: there is {SIDES}")
    result = {}
    for chosen in map(parsed, ON.value):
        found = list(trials(chosen))
        rows, gaps = rows_of(found), differences(found, DRAWS.value)
        show(chosen, rows, gaps)
        result[chosen.name] = dict(rows=rows, differences=gaps)
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
