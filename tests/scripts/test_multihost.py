"""Several processes on one machine stand for several hosts: scripts/train.py itself."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import jax
import numpy as np
import pytest

from frcnn_jax.evaluation import files
from frcnn_jax.training import checkpoint
from frcnn_jax.training.metrics import read, without_clock
from tests import once

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "scripts" / "small_experiment.py"
# One unit in the last place of every parameter, in one process, changes the losses of
# the first 20 steps by 5e-7 at the most, but that of step 27 by 1e-5 and of step 30 by
# 2.5e-3: some choice is then nearly a tie. The order of sums is no larger a change.
LEAVES = dict(
    batch_size=4, eval_batch_size=4, total_steps=20, eval_every=10, checkpoint_every=5
)


def start(workdir, *, processes=1, devices=4, output=None, **leaves):
    """One run of scripts/train.py in so many processes of so many devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    found = []
    for i in range(processes):
        command = [sys.executable, "-u", str(ROOT / "scripts" / "train.py")]
        command += [f"--config={CONFIG}", f"--workdir={workdir}"]
        command += [f"--config.{k}={v}" for k, v in {**LEAVES, **leaves}.items()]
        if processes > 1:
            command += [f"--coordinator_address={address}", f"--process_id={i}"]
            command += [f"--num_processes={processes}"]
        log = workdir.parent / f"{workdir.name}.{i}.log"
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
        with log.open("w") as file:
            process = subprocess.Popen(
                command, stderr=file, stdout=subprocess.DEVNULL, cwd=ROOT, env=env
            )
        found.append((process, log))
    return found


def finish(run, *, code=0, timeout=900):
    try:
        for process, log in run:
            assert process.wait(timeout) == code, log.read_text()[-3000:]
    finally:
        end_all(run)


def wait_for(text, run, timeout=900):
    """Until the first process has said it."""
    end = time.monotonic() + timeout
    process, log = run[0]
    while text not in log.read_text():
        assert time.monotonic() < end and process.poll() is None, log.read_text()
        time.sleep(0.02)


def end_all(run):
    for process, _ in run:
        process.kill()
        process.wait()


def result(workdir):
    """Losses, arrays, detections and AP."""
    rows = without_clock(read(workdir / "metrics.jsonl"))
    steps = [row["step"] for row in rows if row["group"] == "train"]
    last = checkpoint.find(workdir / "last")
    assert steps == list(range(1, int(last.name) + 1))  # each once
    return (
        [row["total"] for row in rows if row["group"] == "train"],
        [checkpoint.read_arrays(last, item) for item in ("model", "training")],
        files.read_detections(next(workdir.glob("detections_*.json"))),
        checkpoint.read_meta(last).metrics["AP"],
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process with four devices."""
    path = once.folder(tmp_path_factory, "alone", lambda p: finish(start(p / "run")))
    return result(path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_two_processes_train_as_one_does(how, alone, tmp_path):
    """But for the order of sums."""
    workdir = tmp_path / "run"
    finish(start(workdir, processes=2, devices=2, parallel=how))
    (a_loss, a, a_found, a_ap), (b_loss, b, b_found, b_ap) = alone, result(workdir)
    np.testing.assert_allclose(a_loss, b_loss, rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, a, b)
    assert [d["image_id"] for d in a_found] == [d["image_id"] for d in b_found]
    np.testing.assert_allclose(
        *([d["score"] for d in found] for found in (a_found, b_found)), atol=1e-5
    )
    assert a_found and a_ap == pytest.approx(b_ap, abs=1e-6)
    assert "step 1/20" not in (tmp_path / "run.1.log").read_text()  # one speaks


LONG = dict(total_steps=45, eval_every=15, checkpoint_every=5)


@pytest.mark.slow
def test_a_pair_goes_on_after_each_kind_of_end(tmp_path):
    """One of two is killed, then the other, then one gets SIGTERM: nothing changes."""
    pair = partial(start, processes=2, devices=2, **LONG)
    finish(pair(tmp_path / "whole"))
    workdir = tmp_path / "run"
    for victim, step in ((0, 13), (1, 17)):
        run = pair(workdir)
        try:
            wait_for(f"step {step}/45", run)
            resumed = "going on from step" in run[0][1].read_text()
            assert resumed == (victim == 1)
            run[victim][0].kill()
            killed = time.monotonic()
            other, log = run[1 - victim]
            code = other.wait(60)
            assert code not in (0, 143)
            print(f"ended {time.monotonic() - killed:.1f} s later")
            said = log.read_text()
            # Gloo may abort it before JAX or we have seen that the other has died.
            aborted = code == -signal.SIGABRT and "an instance of 'gloo::" in said
            died = "another process has died" in said or "another task died" in said
            assert died or aborted, said
        finally:
            end_all(run)
    run = pair(workdir)
    try:
        wait_for("step 17/45", run)  # the last periodic checkpoint is of step 15
        assert "going on from step" in run[0][1].read_text()
        run[1][0].send_signal(signal.SIGTERM)
        finish(run, code=143, timeout=60)
        said = run[0][1].read_text()
        assert "stopped by SIGTERM" in said
    finally:
        end_all(run)
    taken = re.findall(r"step (\d+)/45", said)[-1]
    finish(pair(workdir))
    assert f"going on from step {taken} " in (tmp_path / "run.0.log").read_text()
    assert_equal(result(workdir), result(tmp_path / "whole"))


def assert_equal(a, b):
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)
