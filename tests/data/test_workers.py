"""What happens to a run whose worker processes fail: an error, never a hang."""

import subprocess
import sys

import pytest

PROGRAM = """
import collections.abc, dataclasses, os, signal, sys
import numpy as np
from frcnn_jax.data import pipeline
from frcnn_jax.data.sources import dicts

class Failing(collections.abc.Sequence):  # a list is read before the workers start
    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        if i == 5 and sys.argv[1] == "raise":
            raise RuntimeError("no such record")
        if i == 5 and sys.argv[1] == "die":
            os._exit(9)
        if i == 5 and sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.examples[i]

if __name__ == "__main__":
    image = np.zeros((20, 20, 3), np.uint8)
    source = dicts.from_dicts([dict(image=image)] * 8, classes=("a",))
    if sys.argv[1] == "unreadable":
        source.examples[5] = source.examples[5]._replace(image=b"x", image_id="bad")
    source = dataclasses.replace(source, examples=Failing(source.examples))
    shape = dict(short_side=20, max_side=20, canvas=(20, 20))
    data = pipeline.train_dataset(source, batch_size=2, seed=0, workers=2, **shape)
    batches = iter(data)
    for _ in range(12):
        next(batches)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "how, message",
    [
        ("raise", "RuntimeError: no such record"),
        ("die", "terminated unexpectedly with exit code 9"),
        ("killed", "terminated unexpectedly with exit code -9"),  # out of memory
        ("unreadable", "cannot decode the image bad"),
    ],
)
def test_a_failing_worker_is_an_error(tmp_path, how, message):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), how], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" in done.stderr
