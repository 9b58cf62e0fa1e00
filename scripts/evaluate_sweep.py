r"""One checkpoint under several settings of testing: a table, one row a setting.

python scripts/evaluate_sweep.py --config=experiments/voc07_zf.py --sweep=rpn \
    --checkpoint=runs/voc07_zf
python scripts/evaluate_sweep.py --config=experiments/bccd_paper.py --sweep=rpn \
    --checkpoint=runs/paper_joint --config.data.root=DIR --output=runs/table2

`--sweep=NAME` is the function `sweep_NAME` of the experiment's file, which yields the
changes of one row after the other; they must be changes that matter in testing, such as
`proposals.eval.post_nms`. `--config.NAME=VALUE` changes a value for all rows. One row
alone is `scripts/evaluate.py --checkpoint=... --config.proposals.eval.post_nms=100`.
Each row leaves its detections in `sweep_NAME` of `--output` (default the run's folder);
the last line on stdout is one JSON object.
"""

import json
import pathlib

from absl import app, flags

from frcnn_jax.evaluation import coco, voc
from frcnn_jax.training import checkpoint, cli, devices, evaluate, troubles
from frcnn_jax.training.metrics import log_to_stderr

CONFIG = flags.DEFINE_string("config", None, "The experiment's file.", required=True)
SWEEP = flags.DEFINE_string(
    "sweep", None, "NAME of a function sweep_NAME of the experiment.", required=True
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's folder or a checkpoint.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "A folder for the detections.")
SET = cli.define_changes()


def main(_):
    log_to_stderr()
    devices.keep_compiled()
    module = cli.experiment(CONFIG.value.partition(":")[0])
    function = getattr(module, f"sweep_{SWEEP.value}", None)
    if function is None:
        there = sorted(n for n in vars(module) if n.startswith("sweep_"))
        raise app.UsageError(
            f"--sweep={SWEEP.value}: {CONFIG.value} has {', '.join(there) or 'none'}"
        )
    path = checkpoint.find(CHECKPOINT.value)
    run = path.parents[1] if path.parent.name == "checkpoints" else path
    output = pathlib.Path(OUTPUT.value or run) / f"sweep_{SWEEP.value}"
    troubles.prepare_folder(output)
    rows = []
    print(f"{'AP':>6} {'AP50':>6} {'VOC07':>6}  changes", flush=True)
    for i, changes in enumerate(function()):
        annotations, detections, *_ = evaluate.evaluate_checkpoint(
            path,
            output / f"{i:02d}",
            changes=[*SET.value, *(f"{k}={v}" for k, v in changes.items())],
        )
        ap = coco.evaluate(annotations, detections)
        voc07 = voc.evaluate(annotations, detections)["mAP"]
        scores = dict(AP=ap["AP"], AP50=ap["AP50"], VOC07=voc07)
        rows.append({**changes, **scores})
        numbers = ("     -" if x is None else f"{x:6.3f}" for x in scores.values())
        said = (f"{k.rpartition('.')[2]}={v}" for k, v in changes.items())
        print(*numbers, "", ", ".join(said), flush=True)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    cli.run(main)
