"""Kills a training with SIGKILL again and again, and shows that nothing has changed.

python tests/parity/kill_and_resume.py --kills=20 --workdir=runs/kill_and_resume

Trains once without interruption. Then trains the same in another folder, kills the
process at a random moment, starts the same command again, and so on: while it starts,
takes steps, saves and evaluates, in turn. At the end both folders must hold the same
parameters, optimizer state, best checkpoint and metrics.jsonl (but for its clock), bit
for bit; exit code 1 if not. The last line on stdout is one JSON object.

--config takes another experiment and --set changes its leaves, in place of the small
run that is the default; its log_every should be 1.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
from absl import flags

from frcnn_jax.training import checkpoint, cli
from frcnn_jax.training.metrics import read, without_clock

ROOT = pathlib.Path(__file__).resolve().parents[2]

KILLS = flags.DEFINE_integer("kills", 20, "How often to kill.")
SEED = flags.DEFINE_integer("seed", 0, "Of the random moments.")
WORKDIR = flags.DEFINE_string("workdir", None, "A folder, emptied.", required=True)
CONFIG = flags.DEFINE_string(
    "config", str(ROOT / "experiments" / "shapes_demo.py"), "The experiment."
)
SET = cli.define_changes()
SMALL = [  # the changes without --set
    *("batch_size=4", "eval_batch_size=4", "log_every=1", "total_steps=100"),
    *("eval_every=10", "checkpoint_every=5", "data.eval_split=val[:60]"),
]

PHASES = {"start": 5.0, "step": 3.0, "save": 0.3, "evaluate": 3.0}  # longest wait, s


class Training:
    """scripts/train.py in a process of its own, and what it is at."""

    def __init__(self, workdir: pathlib.Path):
        self.workdir, self.phase, self.lines = workdir, "start", []
        command = [sys.executable, str(ROOT / "scripts" / "train.py")]
        command += [f"--config={CONFIG.value}", f"--workdir={workdir}"]
        command += [f"--config.{change}" for change in SET.value or SMALL]
        cache = pathlib.Path(WORKDIR.value).absolute() / "compiled"
        settings = dict(
            JAX_COMPILATION_CACHE_DIR=str(cache),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
            start_new_session=True,  # killed with whatever it has started
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr or ():
            self.lines.append(line)
            if ": evaluating on" in line:
                self.phase = "evaluate"
            elif " loss " in line or ": AP " in line:
                self.phase = "step"

    def now(self) -> str:
        """What it is at; a checkpoint is written while steps go on."""
        writing = list(self.workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"))
        return "save" if writing and self.phase == "step" else self.phase

    def ended(self) -> bool:
        """Whether its process has."""
        return self.process.poll() is not None

    def kill(self):
        """At once, with all that it has started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join()

    def finish(self):
        """Waits for its end; an error ends this program as well."""
        self.process.wait()
        self.reader.join()
        if self.process.returncode:
            raise SystemExit("the training failed:\n" + "".join(self.lines[-30:]))


def step_of(training: Training) -> str:
    """The last step that it has spoken of."""
    said = [line.split("step ")[1] for line in training.lines if " step " in line]
    return said[-1].split("/")[0].split(":")[0].split(" ")[0] if said else "-"


def result(workdir: pathlib.Path) -> dict[str, str]:
    """Hashes of all that a run leaves."""
    last, best = (checkpoint.find(workdir / name) for name in ("last", "best"))
    found = {}
    for item in ("model", "training"):
        digest = hashlib.sha256()
        for name, leaf in checkpoint.named_leaves(
            checkpoint.read_arrays(last, item)
        ).items():
            array = np.ascontiguousarray(leaf)
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        found[item] = digest.hexdigest()
    meta = checkpoint.read_meta(best)
    rows = without_clock(read(workdir / "metrics.jsonl"))
    found["best"] = f"{meta.step} {meta.metrics}"
    found["metrics"] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    found["steps"] = last.name
    return found


def kill_once(workdir: pathlib.Path, phase: str, rng: random.Random) -> Training | None:
    """Starts the training and kills it after it has come to `phase`; None: it ended."""
    training = Training(workdir)
    while training.now() != phase and not training.ended():
        time.sleep(0.002)
    time.sleep(rng.uniform(0, PHASES[phase]))
    if training.ended():
        training.finish()
        return None
    training.phase = training.now()
    training.kill()
    return training


def main(_):
    rng = random.Random(SEED.value)
    folder = pathlib.Path(WORKDIR.value).absolute()
    whole, killed = folder / "whole", folder / "killed"
    for path in (whole, killed):
        shutil.rmtree(path, ignore_errors=True)
    begin = time.perf_counter()
    Training(whole).finish()
    print(f"uninterrupted: {time.perf_counter() - begin:.0f} s", flush=True)

    phases = dict.fromkeys(PHASES, 0)
    for i in range(KILLS.value):
        training = kill_once(killed, list(PHASES)[i % len(PHASES)], rng)
        if training is None:
            raise SystemExit(
                f"the run ended before kill {i + 1}: give it more total_steps"
            )
        phases[training.phase] += 1
        line = f"kill {i + 1:3d}: {training.phase:8s} at step {step_of(training)}"
        print(line, flush=True)
    Training(killed).finish()

    a, b = result(whole), result(killed)
    for name in a:
        print(f"{name:9s} {'equal' if a[name] == b[name] else 'DIFFERENT'}  {b[name]}")
    seconds = round(time.perf_counter() - begin)
    print(json.dumps(dict(equal=a == b, kills=phases, seconds=seconds)))
    sys.exit(a != b)


if __name__ == "__main__":
    cli.run(main)
