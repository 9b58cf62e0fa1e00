"""With modules that stand for the real packages: those are not installed here."""

import sys
import types

import pytest

from frcnn_jax.training import metrics, trackers


def run(tmp_path, name):
    write = metrics.Writer(tmp_path, log_to=name, config={"seed": 3})
    write(5, {"total": 0.5}, group="train")
    write.close()


def test_wandb_gets_the_rows_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        id = "abc"

        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finish")

    def init(**kwargs):
        calls.append((kwargs["id"], kwargs["config"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for known in (None, "abc"):
        calls.clear()
        run(tmp_path, "wandb")
        assert calls == [(known, {"seed": 3}), (5, {"train/total": 0.5}), "finish"]


def test_mlflow_gets_the_rows_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    calls = []

    def start_run(run_id, run_name):
        calls.append((run_id, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="xyz"))

    fake = types.SimpleNamespace(
        start_run=start_run,
        log_dict=lambda values, name: calls.append((name, values)),
        log_metrics=lambda values, step: calls.append((step, values)),
        end_run=lambda: calls.append("end"),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    run(tmp_path, "mlflow")
    row = (5, {"train/total": 0.5})
    config = ("config.json", {"seed": 3})
    assert calls == [(None, tmp_path.name), config, row, "end"]
    calls.clear()
    run(tmp_path, "mlflow")
    assert calls == [("xyz", tmp_path.name), row, "end"]


def test_a_tracker_of_ones_own_is_named_by_its_path(tmp_path):
    run(tmp_path, f"{__name__}.mine")
    assert SEEN == [(5, {"train/total": 0.5})]


SEEN = []


def mine(workdir, config):
    return lambda step, values: SEEN.append((step, values)), lambda: None


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if not installed
    with pytest.raises(ValueError, match="log_to='wandb' needs .*pip install wandb"):
        trackers.open_tracker("wandb", tmp_path, {})
    with pytest.raises(ValueError, match="log_to='comet'.*'mlflow', 'wandb'.*dotted"):
        trackers.open_tracker("comet", tmp_path, {})
    assert not list(tmp_path.iterdir())
