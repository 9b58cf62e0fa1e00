import json
import os
import pathlib
import signal
import threading
import time

import pytest

from frcnn_jax.sweeps import launch, sweep
from frcnn_jax.sweeps.search import Search
from frcnn_jax.sweeps.trials import Trial, trial_name


class Scripted:
    """A process that evaluates to the next of its values each time it is looked at."""

    def __init__(self, trial, values):
        self.trial, self.values, self.stopped = trial, values, False
        trial.folder.mkdir(parents=True, exist_ok=True)
        self.step = trial.step

    def poll(self):
        code = None if self.step < self.trial.total_steps else 0
        self.step += 1
        if self.step <= self.trial.total_steps:
            row = dict(step=self.step, group="eval", AP=self.values[self.step - 1])
            with (self.trial.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        return code

    def stop(self):
        self.stopped = True


def search(tmp_path, function=None, **kwargs):
    def make(changes, number):
        trial = Trial(f"{number:04d}", dict(changes), tmp_path / "trials" / "x", 3)
        trial.folder, trial.number = tmp_path / "trials" / trial.name, number
        trial.load()
        return trial

    def suggest(trial):
        return {"rate": trial.suggest_float("rate", 0.0, 1.0)}

    return Search(function or suggest, make, tmp_path, **kwargs)


@pytest.mark.parametrize("pruner", ["median", "asha", "none"])
def test_search_ends_what_is_worse_than_the_others_early(tmp_path, pruner):
    source = search(tmp_path, trials=6, pruner=pruner)
    processes = []

    def start(trial, place):
        good = trial.number != 4
        processes.append(Scripted(trial, [0.3, 0.6, 0.9] if good else [0.1] * 3))
        return processes[-1]

    sweep.run(source, start, ["only"], every=0.0)
    states = [t.state for t in source.trials]
    assert len(states) == 6
    stopped = [p.trial.number for p in processes if p.stopped]
    assert stopped == [i for i, state in enumerate(states) if state == "pruned"]
    if pruner == "none":
        assert states == ["finished"] * 6
    elif pruner == "median":
        assert states == ["finished"] * 4 + ["pruned", "finished"]
        assert max(source.trials[4].evaluations) == 1
    else:
        assert states[0] == "finished" and states[4] == "pruned"
    best = source.study.best_trial
    assert best.value == 0.9 and best.number != 4


def test_search_goes_on_with_what_was_interrupted_and_draws_anew(tmp_path):
    first = search(tmp_path, trials=3)

    def dies(trial, place):  # the second one ends the whole sweep
        if trial.number == 1:
            raise KeyboardInterrupt
        return Scripted(trial, [0.1, 0.2, 0.3])

    with pytest.raises(KeyboardInterrupt):
        sweep.run(first, dies, ["only"], every=0.0)
    begun = []

    def start(trial, place):
        begun.append(trial.number)
        return Scripted(trial, [0.1, 0.2, 0.3])

    again = search(tmp_path, trials=3)
    sweep.run(again, start, ["only"], every=0.0)
    assert begun == [1, 2]
    assert [t.state for t in again.trials] == ["finished"] * 3
    assert again.trials[1].changes == first.trials[1].changes
    assert len({t.changes["rate"] for t in again.trials}) == 3


def test_search_whose_function_fails_leaves_nothing_open(tmp_path):
    def wrong(trial):
        raise RuntimeError("no")

    source = search(tmp_path, wrong, trials=2)
    with pytest.raises(RuntimeError, match="no"):
        source.next()
    assert not search(tmp_path, trials=2).unfinished


def test_write_results_puts_the_best_first_and_names_what_changed(tmp_path):
    trials = []
    for i, ap in enumerate([0.2, 0.7, None]):
        trial = Trial(str(i), {"a.b": i}, tmp_path / str(i), 5)
        if ap is not None:
            trial.state, trial.evaluations = "finished", {5: {"AP": ap}}
        trials.append(trial)
    trials[0].changes["seed"] = 3
    ordered = sweep.best_first(trials, "AP")
    sweep.write_results(tmp_path, ordered)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["trial"] for row in rows] == ["1", "0", "2"]
    assert rows[0]["metrics"] == {"AP": 0.7} and rows[0]["changes"] == {"a.b": 1}
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0] == "trial,state,step,seconds,AP,a.b,seed"
    assert lines[1:] == [
        "1,finished,0,0.0,0.7,1,",
        "0,finished,0,0.0,0.2,0,3",
        "2,waiting,0,0.0,,2,",
    ]


def test_trial_name_is_short_a_folder_and_tells_apart():
    name = trial_name({"a.canvas": (64, 64), "b.text": "x/y z"})
    assert "/" not in name and " " not in name
    long = [trial_name({"x" * 90: i}) for i in (1, 2)]
    assert long[0] != long[1] and all(len(n) < 100 for n in long)
    assert trial_name({"a.x": 1}) != trial_name({"a.x": 1.5})
    drawn = [{"a.rate": 0.012345678}, {"a.rate": 0.012345679}]
    names = [trial_name(changes) for changes in drawn]
    assert names[0] != names[1] and all(n.startswith("rate=0.01235-") for n in names)
    leaves = ["rpn.iou", "roi.iou", "a.seed", "seed", "roi.x"]
    names = [trial_name({leaf: 1}, leaves) for leaf in leaves]
    assert names == ["rpn.iou=1", "roi.iou=1", "a.seed=1", "seed=1", "x=1"]


def test_slots_give_each_job_its_own_gpu_or_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [s.env["CUDA_VISIBLE_DEVICES"] for s in launch.slots()] == ["2", "5"]
    four = launch.slots(4)
    assert [s.env["CUDA_VISIBLE_DEVICES"] for s in four] == ["2", "5", "2", "5"]
    assert all(s.env["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false" for s in four)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.slots() == [launch.Slot({}, tuple(range(8)))]
    assert [s.cores for s in launch.slots(3)] == [(0, 1), (2, 3), (4, 5)]
    with pytest.raises(ValueError, match="jobs=9: this process has 8 cores"):
        launch.slots(9)


def test_a_preempted_job_ends_its_process_and_is_queued_again(tmp_path):
    pytest.importorskip("submitit")
    task, again = launch.Task(("sleep", "30"), str(tmp_path)), []

    def preempt(*_):  # in the thread that waits for the process, as submitit does
        again.append(task.checkpoint())

    before = signal.signal(signal.SIGUSR1, preempt)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    start = time.monotonic()
    try:
        assert task() == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - start < 15
    assert again[0].function.command == ("sleep", "30")


def test_a_folder_has_one_process_at_a_time_whoever_started_it(tmp_path):
    sleep = ["sleep", "30"]
    slot = launch.slots(1, [])[0]
    run = launch.start_local(sleep, tmp_path, slot)
    assert run is not None and run.poll() is None
    assert launch.start_local(sleep, tmp_path, slot) is None
    run.stop()
    assert run.poll() == -15
    again = launch.start_local(["sh", "-c", "echo $0; exit 3"], tmp_path, slot)
    assert again is not None and again.process.wait() == 3
    assert pathlib.Path(tmp_path / launch.LOG).read_text() == "sh\n"
