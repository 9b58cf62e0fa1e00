"""Checkpoints: what a run writes, and how it resumes from them.

A run's folder holds `checkpoints/STEP/`, each complete in itself:

    model      params, their running mean (EMA) and batch statistics: what predicts
    training   step and optimizer state (what a resumed run needs besides)
    meta       JSON: config, class names, category ids, data iterator
    metrics.json   what an evaluation of it found, once there was one

Arrays are stored by Orbax (no pickles) and committed by an atomic rename, so a
half-written checkpoint is never taken for a whole one. A checkpoint is evaluated after
it was saved, so an evaluation that fails does not lose it.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from frcnn_jax import models, npz
from frcnn_jax.data.images import canvases
from frcnn_jax.training import devices
from frcnn_jax.training.arrays import check_finite, check_same_arrays, named_leaves
from frcnn_jax.training.config import from_json
from frcnn_jax.training.state import TrainState

FORMAT = 1
METRICS = "metrics.json"


class Meta(NamedTuple):
    """What a checkpoint says about itself."""

    config: Any  # ml_collections.ConfigDict
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    step: int
    metrics: dict[str, float]
    data: Any  # the state of the data iterator


@dataclasses.dataclass
class LastAndBest(policies.PreservationPolicy):
    """Keeps the last two, in case the last one is useless, and the best."""

    workdir: str | pathlib.Path

    def should_preserve(self, checkpoints, *, context):
        """Orbax asks this after each save, of the saved steps in order."""
        steps = [c.step for c in checkpoints]
        best = _best({n: _metrics(folder(self.workdir) / str(n)) for n in steps})
        return [step in (*steps[-2:], best) for step in steps]


def manager(workdir: str | pathlib.Path) -> ocp.CheckpointManager:
    """The writer of a run's checkpoints, in the background; see `LastAndBest`."""
    return ocp.CheckpointManager(
        folder(workdir),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=LastAndBest(workdir), cleanup_tmp_directories=True
        ),
    )


def close(writer: ocp.CheckpointManager) -> None:
    """Waits for what is being written and ends the writer's threads.

    Raises the error of a write that failed, after everything is closed: Orbax ends its
    `close` at the first error, and raises each error once.
    """
    errors: list[Exception] = []
    for _ in range(4):  # the manager and its three items may each have one
        try:
            writer.close()
            break
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def folder(workdir: str | pathlib.Path) -> pathlib.Path:
    """Where a run keeps its checkpoints."""
    return pathlib.Path(workdir).absolute() / "checkpoints"


def save(
    writer: ocp.CheckpointManager,
    state: TrainState,
    *,
    config: ml_collections.ConfigDict,
    classes: Sequence[str],
    category_ids: Sequence[int],
    data: Any = None,
) -> int:
    """Writes a checkpoint in the background and returns its step."""
    step = int(state.step)
    meta = dict(
        format=FORMAT,
        config=json.loads(config.to_json()),
        classes=list(classes),
        category_ids=list(category_ids),
        step=step,
        data=data,
    )
    writer.save(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(_model(state)),
            training=ocp.args.StandardSave(_training(state)),
            meta=ocp.args.JsonSave(meta),
        ),
    )
    return step


def record(
    writer: ocp.CheckpointManager, step: int, metrics: Mapping[str, float]
) -> None:
    """Writes what an evaluation of a saved step found beside it, whole or not at all.

    From then on the step may be the best one.
    """
    writer.wait_until_finished()
    if not devices.is_first():
        return
    path = pathlib.Path(str(writer.directory)) / str(step) / METRICS
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(dict(metrics)) + "\n")
    temporary.replace(path)


def good_before(writer: ocp.CheckpointManager, step: int) -> str:
    """Names the checkpoint to resume from after `step` was not finite."""
    earlier = [n for n in writer.all_steps() if n < step - 1]
    good = f"{writer.directory}/{earlier[-1]}" if earlier else "none yet"
    if step - 1 in writer.all_steps():
        return (
            f"{step - 1} holds the parameters that gave this loss: remove its folder "
            f"to go on from the last good checkpoint before it: {good}"
        )
    return f"last good checkpoint: {good}"


def restore(
    writer: ocp.CheckpointManager, state: TrainState
) -> tuple[TrainState, Meta]:
    """The last checkpoint, laid out like `state`; its arrays must be those of it.

    Raises ValueError that lists the differences.
    """
    step = writer.latest_step()
    assert step is not None
    where = pathlib.Path(str(writer.directory)) / str(step)
    with _reading(where), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        model, training = (
            reader.metadata(where / item).item_metadata.tree
            for item in ("model", "training")
        )
    check_same_arrays(_model(state), model, where)
    if _shapes(_training(state)) != _shapes(training):
        raise ValueError(
            f"{where} holds the optimizer state of other parameters or of another "
            "optimizer: `frozen` or `optimizer` have changed; use those it was trained "
            "with, or start a new run with --config.init_from"
        )
    model, training = (jax.tree.map(_abstract, f(state)) for f in (_model, _training))
    with _reading(where):
        restored = writer.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(model),
                training=ocp.args.StandardRestore(training),
                meta=ocp.args.JsonRestore(),
            ),
        )
    model, training = restored["model"], restored["training"]
    return (
        TrainState(
            step=training["step"],
            params=model["params"],
            model_state=model["model_state"],
            opt_state=training["opt_state"],
            ema_params=model.get("ema_params"),
        ),
        _read_meta(restored["meta"], where),
    )


