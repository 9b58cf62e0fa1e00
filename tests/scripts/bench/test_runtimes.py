"""The bench of ONNX runtimes runs as a script: its folder hides no package."""

import pytest

from tests.scripts.test_scripts import last_json, script, workdir

__all__ = ["workdir"]  # a run of the small experiment


@pytest.mark.slow
def test_a_checkpoint_is_timed_here_and_in_onnxruntime(workdir):
    done = script(
        *("bench/runtimes", f"--checkpoint={workdir}"),
        *("--rounds=1", "--threads=1", "--profile", "--quantize"),
    )
    found = last_json(done)
    names = {"jax", "onnxruntime", "onnxruntime int8"}
    assert names <= set(found["milliseconds"])
    assert all(x > 0 for x in found["milliseconds"].values())
    assert "Conv" in found["operators"]
