r"""Sweeps an experiment: lists, grids, random draws, or a search with Optuna.

python scripts/sweep.py --config=experiments/shapes_demo.py --sweep=rate \
    --workdir=runs/rate --jobs=2
python scripts/sweep.py --config=experiments/shapes_demo.py --sweep=optimizer \
    --workdir=runs/search --trials=20 --pruner=median --config.eval_every=200
python scripts/sweep.py --config=experiments/bccd_r50_fpn.py --sweep=rate \
    --workdir=runs/rate --launcher=slurm --slurm=slurm_partition=gpu \
    --slurm=gpus_per_node=1 --slurm=timeout_min=600

`--sweep=NAME` is a function of the experiment's file: `sweep_NAME()` yields the changes
of one trial after the other, `search_NAME(trial)` returns those of an Optuna trial:

    def sweep_rate():
        for rate in (1e-3, 2e-3):
            yield {"optimizer.learning_rate": rate}

    def search_optimizer(trial):
        return {"optimizer.learning_rate": trial.suggest_float("rate", 1e-4, 1e-2)}

The key ":" stands for the experiment's string argument (`{":": "depth=101"}`);
`--config.NAME=VALUE` holds for all trials. Each trial is a run of scripts/train.py in
`trials/NAME`, `train.log` beside it. The same command again goes on: what is finished
stays, what was killed resumes from its checkpoint, what failed is tried anew (a search
counts it as one of its trials and draws others). Ends with a table sorted by
`--metric`, also in results.csv and results.json; the last line on stdout is one JSON
object. The exit code is 1 if a trial failed or was killed.
"""

import difflib
import functools
import inspect
import json
import logging
import pathlib
import signal
import sys
from collections.abc import Mapping
from typing import Any

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console

from frcnn_jax.sweeps import launch, sweep
from frcnn_jax.sweeps.search import Listed, Search
from frcnn_jax.sweeps.trials import DONE, Trial, encode, plain, trial_name
from frcnn_jax.training import cli, lock, metrics
from frcnn_jax.training import config as configs

ROOT = pathlib.Path(__file__).resolve().parents[1]

log = logging.getLogger("frcnn_jax.sweep")
CONFIG = cli.define_config(
    "The experiment, e.g. experiments/shapes_demo.py.", required=True
)
SWEEP = flags.DEFINE_string(
    "sweep",
    None,
    "NAME of a function sweep_NAME or search_NAME of the experiment.",
    required=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder that keeps the trials.", required=True
)
METRIC = flags.DEFINE_string(
    "metric", "AP", "The metric that trials are compared by; more is better."
)
LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "local",
    ["local", "slurm"],
    "Where trials run: this machine, or a SLURM cluster.",
)
JOBS = flags.DEFINE_integer(
    "jobs", 0, "Trials at a time; 0: one a GPU, on CPUs one, on a cluster all (a "
    "search: 4).", lower_bound=0,
)  # fmt: skip
DEVICES = flags.DEFINE_list("devices", None, "Numbers of the GPUs; default all.")
SLURM = flags.DEFINE_multi_string(
    "slurm", [], "A parameter of submitit's executor: slurm_partition=gpu, mem_gb=64."
)
CLUSTER = flags.DEFINE_enum(
    "cluster", "slurm", ["slurm", "local"],
    "For --launcher=slurm; local: submitit's jobs on this machine, to try it out.",
)  # fmt: skip
TRIALS = flags.DEFINE_integer(
    "trials", 20, "Search: the number of trials.", lower_bound=1
)
SAMPLER = flags.DEFINE_enum("sampler", "tpe", ["tpe", "random"], "Search: the sampler.")
PRUNER = flags.DEFINE_enum(
    "pruner", "median", ["median", "asha", "none"],
    "Search: which trials end early, by the metric at each evaluation.",
)  # fmt: skip
STORAGE = flags.DEFINE_string(
    "storage", "", "Search: Optuna's storage URL; default SQLite in the workdir."
)
SEED = flags.DEFINE_integer("seed", 0, "Search: seed of the sampler.")