def find(path: str | pathlib.Path, *, best: bool = True) -> pathlib.Path:
    """The checkpoint that `path` means: a step's folder, or a run's best or last.

    RUN gives its best by the metric AP (`best=False`: its last), as do RUN/best and
    RUN/last; of a run that was never evaluated both are its last. Raises
    FileNotFoundError that says what was looked for.
    """
    path = pathlib.Path(path).absolute()
    if path.name in ("best", "last") and not path.exists():
        return find(path.parent, best=path.name == "best")
    if (path / "meta").is_dir() and (path / "model").is_dir():
        return path
    root = path if path.name == "checkpoints" else path / "checkpoints"
    steps = sorted(
        (p for p in root.glob("[0-9]*") if p.name.isdigit() and (p / "meta").is_dir()),
        key=lambda p: int(p.name),
    )
    if not steps:
        raise FileNotFoundError(
            f"no checkpoint at {path}: expected a run's folder (with checkpoints/STEP/)"
            " or one checkpoint's folder (with model/ and meta/); "
            "train one with scripts/train.py --workdir=DIR"
        )
    if best:
        chosen = _best({int(p.name): read_meta(p).metrics for p in steps})
        return steps[-1] if chosen is None else steps[0].with_name(str(chosen))
    return steps[-1]


def read_meta(checkpoint: str | pathlib.Path) -> Meta:
    """The meta item of one checkpoint's folder."""
    checkpoint = pathlib.Path(checkpoint)
    with _reading(checkpoint), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        meta = reader.restore(checkpoint / "meta")
    return _read_meta(meta, checkpoint)


def read_arrays(checkpoint: str | pathlib.Path, item: str) -> PyTree:
    """The item "model" or "training" of a checkpoint's folder, as numpy arrays."""
    path = pathlib.Path(checkpoint) / item
    with _reading(path), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(path).item_metadata.tree
        claimed = [
            math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
            for leaf in named_leaves(tree).values()
        ]
        npz.check_size(path, sum(claimed))
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
        )
        return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def read_variables(checkpoint: str | pathlib.Path) -> dict[str, PyTree]:
    """`{"params": ..., collection: ...}` of a checkpoint's folder, as numpy arrays.

    The parameters are their running mean where the run kept one: those it evaluated.
    """
    model = read_arrays(checkpoint, "model")
    params = model.get("ema_params", model["params"])
    return {"params": params, **model["model_state"]}


def load_model(checkpoint: str | pathlib.Path) -> tuple[Any, dict[str, PyTree], Meta]:
    """The model of a checkpoint's folder, its variables and its meta item."""
    meta, variables = read_meta(checkpoint), read_variables(checkpoint)
    c = meta.config.to_dict()
    model = models.build_detector(num_classes=len(meta.classes), **c["model"])
    canvas, *_ = canvases(c["data"]["canvas"])
    image = jax.ShapeDtypeStruct((1, *canvas, 3), np.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), image)
    check_same_arrays(expected, variables, checkpoint)
    check_finite(variables, checkpoint)
    return model, variables, meta


@contextlib.contextmanager
def _reading(where: Any) -> Iterator[None]:
    """Any error in here means that the checkpoint is incomplete: ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{where} cannot be read, it is damaged or incomplete "
            f"({type(error).__name__}: {error}); take another checkpoint, or remove "
            "this one's folder: the run then goes on from the one before"
        ) from error


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return sorted(tuple(leaf.shape) for leaf in leaves)


def _model(state: TrainState) -> dict[str, PyTree]:
    model = {"params": state.params, "model_state": state.model_state}
    if state.ema_params is not None:
        model["ema_params"] = state.ema_params
    return model


def _training(state: TrainState) -> dict[str, PyTree]:
    return {"step": state.step, "opt_state": state.opt_state}


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _best(metrics: Mapping[int, Mapping[str, float]]) -> int | None:
    """The step of the highest AP, of several the last; None without any."""
    scored = [(m["AP"], step) for step, m in metrics.items() if "AP" in m]
    return max(scored)[1] if scored else None


def _metrics(where: Any) -> dict[str, float]:
    path = pathlib.Path(where) / METRICS
    return json.loads(path.read_text()) if path.exists() else {}


def _read_meta(meta: Mapping[str, Any], where: Any) -> Meta:
    if meta.get("format") != FORMAT:
        raise ValueError(
            f"{where} is of checkpoint format {meta.get('format')}, this version reads "
            f"{FORMAT}"
        )
    return Meta(
        config=from_json(meta["config"]),
        classes=tuple(meta["classes"]),
        category_ids=tuple(meta["category_ids"]),
        step=meta["step"],
        metrics=_metrics(where) or meta.get("metrics", {}),
        data=meta["data"],
    )
