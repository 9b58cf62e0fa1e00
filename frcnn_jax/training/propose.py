"""Proposals of a data set: those of a checkpoint's RPN, and whose objects they meet."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from frcnn_jax.data import pipeline
from frcnn_jax.data.proposal_files import Scored
from frcnn_jax.data.source import Source
from frcnn_jax.training import algorithms, checkpoint, devices
from frcnn_jax.training import config as configs
from frcnn_jax.training.compiling import Announced
from frcnn_jax.training.evaluate import build_eval_data
from frcnn_jax.training.metrics import Countdown
from frcnn_jax.training.step import propose_step


def rpn_of_checkpoint(
    path: str | pathlib.Path, *, changes: Sequence[str] = (), best: bool = True
) -> tuple[Source, dict[str, Scored]]:
    """The evaluation data of a checkpoint and, by image id, its RPN's proposals there.

    `proposals.eval` says how many; boxes are in pixels of the image on disk. `changes`
    are config values such as "proposals.eval.post_nms=2000"; `best` is for a run's
    folder, see `checkpoint.find`.
    """
    where = checkpoint.find(path, best=best)
    model, variables, meta = checkpoint.load_model(where)
    if not algorithms.of(meta.config.to_dict()).PROPOSES:
        raise ValueError(f"{where} is a FastRCNN: it has no RPN to propose anything")
    configs.change(meta.config, changes)
    configs.check_code(meta.config, changes)
    c = configs.check(meta.config)
    data = build_eval_data(c)
    propose = devices.parallel(
        partial(propose_step, model=model, config=c), in_axes=(None, 0)
    )
    propose = Announced(propose, "the network's proposals")
    variables = devices.replicated(variables)
    proposals, tell = {}, Countdown(len(data.eval), "images with proposals")
    for batch in data.eval_batches():
        found = devices.gather(propose(variables, devices.shard(batch)))
        for i in np.flatnonzero(batch.valid):
            h, w = batch.original_size[i] / batch.image_size[i]
            scale = np.array([w, h, w, h], np.float32)
            rows = found.valid[i]
            image_id = str(data.eval[int(batch.index[i])].image_id)
            proposals[image_id] = Scored(
                found.boxes[i][rows] * scale, found.scores[i][rows]
            )
        tell(int(batch.valid.sum()))
    return data.eval, proposals


def source_of(data: Mapping[str, Any], split: str) -> Source:
    """One split of the data that the configuration group `data` describes."""
    return pipeline.split_of(data, split)


def with_objects(
    source: Source, proposals: Mapping[str, Scored]
) -> Iterator[tuple[Any, Any]]:
    """Objects (no ignored ones) and proposals of each image, for `recall.evaluate`.

    KeyError names an image without proposals.
    """
    for i in range(len(source)):
        example = source[i]
        if str(example.image_id) not in proposals:
            raise KeyError(
                f"no proposals for image {example.image_id!r}: make them for this data "
                "set and split (scripts/make_proposals.py)"
            )
        found = proposals[str(example.image_id)]
        yield example.boxes[~example.ignore], found.boxes
