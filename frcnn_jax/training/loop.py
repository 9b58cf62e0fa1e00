"""A run from start to end: data, model, optimizer, restore, train, evaluate."""

import logging
import pathlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import ml_collections
from jaxtyping import PyTree

from frcnn_jax import models, weights
from frcnn_jax.data.batches import padding_share
from frcnn_jax.data.images import canvases
from frcnn_jax.data.pipeline import Data
from frcnn_jax.data.source import Source
from frcnn_jax.training import (
    arrays,
    checkpoint,
    devices,
    faults,
    preemption,
    pretrained,
    recipe,
    rehearsal,
    surroundings,
    trained,
)
from frcnn_jax.training import config as configs
from frcnn_jax.training.compiling import Announced
from frcnn_jax.training.evaluate import build_data, validate
from frcnn_jax.training.metrics import Progress, Writer
from frcnn_jax.training.optimizer import make_optimizer, trainable_mask
from frcnn_jax.training.state import eval_variables, init_variables, initial_state, keep
from frcnn_jax.training.step import train_step
from frcnn_jax.training.validation import validate_step
from frcnn_jax.types import Batch

log = logging.getLogger(__name__)


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    *,
    allow_changes: bool = False,
    log_to: str = "",
    set_by_flag: Collection[str] = (),
) -> dict[str, Any]:
    """Trains to `config.total_steps`, going on from the last checkpoint in `workdir`.

    Returns the last evaluation's metrics. FloatingPointError names the step whose loss
    is not finite, and the last good checkpoint. ValueError: the run in `workdir` began
    with another configuration (unless `allow_changes`), or leaves contradict the
    weights to start from (those in `set_by_flag` are warned of).
    """
    config = configs.resolve(config)
    workdir = pathlib.Path(workdir).absolute()
    with surroundings.watched(workdir, config.data.to_dict()):
        config, sources = recipe.complete(config, workdir)
        c = configs.check(config)
        rehearsal.check_groups(c)
        for line in rehearsal.unused(c):
            log.warning(line)
        return run(
            *(config, c, workdir, sources),
            allow_changes=allow_changes,
            log_to=log_to,
            set_by_flag=set_by_flag,
        )


def run(
    config: ml_collections.ConfigDict,
    c: Mapping[str, Any],
    workdir: pathlib.Path,
    sources: tuple[Source, Source] | None,
    *,
    allow_changes: bool,
    log_to: str,
    set_by_flag: Collection[str],
) -> dict[str, Any]:
    """`train_and_evaluate` in a folder that is this process's; `c` is checked."""
    # ---- data ---------------------------------------------------------------
    data = build_data(c, sources)
    log_data(data)

    # ---- model --------------------------------------------------------------
    model = models.build_detector(num_classes=len(data.train.classes), **c["model"])
    key = jax.random.key(c["seed"])
    image_shape = (*canvases(c["data"]["canvas"])[0], 3)
    initial = partial(init_variables, image_shape=image_shape, model=model)
    variables = Announced(initial, "the network's initial weights")(key)
    variables = load_weights(variables, c, data.train.classes, set_by_flag=set_by_flag)

    # ---- optimizer ----------------------------------------------------------
    optimizer, learning_rate = make_optimizer(
        c["total_steps"], c["batch_size"], **c["optimizer"]
    )
    trainable = trainable_mask(variables["params"], c["frozen"])
    state = initial_state(
        key,
        image_shape,
        model=model,
        optimizer=optimizer,
        trainable=trainable,
        variables=variables,
        ema=c["ema_decay"] > 0,
    )
    log_size(state.params, keep(state.params, trainable))
    if c["data"]["eval_split"]:
        rehearsal.check_evaluation(c, model, eval_variables(state))
    surroundings.warn_of_room(workdir, state)

    # ---- restore ------------------------------------------------------------
    # Replicated before the first step, else the step compiles a second time.
    state, key = devices.replicated((state, key))
    batches = data.train_batches()
    writer = checkpoint.manager(workdir)
    first, result = writer.latest_step() or 0, {}
    if first:
        check_resumed(workdir, first, config, data.train, allow_changes=allow_changes)
        state, meta = checkpoint.restore(writer, state)
        batches.set_state(meta.data)
        result = meta.metrics
        log.info("going on from step %d in %s", first, workdir)
    save_config(workdir, config)
    write = Writer(workdir, step=first, log_to=log_to, config=c)
    split = c["data"]["eval_split"]
    if result:
        write(first, result, group="eval", split=split)
    if first >= c["total_steps"]:
        log.info("%s", finished(first, c["total_steps"], result))
    progress = Progress(c["total_steps"], c["batch_size"], step=first)

    # ---- train --------------------------------------------------------------
    parallel = partial(devices.parallel, how=c["parallel"], in_axes=(None, 0, None))
    fixed = dict(model=model, config=c)
    update = partial(train_step, optimizer=optimizer, trainable=trainable, **fixed)
    p_step = parallel(update, out_axes=(None, None), donate_argnums=0)
    score = partial(validate_step, **fixed)
    p_validate = parallel(score, out_axes=(0, None))
    p_step = Announced(p_step, "the training step")
    p_validate = Announced(p_validate, "the evaluation")

    def read(step, metrics, batch):
        """Fetches a step's metrics. This is where the host waits for the device."""
        values = {name: float(x) for name, x in jax.device_get(metrics).items()}
        check_finite(values, batch, step, workdir, writer)
        if step % c["log_every"] == 0 or step == 1:
            values["learning_rate"] = float(learning_rate(step - 1))
            write(step, progress(step, values), group="train")

    def evaluate(step):
        """Scores the state that was just saved, and puts the result beside it."""
        result = validate(
            p_validate,
            (eval_variables(state), key),
            data,
            workdir,
            step=step,
            split=split,
            loss_weights=c["loss_weights"],
            before_batch=partial(preemption.heed, leaving, step),  # made up for later
        )
        checkpoint.record(writer, step, result)
        write(step, result, group="eval", split=split)
        return result

    def evaluate_at(step):
        due = step == c["total_steps"] or step % c["eval_every"] == 0
        return due and bool(c["data"]["eval_split"])

    def save_at(step):
        due = step == c["total_steps"] or step % c["checkpoint_every"] == 0
        return due or evaluate_at(step)

    pending = None
    try:
        with preemption.watched() as leaving:
            if first and evaluate_at(first) and not result:
                result = evaluate(first)  # there was no time for it
            for step in range(first + 1, c["total_steps"] + 1):
                batch = progress.next(batches)
                state, metrics = p_step(state, devices.shard(batch), key)
                if p_step.fresh:  # compiling is no part of the speed
                    progress.start(step)
                metrics = dict(metrics, padding=padding_share(batch))
                if pending:
                    read(*pending)
                pending = step, metrics, batch
                leave = leaving(step)
                if leave or save_at(step):
                    read(*pending)  # saved is what a finite update has left
                    pending = None
                    surroundings.check_room(workdir, state)
                    checkpoint.save(
                        writer,
                        state,
                        config=config,
                        classes=data.train.classes,
                        category_ids=data.train.category_ids,
                        data=batches.get_state(),
                    )
                    if leave:
                        raise preemption.Preempted
                    if evaluate_at(step):
                        result = evaluate(step)
                    progress.start(step)
    except preemption.Preempted:
        writer.wait_until_finished()
        log.info(
            "stopped by SIGTERM, step %d is saved: the same command goes on from there",
            writer.latest_step(),
        )
        raise
    finally:  # what was being saved is saved to its end
        close = partial(checkpoint.close, writer)
        surroundings.close_all(close, write.close, batches.close)
        log_skipped(data)
    log.info("all of this run is in %s; a page of it: scripts/report.py", workdir)
    return result