# ------------------------------------------------------------------ experiment


def find_sweep(module: Any, path: str) -> tuple[Any, bool]:
    """The function that `--sweep` names, and whether it is a search."""
    found = [
        (getattr(module, f"{kind}_{SWEEP.value}"), kind == "search")
        for kind in ("sweep", "search")
        if hasattr(module, f"{kind}_{SWEEP.value}")
    ]
    if len(found) != 1:
        there = [n for n in vars(module) if n.startswith(("sweep_", "search_"))]
        raise app.UsageError(
            f"--sweep={SWEEP.value}: {path} has {'both' if found else 'neither'} "
            f"sweep_{SWEEP.value}() and search_{SWEEP.value}(trial); it has "
            f"{', '.join(sorted(there)) or 'no sweeps'}"
        )
    return found[0]


def trial_config(module: Any, arg: str, changes: Mapping[str, Any]) -> Any:
    """The configuration of a trial; ValueError names a leaf that does not fit."""
    extra = changes.get(":")
    arg = ",".join(filter(None, [arg, extra]))
    takes = bool(inspect.signature(module.get_config).parameters)
    if arg and not takes:
        raise ValueError(f"get_config takes no argument, found {arg!r}")
    c = module.get_config(arg or None) if takes else module.get_config()
    shared = config_flags.get_override_values(flags.FLAGS["config"])
    there = configs.leaves(c.to_dict())
    for name, value in {**shared, **changes}.items():
        if name == ":":
            continue
        if name not in there:
            near = difflib.get_close_matches(name, there, 1)
            raise ValueError(
                f"the sweep sets {name}, but the config has no such leaf"
                + (f": is it {near[0]}?" if near else "")
            )
        try:
            c.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise ValueError(f"the sweep sets {name}={value!r}: {error}") from None
    return c


def command(path: str, arg: str, trial: Trial) -> list[str]:
    """What a user would type for this trial."""
    shared = config_flags.get_override_values(flags.FLAGS["config"])
    changes = {**shared, **trial.changes}
    arg = ",".join(filter(None, [arg, changes.pop(":", "")]))
    return launch.python(
        ROOT / "scripts" / "train.py",
        f"--config={path}{':' + arg if arg else ''}",
        f"--workdir={trial.folder}",
        *(f"--config.{name}={encode(value)}" for name, value in changes.items()),
    )


def check_list(workdir: pathlib.Path, trials: list[Trial]) -> None:
    """UsageError for a trial yielded twice, or begun earlier and not yielded now."""
    now = {t.name for t in trials}
    root = workdir / "trials"
    gone = sorted(p.name for p in root.glob("*") if p.is_dir() and p.name not in now)
    if gone:
        raise app.UsageError(
            f"{root} has trials that sweep_{SWEEP.value}() does not yield any more: "
            f"{', '.join(gone[:5])}. Draw from a seeded generator "
            "(random.Random(0)), use another --workdir, or delete these folders."
        )
    if len(now) < len(trials):
        names = [t.name for t in trials]
        twice = sorted({n for n in names if names.count(n) > 1})
        raise app.UsageError(f"sweep_{SWEEP.value}() yields twice: {twice[:5]}")


def executor(workdir: pathlib.Path) -> Any:
    try:
        import submitit
    except ImportError:
        raise app.UsageError(
            "--launcher=slurm needs submitit: run pip install '.[sweep]' in the "
            "folder of the repository"
        ) from None
    found = submitit.AutoExecutor(workdir / "jobs", cluster=CLUSTER.value)
    values: dict[str, Any] = {"name": f"sweep_{SWEEP.value}", "timeout_min": 24 * 60}
    for item in SLURM.value:
        name, equals, text = item.partition("=")
        if not equals:
            raise app.UsageError(f"--slurm={item}: expected NAME=VALUE")
        number = text.lstrip("-").replace(".", "", 1).isdecimal()
        values[name] = json.loads(text) if number else text
    try:
        found.update_parameters(**values)
    except (NameError, TypeError, ValueError) as error:
        raise app.UsageError(f"--slurm: {error}") from None
    return found


