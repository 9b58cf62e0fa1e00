"""What tests of resuming share: a run that is interrupted, and two runs compared."""

import pytest

from frcnn_jax.training import checkpoint, devices, loop
from frcnn_jax.training.metrics import read, without_clock
from tests.training import small


def interrupt(monkeypatch, config, workdir, *, batch):
    """Train until Ctrl-C at a batch after the checkpoint of step 2.

    Batches are counted from 1; evaluation takes some too.
    """
    shard, calls = devices.shard, []

    def interrupted(rows):
        calls.append(rows)
        if rows.gt_valid.size and len(calls) == batch:
            raise KeyboardInterrupt
        return shard(rows)

    with monkeypatch.context() as patch:
        patch.setattr(devices, "shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.train_and_evaluate(config, workdir)
    assert [p.name for p in checkpoint.folder(workdir).iterdir()] == ["2"]


def assert_same_runs(a, b):
    """Bit for bit: the last checkpoint, the best one and what was written."""
    for name in ("model", "training"):
        x, y = (
            checkpoint.read_arrays(checkpoint.find(w / "last"), name) for w in (a, b)
        )
        small.assert_trees_equal(x, y)
    x, y = (checkpoint.read_meta(checkpoint.find(w / "best")) for w in (a, b))
    assert (x.step, x.metrics) == (y.step, y.metrics) and x.metrics
    x, y = (without_clock(read(w / "metrics.jsonl")) for w in (a, b))
    assert x == y
