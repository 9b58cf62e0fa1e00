r"""Trains an experiment, or goes on with it: the same command again resumes.

python scripts/train.py --config=experiments/shapes_demo.py --workdir=runs/demo
python scripts/train.py --config=experiments/bccd_r50_fpn.py:runlocal --workdir=runs/b \
    --config.data.root=DIR --config.optimizer.learning_rate=0.01

Progress goes to stderr; the last line on stdout is one JSON object, the last
evaluation's metrics. SIGTERM saves and ends with exit code 143: started again, the run
goes on. On several hosts start the same command on each (docs/multi-host.md): with
--multihost under SLURM, Open MPI, Kubernetes or on Cloud TPUs, else with
--coordinator_address=HOST:PORT --num_processes=N --process_id=I.
"""

import contextlib
import json
import os

from absl import flags
from ml_collections import config_flags

from frcnn_jax.training import cli, devices
from frcnn_jax.training.loop import train_and_evaluate
from frcnn_jax.training.metrics import log_to_stderr

CONFIG = cli.define_config(
    "The experiment, e.g. experiments/shapes_demo.py.", required=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder that keeps the run.", required=True
)
ALLOW = flags.DEFINE_bool(
    "allow_changes", False, "Go on with a run although its configuration has changed."
)
DETERMINISTIC = flags.DEFINE_bool(
    "deterministic",
    False,
    "On a GPU: the same bits in every run. The cost in speed has not been measured. "
    "Runs on a CPU always have the same bits.",
)
MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "One of several processes, which find each other."
)
ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0, for processes that do not find each other.",
)
PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "The number of processes of the run."
)
PROCESS = flags.DEFINE_integer(
    "process_id", None, "The number of this process, from 0 on."
)
LOG_TO = flags.DEFINE_string(
    "log_to", "", "Send the metrics to 'wandb' or 'mlflow' as well, if installed."
)


def main(_):
    if DETERMINISTIC.value:  # read when JAX first looks for devices
        before = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{before} --xla_gpu_deterministic_ops=true"
    alone = not MULTIHOST.value and ADDRESS.value is None
    with (
        contextlib.nullcontext()
        if alone
        else devices.connected(ADDRESS.value, PROCESSES.value, PROCESS.value)
    ):
        log_to_stderr()
        devices.keep_compiled()
        result = train_and_evaluate(
            CONFIG.value,
            WORKDIR.value,
            allow_changes=ALLOW.value,
            log_to=LOG_TO.value,
            set_by_flag=config_flags.get_override_values(flags.FLAGS["config"]),
        )
        if devices.is_first():
            print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
