"""Sweeps as a user runs them: real runs, one of them killed; a job of submitit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from frcnn_jax.sweeps import launch
from frcnn_jax.training import lock
from tests.scripts.test_scripts import ROOT, last_json, script

EXPERIMENT = "tests/scripts/sweep_experiment.py"


def test_a_sweep_that_cannot_run_is_refused_before_anything_starts(tmp_path):
    done = script(
        *("sweep", f"--config={EXPERIMENT}", "--sweep=misspelt"),
        f"--workdir={tmp_path}",
        code=2,
    )
    assert "no such leaf: is it optimizer.learning_rate?" in done.stderr + done.stdout
    assert not (tmp_path / "trials").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, message",
    [
        ("twice", "yields twice: ['seed=1']"),
        ("nothing", "it has search_optimizer, sweep_misspelt, sweep_rate, sweep_twice"),
    ],
)
def test_a_sweep_that_is_not_there_or_yields_twice_is_refused(tmp_path, name, message):
    done = script(
        *("sweep", f"--config={EXPERIMENT}", f"--sweep={name}"),
        f"--workdir={tmp_path}",
        code=2,
    )
    assert message in done.stderr + done.stdout


@pytest.mark.slow
def test_a_folder_has_one_sweep_at_a_time(tmp_path):
    with lock.held(tmp_path, "swept", name=launch.LOCK):
        done = script(
            *("sweep", f"--config={EXPERIMENT}", "--sweep=rate"),
            f"--workdir={tmp_path}",
            code=75,
        )
    assert f"is being swept by process {os.getpid()} on" in done.stderr + done.stdout


@pytest.mark.slow
def test_of_four_runs_one_is_killed_and_goes_on_and_none_runs_twice(tmp_path):
    args = [f"--config={EXPERIMENT}", "--sweep=rate", f"--workdir={tmp_path}"]
    args += ["--jobs=2", "--config.log_every=2"]
    victim = tmp_path / "trials" / "learning_rate=0.02,seed=0"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "sweep.py"), *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (victim / "checkpoints" / "2" / "meta").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(training_of(victim), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 1, stderr
    summary = json.loads(stdout.splitlines()[-1])
    assert (summary["finished"], summary["killed"]) == (3, 1)
    assert "learning_rate=0.02,seed=0: killed" in stderr
    ended = {p: p.stat().st_mtime for p in (tmp_path / "trials").glob("*/train.log")}

    again = script("sweep", *args)
    assert last_json(again)["finished"] == 4
    assert "4 trials, 3 done already" in again.stderr
    assert again.stderr.count(": started") == 1
    for path, when in ended.items():
        assert (path.stat().st_mtime == when) == (path.parent != victim)
    assert "going on from step" in (victim / "train.log").read_text()
    rows = json.loads((tmp_path / "results.json").read_text())
    values = [row["metrics"]["AP"] for row in rows]
    assert values == sorted(values, reverse=True)
    rates = {
        (r["changes"]["optimizer.learning_rate"], r["changes"]["seed"]) for r in rows
    }
    assert rates == {(0.01, 0), (0.01, 1), (0.02, 0), (0.02, 1)}
    for row in rows:  # the changes did arrive
        config = json.loads(
            (tmp_path / "trials" / row["trial"] / "config.json").read_text()
        )
        assert config["seed"] == row["changes"]["seed"]
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 5

    other = script("sweep", *args, "--config.batch_size=4", code=2)
    assert "batch_size: 2 -> 4" in other.stderr + other.stdout


@pytest.mark.slow
def test_a_search_runs_as_jobs_of_submitit(tmp_path):
    done = script(
        *("sweep", f"--config={EXPERIMENT}", "--sweep=optimizer", "--trials=1"),
        *(f"--workdir={tmp_path}", "--launcher=slurm", "--cluster=local"),
        *("--slurm=timeout_min=10", "--slurm=slurm_partition=any"),
    )
    result = last_json(done)
    assert result["finished"] == 1
    assert (tmp_path / "study.db").exists()
    assert len(list((tmp_path / "jobs").glob("*_result.pkl"))) == 1
    again = script(
        *("sweep", f"--config={EXPERIMENT}", "--sweep=optimizer", "--trials=1"),
        f"--workdir={tmp_path}",
    )
    assert last_json(again) == result and ": started" not in again.stderr


def training_of(folder):
    """The process that has the folder as its --workdir."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"--workdir={folder}" in words and any("train.py" in w for w in words):
            return int(name)
    raise AssertionError(f"no training runs in {folder}")
