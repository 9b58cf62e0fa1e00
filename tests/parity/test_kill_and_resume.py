import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_kill_and_resume_changes_nothing(tmp_path):
    leaves = ["total_steps=60", "eval_every=6", "checkpoint_every=3", "log_every=1"]
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tests/parity/kill_and_resume.py")),
            *("--kills=4", f"--workdir={tmp_path}"),
            f"--config={ROOT / 'tests' / 'scripts' / 'small_experiment.py'}",
            *(f"--set={leaf}" for leaf in leaves),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["equal"] and sum(result["kills"].values()) == 4
    assert max(result["kills"].values()) < 4  # not all at the same phase
