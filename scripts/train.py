"""Trains an experiment, or goes on with it: the same command again resumes.

python scripts/train.py --config=experiments/shapes_demo.py --workdir=runs/demo
python scripts/train.py --config=experiments/bccd_r50_fpn.py:runlocal --workdir=runs/b \
    --config.data.root=DIR --config.optimizer.learning_rate=0.01

Progress goes to stderr; the last line on stdout is one JSON object, the last
evaluation's metrics.
"""

import json
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from frcnn_jax.training.loop import train_and_evaluate
from frcnn_jax.training.metrics import log_to_stderr

# Experiments import their shared parts from the folder beside this one.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, e.g. experiments/shapes_demo.py."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder that keeps the run.", required=True
)
ALLOW = flags.DEFINE_bool(
    "allow_changes", False, "Go on with a run although its configuration has changed."
)


def main(argv):
    if argv[1:]:
        raise app.UsageError(f"unexpected {argv[1:]}: options begin with --")
    log_to_stderr()
    result = train_and_evaluate(CONFIG.value, WORKDIR.value, allow_changes=ALLOW.value)
    print(json.dumps(result))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
