"""Detections of a whole data set, and their metrics."""

import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from frcnn_jax.data import images, pipeline
from frcnn_jax.data.example import decode, name_of
from frcnn_jax.data.source import Example, Source, image_ids
from frcnn_jax.data.sources import coco
from frcnn_jax.data.validate import check_trainable
from frcnn_jax.evaluation import coco as coco_metrics
from frcnn_jax.evaluation import draw, files, results
from frcnn_jax.training import algorithms, devices, trained, troubles, views
from frcnn_jax.training import config as configs
from frcnn_jax.training.compiling import Announced
from frcnn_jax.training.metrics import Countdown, duration
from frcnn_jax.training.step import predict_step
from frcnn_jax.training.validation import means

log = logging.getLogger(__name__)


class Evaluated(NamedTuple):
    """What an evaluation found, where it lies, and lines for what was not drawn."""

    annotations: dict
    detections: list[dict]
    paths: results.Paths
    undrawn: list[str]


def build_data(
    c: Mapping[str, Any], sources: tuple[Source, Source] | None = None
) -> pipeline.Data:
    """This process's share of the data of a configuration.

    ValueError unless its batches split over the devices, and where there is no object
    to learn from.
    """
    data = _build(c, sources)
    check_trainable(data.train, c["data"]["train_split"])
    return data


def _build(
    c: Mapping[str, Any], sources: tuple[Source, Source] | None = None
) -> pipeline.Data:
    for name in ("batch_size", "eval_batch_size"):
        devices.check_batch_size(name, c[name])
    return pipeline.build(
        batch_size=c["batch_size"],
        eval_batch_size=c["eval_batch_size"],
        seed=c["seed"],
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        sources=sources,
        **c["data"],
    )


def build_eval_data(c: Mapping[str, Any]) -> pipeline.Data:
    """The same without the training split, which may be missing."""
    split = c["data"]["eval_split"]
    if not split:
        raise ValueError(
            "data.eval_split is empty, which is for training alone: name the split to "
            "evaluate on, --split=NAME or --set=data.eval_split=NAME"
        )
    data = dict(c["data"], train_split=split)
    data = _build(dict(c, batch_size=c["eval_batch_size"], data=data))
    for line in data.eval.report:
        log.warning("data: %s", line)
    return data


def predict_all(predict: Callable, variables: Any, data: pipeline.Data) -> list[dict]:
    """COCO-format detections of every evaluation image, each exactly once.

    `predict` maps variables and a sharded Batch to stacked Detections. Every process
    predicts its share and returns the detections of all, in the order that one process
    would have found them in.
    """
    ids = image_ids(data.eval)
    batches, tell = [], Countdown(len(data.eval), "images evaluated")
    for batch in data.eval_batches():
        found = devices.gather(predict(variables, devices.shard(batch)))
        rows = []
        for i in np.flatnonzero(batch.valid):
            rows += files.to_results(
                type(found)(*(field[i] for field in found)),
                image_id=ids[int(batch.index[i])],
                image_size=batch.image_size[i],
                original_size=batch.original_size[i],
                category_ids=data.eval.category_ids,
            )
        batches.append(rows)
        tell(int(batch.valid.sum()) * jax.process_count())
    parts = zip(*devices.from_all(batches), strict=True)
    everything = [row for batch in parts for found in batch for row in found]
    if not everything and len(data.eval):
        log.warning(
            "nothing was detected in any of %d images: no score reached "
            "postprocess.score; the network is untrained, its training diverged, or "
            "these are other images than it was trained on",
            len(data.eval),
        )
    return everything


def predict_views(
    predict: Callable, variables: Any, data: pipeline.Data, c: Mapping[str, Any]
) -> list[dict]:
    """`predict_all` of the images as they are or of the group `views`, merged.

    `predict` maps variables and a Batch to Detections. Warns of what was skipped.
    """
    wanted = views.of(c)
    streams, places = [data], None
    if wanted.several and not algorithms.of(c).PROPOSES:
        raise ValueError(
            "config.views needs a network that proposes its own RoIs: the proposals of "
            "a file are those of the whole image"
        )
    if wanted.several:
        grown, places = views.expand(data.eval, wanted)
        streams = [
            _build(dict(c, data={**c["data"], **size, "tiles": None}), (grown, grown))
            for size in views.sides(c["data"], wanted)
        ]
    ways = [predict] + [views.mirrored(predict)] * wanted.flip
    ways = [Announced(devices.parallel(f, in_axes=(None, 0)), NAME) for f in ways]
    parts = []
    for stream in streams:
        parts += [predict_all(way, variables, stream) for way in ways]
        for line in stream.skipped():
            log.warning("data: %s", line)
    if places is None:
        return parts[0]
    ids, count = image_ids(data.eval), c["postprocess"]["max_detections"]
    return views.merge_rows(parts, places, ids, views=wanted, count=count)


NAME = "the evaluation"


