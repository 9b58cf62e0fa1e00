"""Trials of a sweep: where they come from, how they run, what they are worth.

    source = Listed(trials)                      # or Search(function, ...), by Optuna
    run(source, start, places, metric="AP")      # start(trial, place) -> a process
    write_results(workdir, source.trials)

`scripts/sweep.py` is how it is used.
"""

import concurrent.futures
import csv
import dataclasses
import hashlib
import json
import logging
import math
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from frcnn_jax.sweeps import launch
from frcnn_jax.training import metrics

log = logging.getLogger(__name__)

DONE = ("finished", "pruned")


@dataclasses.dataclass
class Trial:
    """One run of the sweep: what it changes, where it lies and how it fares."""

    name: str
    changes: dict[str, Any]
    folder: pathlib.Path
    total_steps: int
    state: str = "waiting"
    seconds: float = 0.0  # of earlier attempts
    began: float = 0.0
    step: int = 0
    loss: float = math.nan
    evaluations: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
    read_at: int = 0  # modification time of its metrics when last read
    number: int | None = None  # Optuna's

    @property
    def result(self) -> dict[str, float]:
        """The last evaluation's metrics."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else {}

    @property
    def time(self) -> float:
        """Seconds over all attempts."""
        return self.seconds + (time.time() - self.began if self.began else 0.0)

    def read(self) -> None:
        """Reads what it has written since the last time."""
        path = self.folder / "metrics.jsonl"
        if not path.exists() or path.stat().st_mtime_ns == self.read_at:
            return
        self.read_at = path.stat().st_mtime_ns
        self.evaluations = {}
        for row in metrics.read(path):
            self.step = row["step"]
            if row["group"] == "train":
                self.loss = row["total"]
            elif row["group"] == "eval":
                values = {k: v for k, v in row.items() if isinstance(v, float)}
                self.evaluations[row["step"]] = values

    def load(self) -> None:
        """How its earlier attempts ended, if there were any."""
        note = self.folder / "trial.json"
        if note.exists():
            saved = json.loads(note.read_text())
            self.state, self.seconds = saved["state"], saved["seconds"]
        self.read()

    def save(self, state: str) -> None:
        """Ends an attempt."""
        self.state, self.seconds, self.began = state, self.time, 0.0
        note = dict(state=state, seconds=self.seconds, changes=self.changes)
        temporary = self.folder / "trial.tmp"
        temporary.write_text(json.dumps(note, indent=2) + "\n")
        temporary.replace(self.folder / "trial.json")


def encode(value: Any) -> str:
    """A value as the flags of scripts/train.py read it."""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, list | tuple):
        return repr(tuple(plain(v) for v in value))
    return repr(plain(value))


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item() if hasattr(value, "item") else value


def trial_name(changes: Mapping[str, Any], leaves: Iterable[str] = ()) -> str:
    """Names a trial after its changes; the same changes always have the same name.

    A leaf is called by the end of its name that no other of the `leaves` has, a float
    by four significant digits. A hash of the whole values follows where the name does
    not state them exactly.

    >>> trial_name({"optimizer.learning_rate": 0.01, "seed": 1})
    'learning_rate=0.01,seed=1'
    >>> trial_name({"optimizer.learning_rate": 0.0123456789})
    'learning_rate=0.01235-3f8528c0'
    >>> trial_name({"rpn.fg_iou": 0.7}, ["rpn.fg_iou", "roi.fg_iou"])
    'rpn.fg_iou=0.7'
    """
    leaves = list(leaves)
    whole = ",".join(f"{ending(k, leaves)}={encode(v)}" for k, v in changes.items())
    text = ",".join(
        f"{ending(k, leaves)}={encode(_readable(v))}" for k, v in changes.items()
    )
    short = re.sub(r"[^\w.=,+-]+", "_", text).strip("_.")[:80] or "as_it_is"
    if short == whole:
        return short
    values = json.dumps(changes, default=plain)
    return f"{short}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"


def _readable(value: Any) -> Any:
    """A float to four significant digits, inside of tuples too."""
    value = plain(value)
    if isinstance(value, list | tuple):
        return tuple(map(_readable, value))
    return float(f"{value:.4g}") if isinstance(value, float) else value


def ending(name: str, leaves: Iterable[str]) -> str:
    """The least of the last parts of a leaf's name that no other leaf ends with."""
    parts = name.split(".")
    ends = [".".join(parts[-n:]) for n in range(1, len(parts))]
    others = [f".{leaf}" for leaf in leaves if leaf != name]
    clear = (e for e in ends if not any(o.endswith(f".{e}") for o in others))
    return next(clear, name)


