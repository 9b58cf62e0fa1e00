"""Experiment trackers, through their own packages where those are installed.

`open_tracker("wandb", ...)` calls the function `wandb` of this module; a dotted path
means a function of yours. It takes the run's folder and configuration and returns
`log(step, {"train/total": 0.5, ...})` and `close()`. A resumed run continues its curve:
its id is kept in the folder.
"""

import importlib
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

Log = Callable[[int, Mapping[str, float]], None]
Tracker = tuple[Log, Callable[[], None]]


def open_tracker(
    name: str, workdir: str | pathlib.Path, config: Mapping[str, Any]
) -> Tracker:
    """The tracker `name`; ValueError for an unknown one, or one that is not there."""
    path, _, function = name.rpartition(".")
    module = importlib.import_module(path) if path else sys.modules[__name__]
    known = {"wandb": wandb, "mlflow": mlflow}
    opened = getattr(module, function, None) if path else known.get(function)
    if opened is None:
        raise ValueError(
            f"log_to={name!r}: expected one of {sorted(known)}, or the dotted path of "
            "a function like them"
        )
    try:
        return opened(pathlib.Path(workdir), config)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"log_to={name!r} needs the package {error.name}: pip install {error.name}"
        ) from None


def wandb(workdir: pathlib.Path, config: Mapping[str, Any]) -> Tracker:
    """Weights & Biases; project, entity and mode are its own environment variables."""
    import wandb  # pyright: ignore[reportMissingImports]

    kept = workdir / "wandb_id"
    run = wandb.init(
        id=kept.read_text() if kept.exists() else None,
        resume="allow",
        name=workdir.name,
        dir=str(workdir),
        config=dict(config),
    )
    kept.write_text(run.id)
    return lambda step, values: run.log(dict(values), step=step), run.finish


def mlflow(workdir: pathlib.Path, config: Mapping[str, Any]) -> Tracker:
    """MLflow; server and experiment are its own environment variables."""
    import mlflow  # pyright: ignore[reportMissingImports]

    kept = workdir / "mlflow_id"
    known = kept.read_text() if kept.exists() else None
    run = mlflow.start_run(run_id=known, run_name=workdir.name)
    if known is None:
        kept.write_text(run.info.run_id)
        mlflow.log_dict(dict(config), "config.json")
    return lambda step, values: mlflow.log_metrics(dict(values), step), mlflow.end_run