def make_trial(
    workdir: pathlib.Path,
    module: Any,
    arg: str,
    changes: Mapping[str, Any],
    number: int | None = None,
) -> Trial:
    """A trial in its folder; UsageError where that has another configuration."""
    changes = {k: plain(v) for k, v in changes.items()}
    c = trial_config(module, arg, changes)
    name = trial_name(changes, configs.leaves(c.to_dict()))
    name = name if number is None else f"{number:04d}-{name}"
    trial = Trial(name, changes, workdir / "trials" / name, c.total_steps)
    trial.number = number
    trial.load()
    written = trial.folder / "config.json"
    if written.exists():
        old = configs.from_json(json.loads(written.read_text()))
        try:
            configs.check_resumed(old, c)
        except ValueError as error:
            raise app.UsageError(f"{trial.folder}: {error}") from None
    return trial


def make_search(function: Any, make: Any, workdir: pathlib.Path, c: Any) -> Search:
    """Optuna's trials; `c` is the configuration without changes."""
    if PRUNER.value != "none" and c.eval_every >= c.total_steps:
        log.warning(
            "eval_every=%d of %d steps leaves nothing to prune by: set "
            "--config.eval_every",
            *(c.eval_every, c.total_steps),
        )
    return Search(
        function,
        make,
        workdir,
        name=SWEEP.value,
        storage=STORAGE.value,
        trials=TRIALS.value,
        metric=METRIC.value,
        sampler=SAMPLER.value,
        pruner=PRUNER.value,
        rung=c.eval_every,
        seed=SEED.value,
    )


def make_list(function: Any, make: Any, workdir: pathlib.Path) -> Listed:
    """The trials that the function yields."""
    try:
        trials = [make(changes) for changes in function()]
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    check_list(workdir, trials)
    return Listed(trials)


def main(_):
    metrics.log_to_stderr()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    workdir = pathlib.Path(WORKDIR.value).absolute()
    with lock.held(workdir, "swept", name=launch.LOCK):
        sweep_all(workdir)


def sweep_all(workdir: pathlib.Path) -> None:
    """All trials of the sweep, those done already left as they are."""
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    path, _, arg = name.partition(":")
    module = configs.load_experiment(path)
    function, searches = find_sweep(module, path)
    make = functools.partial(make_trial, workdir, module, arg)
    if searches:
        source = make_search(function, make, workdir, trial_config(module, arg, {}))
    else:
        source = make_list(function, make, workdir)
    local = LAUNCHER.value == "local"
    if local:
        places: list[Any] = launch.slots(JOBS.value, DEVICES.value)
    else:
        jobs = JOBS.value or (4 if searches else len(source.trials))
        places = [executor(workdir)] * jobs
    launcher = launch.start_local if local else launch.start_slurm

    def start(trial: Trial, place: Any):
        return launcher(command(path, arg, trial), trial.folder, place)

    log.info(
        "%s of %s: %d trials, %d done already, %d at a time",
        *(SWEEP.value, path, TRIALS.value if searches else len(source.trials)),
        sum(t.state in DONE for t in source.trials),
        len(places),
    )
    try:
        sweep.run(source, start, places, metric=METRIC.value, leave=not local)
    finally:
        trials = sweep.best_first(source.trials, METRIC.value)
        rows = sweep.write_results(workdir, trials)
        width = None if sys.stdout.isatty() else 160
        Console(width=width).print(sweep.table(trials, METRIC.value))
        best = rows[0] if rows and rows[0]["state"] == "finished" else None
        states = [t.state for t in trials]
        counts = {state: states.count(state) for state in sorted(set(states))}
        print(json.dumps(dict(best=best, **counts)))
    sys.exit(0 if all(t.state in DONE for t in source.trials) else 1)


if __name__ == "__main__":
    cli.run(main)