# ------------------------------------------------------------------------------ parts


def finished(step: int, total_steps: int, result: Mapping[str, float]) -> str:
    """What a run says that has nothing left to train."""
    score = f"AP {result['AP']:.3f}" if "AP" in result else "not evaluated"
    if step > total_steps:
        return (
            f"step {step} is past total_steps={total_steps} already ({score}): raise "
            "total_steps above it to go on, or use another --workdir"
        )
    return f"finished at step {step} already: {score}; raise total_steps to go on"


def log_data(data: Data) -> None:
    """Says how much data there is, and warns of what its sources report."""
    for line in data.train.report + data.eval.report:
        log.warning("data: %s", line)
    log.info(
        "data: %d training and %d evaluation images, %d classes: %s",
        len(data.train),
        len(data.eval),
        len(data.train.classes),
        ", ".join(data.train.classes[:20]),
    )


def log_skipped(data: Data) -> None:
    """Warns of what was skipped, and how often."""
    for line in data.skipped():
        log.warning("data: %s", line)


def save_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Leaves `config.json`; of several processes the first one does."""
    if devices.is_first():
        (workdir / "config.json").write_text(config.to_json(indent=2) + "\n")


def log_size(params: PyTree, trained: PyTree) -> None:
    """Says how many parameters there are."""
    sizes = [sum(x.size for x in jax.tree.leaves(p)) / 1e6 for p in (params, trained)]
    log.info("model: %.2f M parameters, %.2f M trained", *sizes)


def load_weights(
    variables: dict[str, PyTree],
    c: Mapping[str, Any],
    classes: Sequence[str],
    *,
    set_by_flag: Collection[str],
) -> dict[str, PyTree]:
    """`variables` with those of `model.backbone.pretrained` and of `init_from`.

    Leaves of `c` that contradict them are errors, and warnings in `set_by_flag`.
    """
    if path := c["model"]["backbone"].get("pretrained"):
        pretrained.check_backbone(path, c, set_by_flag=set_by_flag)
        variables = weights.load_backbone(path, variables)
        log.info("backbone initialised from %s", path)
    if c["init_from"]:
        _, trained_ones, before, source = trained.load(c["init_from"])
        pretrained.check_run(
            source, before.config.to_dict(), c, set_by_flag=set_by_flag
        )
        variables, fresh = arrays.fine_tune(
            trained_ones,
            variables,
            where=source,
            same_classes=before.classes == classes,
        )
        log.info("initialised from %s, but for %s", source, fresh or "nothing")
    return variables


def check_resumed(
    workdir: pathlib.Path,
    step: int,
    config: ml_collections.ConfigDict,
    source: Source,
    *,
    allow_changes: bool,
) -> None:
    """ValueError unless the checkpoint of `step` is of these classes and this config.

    With `allow_changes` the configuration may be another one.
    """
    meta = checkpoint.read_meta(checkpoint.folder(workdir) / str(step))
    if meta.classes != tuple(source.classes):
        raise ValueError(
            f"{workdir} was trained on classes {meta.classes}, the data has "
            f"{tuple(source.classes)}: use another --workdir, or --config."
            "init_from to start from its weights"
        )
    if not allow_changes:
        configs.check_resumed(meta.config, config)


def check_finite(
    values: Mapping[str, float],
    batch: Batch,
    step: int,
    workdir: pathlib.Path,
    writer: Any,
) -> None:
    """`faults.check`, whose error says as well where the last good checkpoint is."""
    try:
        faults.check(values, batch, step=step, workdir=workdir)
    except FloatingPointError as error:
        where = checkpoint.good_before(writer, step)
        raise FloatingPointError(f"{error}; {where}") from None
