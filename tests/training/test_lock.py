"""The lock of a folder, tried with real processes."""

import json
import os
import signal
import subprocess
import sys

import pytest

from frcnn_jax.training import lock, troubles

HOLD = """
import sys, time
from frcnn_jax.training import lock
with lock.held(sys.argv[1], "trained"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(lock.Held) as error, lock.held(tmp_path, "trained"):
            pass
        said = str(error.value)
        assert f"is being trained by process {first.pid} on {os.uname().nodename}" in (
            said
        )
        assert " since 2" in said and "use another --workdir" in said
        assert troubles.explain(error.value) == (said, troubles.LATER)
        first.send_signal(signal.SIGKILL)  # no chance to clear up
        first.wait()
        with lock.held(tmp_path, "trained"):
            who = json.loads((tmp_path / ".run_lock").read_text())
            assert (who["process"], who["doing"]) == (os.getpid(), "trained")
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    with lock.held(tmp_path, "trained"):  # free again
        pass


def test_a_lock_that_is_just_being_written_names_nobody(tmp_path):
    (tmp_path / "lock").write_text('{"doing": "tr')
    assert lock.holder(tmp_path / "lock") == "is in use by another process"
    assert lock.holder(tmp_path / "none") == "is in use by another process"


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.held(tmp_path, "trained"):
        pass
    assert "this file system has no locks (Function not implemented)" in caplog.text
