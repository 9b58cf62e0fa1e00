"""Replays the batch that a run saved because its loss was not finite.

python scripts/replay.py --batch=runs/mine/not_finite_1234.npz
python scripts/replay.py --batch=runs/mine/not_finite_1234.npz --checkpoint=runs/other

Prints the losses and the norms of the gradient of every image, from the last checkpoint
of the run (or --checkpoint), with the samples that the run drew; the last line is one
JSON object. The exit code is 1 if any number is not finite: then the cause is that
image. Otherwise the parameters became bad after the checkpoint. With
JAX_DEBUG_NANS=True in the environment the first operation that gives NaN is named.
"""

import json
import math
import sys

from absl import flags

from frcnn_jax.training import cli, faults
from frcnn_jax.training.metrics import log_to_stderr

BATCH = flags.DEFINE_string(
    "batch", None, "The file not_finite_STEP.npz.", required=True
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "A run or a checkpoint; by default the run of the batch."
)


def main(_):
    log_to_stderr()
    step, rows = faults.replay(BATCH.value, CHECKPOINT.value)
    print(faults.format_table(rows))
    wrong = [r["index"] for r in rows if not all(map(math.isfinite, r.values()))]
    print(
        f"\nparameters of step {step}; images that are not finite: {wrong or 'none'}"
        + ("" if wrong else ", so the parameters had gone astray since")
    )
    rows = [
        {k: v if math.isfinite(v) else str(v) for k, v in row.items()} for row in rows
    ]
    print(json.dumps(dict(step=step, not_finite=wrong, images=rows)))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    cli.run(main)