# --------------------------------------------------------------- source of trials


class Listed:
    """Trials that are known from the start."""

    def __init__(self, trials: list[Trial]):
        self.trials = trials
        self.waiting = [t for t in trials if t.state not in DONE]

    def next(self) -> Trial | None:
        """The next to run."""
        return self.waiting.pop(0) if self.waiting else None

    def hopeless(self, trial: Trial) -> bool:
        """Whether it should end early."""
        return False

    def end(self, trial: Trial) -> None:
        """Takes note of its end."""


class Search:
    """Trials that Optuna asks for; `function(trial)` returns what one changes.

    Args:
        function: takes an Optuna trial, returns the changed leaves.
        make: `make(changes, number)` builds the Trial.
        workdir: the folder whose trials these are; a storage may serve several.
        name: of the study in the storage.
        storage: an Optuna URL, by default SQLite in the workdir.
        trials: how many, those of other machines included.
        metric: a name of the evaluation's metrics, to be maximised.
        sampler: "tpe" (tree-structured Parzen estimator) or "random".
        pruner: "median" (worse than the median of the others at the same step, from the
            fourth trial on), "asha" (of those that reach `rung`, 3 `rung`, 9 `rung`,
            ... steps a third goes on) or "none".
        rung: steps of the first evaluation.
        seed: of the sampler.
    """

    def __init__(
        self,
        function: Callable[[Any], Mapping[str, Any]],
        make: Callable[[Mapping[str, Any], int], Trial],
        workdir: pathlib.Path,
        *,
        name: str = "sweep",
        storage: str = "",
        trials: int = 20,
        metric: str = "AP",
        sampler: str = "tpe",
        pruner: str = "median",
        rung: int = 1,
        seed: int = 0,
    ):
        try:
            import optuna
        except ImportError:
            raise ImportError(
                "a search needs Optuna: run pip install '.[sweep]' in the folder of "
                "the repository"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.function, self.make = optuna, function, make
        self.count, self.metric = trials, metric
        pruners = dict(
            median=lambda: optuna.pruners.MedianPruner(n_startup_trials=3),
            asha=lambda: optuna.pruners.SuccessiveHalvingPruner(
                min_resource=rung, reduction_factor=3
            ),
            none=optuna.pruners.NopPruner,
        )
        samplers = dict(
            tpe=optuna.samplers.TPESampler, random=optuna.samplers.RandomSampler
        )
        self.study = optuna.create_study(
            storage=storage or f"sqlite:///{workdir / 'study.db'}",
            study_name=name,
            load_if_exists=True,
            direction="maximize",
            pruner=pruners[pruner](),
        )
        # Not the draws over again that a study which goes on began with.
        earlier = self.study.get_trials(deepcopy=False)
        self.study.sampler = samplers[sampler](seed=seed + len(earlier))
        self.asked: dict[int, Any] = {}
        self.reported: dict[int, set[int]] = {}
        self.trials: list[Trial] = []
        self.unfinished: list[Trial] = []
        for frozen in earlier:
            where = frozen.user_attrs.get("folder")
            if where is None or pathlib.Path(where).parents[1] != workdir:
                continue  # of another machine that works on the same study
            trial = make(json.loads(frozen.user_attrs["changes"]), frozen.number)
            self.trials.append(trial)
            states = optuna.trial.TrialState
            if frozen.state == states.RUNNING:
                self.asked[frozen.number] = optuna.trial.Trial(
                    self.study, frozen._trial_id
                )
                self.reported[frozen.number] = set(frozen.intermediate_values)
                self.unfinished.append(trial)
            else:
                ended = {states.COMPLETE: "finished", states.PRUNED: "pruned"}
                trial.state = ended.get(frozen.state, "failed")

    def next(self) -> Trial | None:
        """One that was interrupted, or a new one."""
        if self.unfinished:
            return self.unfinished.pop(0)
        if len(self.study.get_trials(deepcopy=False)) >= self.count:
            return None
        asked = self.study.ask()
        try:
            changes = self.function(asked)
            trial = self.make(changes, asked.number)
        except Exception:
            self.study.tell(asked, state=self.optuna.trial.TrialState.FAIL)
            raise
        asked.set_user_attr("folder", str(trial.folder))
        asked.set_user_attr("changes", json.dumps(changes, default=plain))
        self.asked[asked.number], self.reported[asked.number] = asked, set()
        self.trials.append(trial)
        return trial

    def hopeless(self, trial: Trial) -> bool:
        """Reports its new evaluations and asks the pruner."""
        assert trial.number is not None
        asked, reported = self.asked[trial.number], self.reported[trial.number]
        for step in sorted(set(trial.evaluations) - reported):
            reported.add(step)
            value = trial.evaluations[step].get(self.metric)
            if value is not None:
                asked.report(value, step)
                if step < trial.total_steps and asked.should_prune():
                    return True
        return False

    def end(self, trial: Trial) -> None:
        """Tells the study; one that was killed stays open."""
        assert trial.number is not None
        states = self.optuna.trial.TrialState
        if trial.state == "finished":
            self.study.tell(trial.number, trial.result[self.metric])
        elif trial.state == "pruned":
            self.study.tell(trial.number, state=states.PRUNED)
        elif trial.state == "failed":
            self.study.tell(trial.number, state=states.FAIL)


# ---------------------------------------------------------------------- the sweep


def judge(trial: Trial, code: int, metric: str) -> str:
    """How an attempt ended: by a signal, or early without an error, is "killed"."""
    if code == 0 and max(trial.evaluations, default=0) >= trial.total_steps:
        return "finished" if metric in trial.result else "failed"
    return "killed" if code <= 0 or code >= 128 else "failed"


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
    free, running = list(places), []  # running: (trial, place, process)
    blocked: list[Trial] = []
    console = Console(stderr=True)

    def say(text: str) -> None:
        if console.is_terminal:  # above the table
            console.print(text, markup=False, highlight=False)
        else:
            log.info("%s", text)

    said = time.time()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            while True:
                while free:
                    trial = source.next() or (blocked.pop(0) if blocked else None)
                    if trial is None:
                        break
                    process = start(trial, free[0])
                    if process is None:
                        if trial.state != "elsewhere":
                            say(f"{trial.name}: an earlier process runs it")
                        trial.state = "elsewhere"
                        blocked.append(trial)
                        break
                    trial.state, trial.began = "running", time.time()
                    running.append((trial, free.pop(0), process))
                    say(f"{trial.name}: started")
                if not running and not blocked:
                    return
                time.sleep(every)
                for entry in list(running):
                    trial, place, process = entry
                    code = process.poll()  # before reading, so that nothing is missed
                    trial.read()
                    if source.hopeless(trial) and code is None:
                        process.stop()
                        trial.save("pruned")
                    elif code is not None:
                        trial.save(judge(trial, code, metric))
                    else:
                        continue
                    running.remove(entry)
                    free.append(place)
                    source.end(trial)
                    say(f"{trial.name}: {outcome(trial, metric)}")
                for trial in blocked:
                    trial.read()
                if console.is_terminal:
                    live.update(table(source.trials, metric), refresh=True)
                elif time.time() - said > 60:
                    said = time.time()
                    at = [f"{t.name} {t.step}/{t.total_steps}" for t, *_ in running]
                    done = sum(t.state in DONE for t in source.trials)
                    say(f"{done} done; {', '.join(at)}")
        finally:
            if running and not leave:  # at once: each takes its time to save itself
                say(f"stopping {', '.join(t.name for t, *_ in running)}")
                with concurrent.futures.ThreadPoolExecutor(len(running)) as pool:
                    list(pool.map(lambda entry: entry[2].stop(), running))
                for trial, *_ in running:
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
