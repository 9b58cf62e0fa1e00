"""A run from start to end: data, model, optimizer, restore, train, evaluate."""

import logging
import math
import pathlib
import time
from collections.abc import Collection
from functools import partial
from typing import Any

import jax
import ml_collections

from frcnn_jax import models, weights
from frcnn_jax.data.batches import padding_share
from frcnn_jax.data.images import canvases
from frcnn_jax.evaluation import coco as coco_metrics
from frcnn_jax.training import checkpoint, devices, faults, preemption, pretrained
from frcnn_jax.training import config as configs
from frcnn_jax.training.evaluate import build_data, predict_all, write_results
from frcnn_jax.training.metrics import Progress, Writer, duration
from frcnn_jax.training.optimizer import make_optimizer, trainable_mask
from frcnn_jax.training.step import (
    eval_variables,
    init_variables,
    initial_state,
    keep,
    train_step,
)
from frcnn_jax.training.validation import means, validate_step

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

    Returns the last evaluation's metrics. Raises FloatingPointError if a loss is not
    finite, naming the step and the last good checkpoint, and ValueError if the run in
    `workdir` began with another configuration, unless `allow_changes`. Leaves that
    contradict the weights to start from are errors, and warnings in `set_by_flag`.
    """
    config = configs.resolve(config)
    c = configs.check(config)
    workdir = pathlib.Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)

    # ---- data ---------------------------------------------------------------
    data = build_data(c)
    for line in data.train.report + data.eval.report:
        log.warning("data: %s", line)
    log.info(
        "data: %d training and %d evaluation images, %d classes: %s",
        len(data.train),
        len(data.eval),
        len(data.train.classes),
        ", ".join(data.train.classes[:20]),
    )

    # ---- model --------------------------------------------------------------
    model = models.build_detector(num_classes=len(data.train.classes), **c["model"])
    key = jax.random.key(c["seed"])
    image_shape = (*canvases(c["data"]["canvas"])[0], 3)
    variables = init_variables(key, image_shape, model=model)
    if path := c["model"]["backbone"].get("pretrained"):
        pretrained.check_backbone(path, c, set_by_flag=set_by_flag)
        variables = weights.load_backbone(path, variables)
        log.info("backbone initialised from %s", path)
    if c["init_from"]:
        source = checkpoint.find(c["init_from"])
        before = checkpoint.read_meta(source)
        pretrained.check_run(
            source, before.config.to_dict(), c, set_by_flag=set_by_flag
        )
        variables, fresh = checkpoint.fine_tune(
            checkpoint.read_variables(source),
            variables,
            where=source,
            same_classes=before.classes == data.train.classes,
        )
        log.info("initialised from %s, but for %s", source, fresh or "nothing")

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
    counts = [
        sum(x.size for x in jax.tree.leaves(tree)) / 1e6
        for tree in (state.params, keep(state.params, trainable))
    ]
    log.info("model: %.2f M parameters, %.2f M trained", *counts)

    # ---- restore ------------------------------------------------------------
    # Replicated before the first step, else the step compiles a second time.
    state, key = devices.replicated((state, key))
    batches = data.train_batches()
    writer = checkpoint.manager(workdir)
    first, result = writer.latest_step() or 0, {}
    if first:
        meta = checkpoint.read_meta(checkpoint.folder(workdir) / str(first))
        if meta.classes != tuple(data.train.classes):
            raise ValueError(
                f"{workdir} was trained on classes {meta.classes}, the data has "
                f"{tuple(data.train.classes)}: use another --workdir, or --config."
                "init_from to start from its weights"
            )
        if not allow_changes:
            configs.check_resumed(meta.config, config)
        state, meta = checkpoint.restore(writer, state)
        batches.set_state(meta.data)
        result = meta.metrics
        log.info("going on from step %d in %s", first, workdir)
    if devices.is_first():
        (workdir / "config.json").write_text(config.to_json(indent=2) + "\n")
    write = Writer(workdir, step=first, log_to=log_to, config=c)
    if result:
        write(first, result, group="eval")
    progress = Progress(c["total_steps"], c["batch_size"], step=first)

    # ---- train --------------------------------------------------------------
    p_step = devices.parallel(
        partial(
            train_step, model=model, optimizer=optimizer, trainable=trainable, config=c
        ),
        in_axes=(None, 0, None),
        out_axes=(None, None),
        donate_argnums=0,
        how=c["parallel"],
    )
    p_validate = devices.parallel(
        partial(validate_step, model=model, config=c),
        in_axes=(None, 0, None),
        out_axes=(0, None),
        how=c["parallel"],
    )

    def read(step, metrics, batch):
        """Fetches a step's metrics; only now does the host wait for the device."""
        values = {name: float(x) for name, x in jax.device_get(metrics).items()}
        try:
            faults.check(values, batch, step=step, workdir=workdir)
        except FloatingPointError as error:
            where = checkpoint.good_before(writer, step)
            raise FloatingPointError(f"{error}; {where}") from None
        if step % c["log_every"] == 0 or step == 1:
            values["learning_rate"] = float(learning_rate(step - 1))
            write(step, progress(step, values), group="train")

    def evaluate(step):
        """Scores the state that was just saved, and puts the result beside it."""
        log.info("step %d: evaluating on %d images", step, len(data.eval))

        def predict(variables, batch):
            if leaving(step):
                raise preemption.Preempted  # it is made up for when resumed
            found, sums = p_validate(variables, batch, key)
            totals.append(sums)
            return found

        totals, start = [], time.perf_counter()
        detections = predict_all(predict, eval_variables(state), data)
        annotations = write_results(workdir, detections, data)
        scores = coco_metrics.evaluate(annotations, detections)
        result = {k: v for k, v in scores.items() if isinstance(v, float)}
        result |= means(totals, c["loss_weights"])
        checkpoint.record(writer, step, result)
        write(step, result, group="eval")
        log.info(
            "step %d: AP %.3f  AP50 %.3f  loss %.4f  (%d images in %s)",
            step,
            *(result.get(name, math.nan) for name in ("AP", "AP50", "total")),
            len(data.eval),
            duration(time.perf_counter() - start),
        )
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
                metrics = dict(metrics, padding=padding_share(batch))
                if pending:
                    read(*pending)
                pending = step, metrics, batch
                leave = leaving(step)
                if leave or save_at(step):
                    read(*pending)  # saved is what a finite update has left
                    pending = None
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
        writer.close()
        write.close()
        batches.close()
        for line in data.skipped():
            log.warning("data: %s", line)
    return result