def validate(
    p_validate: Callable,
    state: tuple[Any, jax.Array],
    data: pipeline.Data,
    workdir: pathlib.Path,
    *,
    step: int,
    split: str,
    loss_weights: Mapping[str, float],
    before_batch: Callable[[], None],
) -> dict[str, float]:
    """COCO's metrics of a run's evaluation data, its losses, and a line that says them.

    `p_validate` is a parallel `validate_step`, `state` its variables and key. Leaves
    what `write_results` does in `workdir`. `before_batch` may raise to give up.
    """
    log.info("step %d: evaluating on %d images", step, len(data.eval))
    variables, key = state
    totals, start = [], time.perf_counter()

    def predict(variables, batch):
        before_batch()
        found, sums = p_validate(variables, batch, key)
        totals.append(sums)
        return found

    detections = predict_all(predict, variables, data)
    annotations = write_results(workdir, detections, data, split=split, step=step)
    scores = coco_metrics.evaluate(annotations, detections)
    result = {k: v for k, v in scores.items() if isinstance(v, float)}
    result |= means(totals, loss_weights)
    log.info(
        "step %d: AP %.3f  AP50 %.3f  loss %.4f  (%d images in %s)",
        step,
        *(result.get(name, math.nan) for name in ("AP", "AP50", "total")),
        len(data.eval),
        duration(time.perf_counter() - start),
    )
    return result


def evaluate_checkpoint(
    path: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    changes: Sequence[str] = (),
    pictures: int = 0,
    score: float = 0.5,
) -> Evaluated:
    """COCO-format annotations and detections of a detector on its evaluation data.

    `path` is what `trained.load` takes. Leaves both as JSON in `output`, and `pictures`
    annotated images with their ground truth, all with the split in their names
    (`results.paths`). `changes` are config values such as "data.root=DIR".
    """
    model, variables, meta, where = trained.load(path)
    configs.change(meta.config, changes)
    configs.check_code(meta.config, changes)
    c = configs.check(meta.config)
    data = build_eval_data(c)
    if data.eval.classes != meta.classes:
        raise ValueError(
            f"{where} knows the classes {meta.classes}, the data has "
            f"{data.eval.classes}"
        )
    log.info("%s: step %d, %d images", where, meta.step, len(data.eval))
    predict = partial(predict_step, model=model, config=c)
    detections = predict_views(predict, devices.replicated(variables), data, c)
    output, split = pathlib.Path(output), c["data"]["eval_split"]
    annotations = write_results(
        *(output, detections, data), split=split, step=meta.step, checkpoint=str(where)
    )
    where = results.paths(output, split)
    log.info("%s, %s", where.annotations, where.detections)
    undrawn = []
    if pictures:
        shown = [d for d in detections if d["score"] >= score]
        undrawn = draw_pictures(
            where.pictures, data.eval, annotations, shown, pictures, **c["data"]
        )
    return Evaluated(annotations, detections, where, undrawn)


def draw_pictures(
    folder: pathlib.Path,
    source: Source,
    annotations: dict,
    detections: list[dict],
    count: int,
    **how: Any,
) -> list[str]:
    """Writes the first `count` images with their boxes; a line for each that fails."""
    found: dict[Any, list[dict]] = {}
    for detection in detections:
        found.setdefault(detection["image_id"], []).append(detection)
    undrawn = []
    for i in range(min(count, len(source))):
        mine = found.get(annotations["images"][i]["id"], [])
        try:
            picture = draw_example(source[i], mine, source, **images.reading(**how))
            images.save_image(folder / f"{i:04d}.jpg", picture)
        except draw.FAILURES as error:
            if troubles.is_of_the_disk(error):
                raise
            undrawn.append(f"no picture of {name_of(source[i])}: {error}")
            log.error("%s", undrawn[-1])
    log.info("%s: %d pictures", folder, min(count, len(source)) - len(undrawn))
    return undrawn


def draw_example(
    example: Example, found: list[dict], source: Source, **how: Any
) -> np.ndarray:
    """An image with its COCO-format detections and, dashed, its ground truth.

    `how` is what `images.load_image` takes besides.
    """
    boxes = np.array([d["bbox"] for d in found], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = [source.category_ids.index(d["category_id"]) + 1 for d in found]
    return draw.draw(
        decode(example, **how),
        boxes,
        np.array(classes, np.int32),
        np.array([d["score"] for d in found], np.float32),
        names=source.classes,
        truth=example.boxes,
        truth_classes=example.classes,
        min_side=300,
    )


def write_results(
    output: pathlib.Path,
    detections: list[dict],
    data: pipeline.Data,
    *,
    split: str,
    **about: Any,
) -> dict:
    """Leaves annotations and detections of `split` (`results.paths`); the annotations.

    They are the ground truth as it was read: boxes clipped to their images, those
    without area dropped, difficult objects as crowds. Their `info` has the split and
    `about`. For figures to publish, score the detections against the official file
    (`scripts/evaluate.py --annotations`).
    """
    output.mkdir(parents=True, exist_ok=True)
    annotations = coco.to_coco(data.eval)
    annotations["info"] = {**annotations.get("info", {}), "split": split, **about}
    if devices.is_first():
        where = results.paths(output, split)
        files.write_annotations(where.annotations, annotations)
        files.write_detections(where.detections, detections)
    return annotations
