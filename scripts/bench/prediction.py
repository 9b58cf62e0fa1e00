r"""One checkpoint under several settings of prediction: AP, interval, time an image.

    python scripts/bench/prediction.py --config=experiments/bccd_r50_fpn.py \
        --checkpoint=runs/bccd --sweep=prediction --config.data.root=BCCD_FOLDER

A row is one dict of changes that `sweep_NAME` of the experiment's file yields. The
interval holds 95 % of the APs of `--draws` resampled sets of images (a bootstrap over
images; it says nothing of another training run). Seconds an image are the median over
the images after the first, which compiles; `--images` of them are timed, one at a time.
Recall is the share of objects that a detection of any score meets at IoU 0.5. The last
line on stdout is one JSON object.
"""

import json
import pathlib
import statistics
import time
from typing import Any

import numpy as np
from absl import flags

from frcnn_jax import detector
from frcnn_jax.data.example import decode
from frcnn_jax.data.images import reading
from frcnn_jax.evaluation import coco, intervals
from frcnn_jax.training import checkpoint, cli, devices, evaluate
from frcnn_jax.training import config as configs
from frcnn_jax.training.metrics import log_to_stderr

CONFIG = flags.DEFINE_string("config", None, "The experiment's file.", required=True)
SWEEP = flags.DEFINE_string("sweep", "prediction", "The function sweep_NAME of it.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "A folder; default the run's own.")
DRAWS = flags.DEFINE_integer("draws", 200, "Resampled sets.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 20, "Images to time.", lower_bound=2)
SET = cli.define_changes()


def seconds(path: pathlib.Path, changes: list[str], count: int) -> float:
    """Median seconds of one image, with decoding done before."""
    run = detector.load(path, changes=changes)
    data = evaluate.build_eval_data(configs.check(run.config)).eval
    how = reading(**run.config.data)
    examples = [data[i] for i in range(min(count + 1, len(data)))]
    pictures = [decode(example, **how) for example in examples]
    times = []
    for picture in pictures:
        start = time.perf_counter()
        run([picture])
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times)


def main(_):
    log_to_stderr()
    devices.keep_compiled()
    module = cli.experiment(CONFIG.value.partition(":")[0])
    path = checkpoint.find(CHECKPOINT.value)
    run = path.parents[1] if path.parent.name == "checkpoints" else path
    output = pathlib.Path(OUTPUT.value or run) / f"prediction_{SWEEP.value}"
    rows = []
    print(f"{'AP':>6} {'95 %':>14} {'AP50':>6} {'recall':>6} {'s/image':>8}  changes")
    for i, group in enumerate(getattr(module, f"sweep_{SWEEP.value}")()):
        changes = [*SET.value, *(f"{k}={v}" for k, v in group.items())]
        annotations, detections, *_ = evaluate.evaluate_checkpoint(
            path, output / f"{i:02d}", changes=changes
        )
        result = coco.evaluate(annotations, detections)
        low, high = intervals.interval(annotations, detections, draws=DRAWS.value)
        row = dict(AP=result["AP"], low=low, high=high, AP50=result["AP50"])
        row["recall"] = recall(annotations, detections)
        row["seconds"] = seconds(path, changes, IMAGES.value)
        rows.append({**group, **row})
        numbers = f"{row['AP']:6.3f} {low:6.3f}-{high:6.3f} {row['AP50']:6.3f}"
        said = ", ".join(f"{k}={v}" for k, v in group.items())
        print(
            f"{numbers} {row['recall']:6.3f} {row['seconds']:8.3f}  {said}", flush=True
        )
    print(json.dumps({"rows": rows}))


def recall(annotations: dict, detections: list[dict]) -> float:
    """The share of objects that a detection of their class meets at IoU 0.5.

    Each detection meets one object, those of high scores first.
    """
    objects: dict[Any, list[list[float]]] = {}
    for a in annotations["annotations"]:
        if not a.get("iscrowd"):
            key = a["image_id"], a["category_id"]
            objects.setdefault(key, []).append(a["bbox"])
    total, found = sum(map(len, objects.values())), 0
    left = {key: np.array(rows, float) for key, rows in objects.items()}
    for d in sorted(detections, key=lambda d: -d["score"]):
        key = d["image_id"], d["category_id"]
        rows = left.get(key, np.zeros((0, 4)))
        if not len(rows):
            continue
        x, y, w, h = d["bbox"]
        iw = np.minimum(rows[:, 0] + rows[:, 2], x + w) - np.maximum(rows[:, 0], x)
        ih = np.minimum(rows[:, 1] + rows[:, 3], y + h) - np.maximum(rows[:, 1], y)
        inter = np.maximum(iw, 0) * np.maximum(ih, 0)
        iou = inter / (rows[:, 2] * rows[:, 3] + w * h - inter)
        if iou.max() >= 0.5:
            left[key] = np.delete(rows, iou.argmax(), axis=0)
            found += 1
    return found / max(1, total)


if __name__ == "__main__":
    cli.run(main)
