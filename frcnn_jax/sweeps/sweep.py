"""Trials of a sweep: running them and comparing their metrics.

    source = Listed(trials)                      # or Search(function, ...), by Optuna
    run(source, start, places, metric="AP")      # start(trial, place) -> a process
    write_results(workdir, source.trials)

`scripts/sweep.py` is how it is used.
"""

import concurrent.futures
import csv
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from frcnn_jax.sweeps import launch
from frcnn_jax.sweeps.search import Listed, Search
from frcnn_jax.sweeps.trials import DONE, Trial, encode, plain
from frcnn_jax.training import metrics
from frcnn_jax.training.troubles import LATER

log = logging.getLogger(__name__)


def judge(trial: Trial, code: int, metric: str) -> str:
    """How an attempt ended: by a signal, or early without an error, is "killed"."""
    if code == 0 and max(trial.evaluations, default=0) >= trial.total_steps:
        return "finished" if metric in trial.result else "failed"
    return "killed" if code <= 0 or code >= 128 or code == LATER else "failed"


def run(
    source: Listed | Search,
    start: Callable[[Trial, Any], Any],
    places: Iterable[Any],
    *,
    metric: str = "AP",
    leave: bool = False,
    every: float = 1.0,
) -> None:
    """Runs trials until there is none left, showing a live table on a terminal.

    Args:
        source: where trials come from.
        start: starts one in a place, giving what has `poll` and `stop` (see `launch`),
            or None where another process is at work on it.
        places: as many trials run at a time.
        metric: a name of the evaluation's metrics.
        leave: interrupted, leave running what runs.
        every: seconds between two looks at them.
    """
    console = Console(stderr=True)
    runs = _Runs(source, start, list(places), metric, console)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            while True:
                runs.fill()
                if not runs.running and not runs.blocked:
                    return
                time.sleep(every)
                runs.collect()
                runs.show(live)
        finally:
            if not leave:
                runs.stop()


class _Runs:
    """What runs, in which place, and what waits for another process."""

    def __init__(
        self,
        source: Listed | Search,
        start: Callable[[Trial, Any], Any],
        places: list[Any],
        metric: str,
        console: Console,
    ):
        self.source, self.start, self.metric = source, start, metric
        self.free, self.console = places, console
        self.running: list[tuple[Trial, Any, Any]] = []  # trial, place, process
        self.blocked: list[Trial] = []
        self.said = time.time()

    def say(self, text: str) -> None:
        """A line, above the table where there is a terminal."""
        if self.console.is_terminal:
            self.console.print(text, markup=False, highlight=False)
        else:
            log.info("%s", text)

    def fill(self) -> None:
        """Starts trials as long as places are free."""
        while self.free:
            trial = self.source.next()
            trial = trial or (self.blocked.pop(0) if self.blocked else None)
            if trial is None:
                return
            process = self.start(trial, self.free[0])
            if process is None:
                if trial.state != "elsewhere":
                    self.say(f"{trial.name}: an earlier process runs it")
                trial.state = "elsewhere"
                self.blocked.append(trial)
                return
            trial.state, trial.began = "running", time.time()
            self.running.append((trial, self.free.pop(0), process))
            self.say(f"{trial.name}: started")

    def collect(self) -> None:
        """Reads what the trials have written, and ends those that are over."""
        for entry in list(self.running):
            trial, place, process = entry
            code = process.poll()  # before reading, so that nothing is missed
            trial.read()
            if self.source.hopeless(trial) and code is None:
                process.stop()
                trial.save("pruned")
            elif code is not None:
                trial.save(judge(trial, code, self.metric))
            else:
                continue
            self.running.remove(entry)
            self.free.append(place)
            self.source.end(trial)
            self.say(f"{trial.name}: {outcome(trial, self.metric)}")
        for trial in self.blocked:
            trial.read()

    def show(self, live: Live) -> None:
        """The table on a terminal, else a line a minute."""
        if self.console.is_terminal:
            live.update(table(self.source.trials, self.metric), refresh=True)
        elif time.time() - self.said > 60:
            self.said = time.time()
            at = [f"{t.name} {t.step}/{t.total_steps}" for t, *_ in self.running]
            done = sum(t.state in DONE for t in self.source.trials)
            self.say(f"{done} done; {', '.join(at)}")

    def stop(self) -> None:
        """Stops what runs, all at once: each takes its time to save itself."""
        if not self.running:
            return
        self.say(f"stopping {', '.join(t.name for t, *_ in self.running)}")
        with concurrent.futures.ThreadPoolExecutor(len(self.running)) as pool:
            list(pool.map(lambda entry: entry[2].stop(), self.running))
        for trial, *_ in self.running:
            trial.save("killed")


def outcome(trial: Trial, metric: str) -> str:
    """How it ended, in a line; the last of its log where it went wrong."""
    if trial.state in DONE:
        value = trial.result.get(metric, math.nan)
        return f"{trial.state}, {metric} {value:.3f} at step {trial.step}"
    path = trial.folder / launch.LOG
    text = path.read_text(errors="replace") if path.exists() else ""
    last = [line for line in text.splitlines() if line.strip()][-1:]
    return f"{trial.state}: {''.join(last) or 'it said nothing'} (see {path})"


def table(trials: Iterable[Trial], metric: str) -> Table:
    """The trials with their progress and what they change."""
    trials = list(trials)
    shown = Table(box=None, pad_edge=False)
    names = changed(trials)
    for name in ("state", "step", "loss", metric, "time"):
        shown.add_column(name, justify="left" if name == "state" else "right")
    for name in names:
        shown.add_column(name, overflow="fold")
    for t in trials:
        value = t.result.get(metric)
        shown.add_row(
            t.state,
            f"{t.step}/{t.total_steps}",
            "-" if math.isnan(t.loss) else f"{t.loss:.3f}",
            "-" if value is None else f"{value:.3f}",
            metrics.duration(t.time),
            *(encode(t.changes[n]) if n in t.changes else "-" for n in names),
        )
    return shown


def changed(trials: Iterable[Trial]) -> list[str]:
    """The names of all leaves that the trials change."""
    return list(dict.fromkeys(name for t in trials for name in t.changes))


def best_first(trials: Iterable[Trial], metric: str) -> list[Trial]:
    """Finished trials by falling metric, then the others."""
    return sorted(
        trials,
        key=lambda t: (t.state != "finished", -t.result.get(metric, -1.0)),
    )


def write_results(workdir: pathlib.Path, trials: list[Trial]) -> list[dict[str, Any]]:
    """Leaves results.json and results.csv, the best trial first."""
    rows = [
        dict(
            trial=t.name,
            state=t.state,
            step=t.step,
            seconds=round(t.seconds, 1),
            metrics=t.result,
            changes=t.changes,
        )
        for t in trials
    ]
    text = json.dumps(rows, indent=2, default=plain) + "\n"
    (workdir / "results.json").write_text(text)
    values = list(dict.fromkeys(name for t in trials for name in t.result))
    names = changed(trials)
    with (workdir / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "step", "seconds", *values, *names])
        for t in trials:
            writer.writerow(
                [t.name, t.state, t.step, round(t.seconds, 1)]
                + [t.result.get(name, "") for name in values]
                + [encode(t.changes[n]) if n in t.changes else "" for n in names]
            )
    return rows
