r"""Writes proposals for a data set: selective search, or the RPN of a checkpoint.

python scripts/make_proposals.py --config=experiments/voc07_vgg16_fast_rcnn.py \
    --config.data.root=VOCdevkit --splits=2007_trainval,2007_test \
    --output='proposals/{split}.npz'
python scripts/make_proposals.py --checkpoint=runs/voc07 --splits=2007_test \
    --output='proposals/rpn_{split}.npz' --config.proposals.eval.post_nms=2000

The files serve `data.proposals` and scripts/evaluate_proposals.py. Selective search
takes a second or two an image and core ("quality" four times that) and uses all cores;
stopped, the same command goes on where it was. The last line on stdout is one JSON
object.
"""

import concurrent.futures
import concurrent.futures.process
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
import shutil
import time

import cv2
from absl import app, flags

from frcnn_jax.data import proposal_files
from frcnn_jax.data.example import decode, name_of
from frcnn_jax.data.selective_search import MODES, selective_search
from frcnn_jax.evaluation import draw
from frcnn_jax.training import cli, troubles
from frcnn_jax.training import config as configs
from frcnn_jax.training.metrics import Countdown, log_to_stderr

log = logging.getLogger("frcnn_jax.make_proposals")
CONFIG = cli.define_config("The experiment whose data are used.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run or checkpoint whose RPN proposes."
)
SPLITS = flags.DEFINE_list("splits", None, "Splits of the data.", required=True)
OUTPUT = flags.DEFINE_string(
    "output", None, "The .npz; '{split}' in it is the split.", required=True
)
MODE = flags.DEFINE_enum("mode", "fast", MODES, "The mode of selective search.")
COUNT = flags.DEFINE_integer("max_proposals", 2000, "The most proposals of an image.")
MAX_SIDE = flags.DEFINE_integer(
    "max_side", 0, "Longest side for selective search; 0: no limit."
)
WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "The number of processes.")
SET = cli.define_changes()
# What is lost when the script is stopped; what says how far it is.
PART = 20


def search(example, options):
    """Selective search of one example, in a process of its own; or what went wrong."""
    cv2.setNumThreads(1)
    try:
        return selective_search(decode(example), **options)
    except draw.FAILURES as error:
        return f"{name_of(example)}: {error}"


def searched(examples, options, pool):
    """`search` of each example; Later where a process died, which no error names."""
    try:
        return list(pool.map(search, examples, itertools.repeat(options)))
    except concurrent.futures.process.BrokenProcessPool:
        raise troubles.Later(
            f"a process died, probably for want of memory, at one of "
            f"{name_of(examples[0])} to {name_of(examples[-1])}: lower --workers or "
            "set --max_side; the same command goes on from these"
        ) from None


def search_split(source, path, pool):
    """The proposals of all images, in parts that survive an interruption."""
    options = dict(mode=MODE.value, max_proposals=COUNT.value, max_side=MAX_SIDE.value)
    parts = path.with_name(path.name + ".parts")
    stamp = json.dumps(dict(options, images=len(source)))
    if parts.is_dir() and (parts / "options.json").read_text() != stamp:
        raise app.UsageError(
            f"{parts} was begun with other settings: remove it, or use another --output"
        )
    parts.mkdir(parents=True, exist_ok=True)
    (parts / "options.json").write_text(stamp)
    found, tell = {}, Countdown(len(source), "images searched")
    for first in range(0, len(source), PART):
        part = parts / f"{first:07d}.npz"
        examples = [source[i] for i in range(first, min(first + PART, len(source)))]
        known = part.exists()
        if not known:
            results = searched(examples, options, pool)
            failed = [line for line in results if isinstance(line, str)]
            part.with_suffix(".failed").write_text(json.dumps(failed))
            for line in failed:
                log.error("no proposals: %s", line)
            results = [
                proposal_files.NONE if isinstance(x, str) else x for x in results
            ]
            ids = (str(example.image_id) for example in examples)
            proposal_files.write(part, dict(zip(ids, results, strict=True)))
        found |= proposal_files.read(part)
        tell(len(examples), known=known)
    failed = [json.loads(path.read_text()) for path in sorted(parts.glob("*.failed"))]
    return found, parts, sum(failed, [])


def file_of(split):
    """The file of a split's proposals."""
    return pathlib.Path(OUTPUT.value.replace("{split}", split.split("[")[0]))


def main(_):
    from frcnn_jax.training import propose  # the processes that search need no model

    log_to_stderr()
    if (CHECKPOINT.value is None) == (CONFIG.value is None):
        raise app.UsageError("give --config (selective search) or --checkpoint (RPN)")
    if len(SPLITS.value) > 1 and "{split}" not in OUTPUT.value:
        raise app.UsageError("several splits need '{split}' in --output")
    result, wrong = {}, []
    for split in SPLITS.value:
        troubles.prepare_file(file_of(split))
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(WORKERS.value, spawn) as pool:
        for split in SPLITS.value:
            path = file_of(split)
            start, parts = time.perf_counter(), None
            if CHECKPOINT.value:
                changes = [f"data.eval_split={split}", *SET.value]
                _, found = propose.rpn_of_checkpoint(CHECKPOINT.value, changes=changes)
            else:
                data = configs.resolve(CONFIG.value).data.to_dict()
                source = propose.source_of(data, split)
                found, parts, failed = search_split(source, path, pool)
                wrong += failed
            proposal_files.write(path, found)
            if parts:
                shutil.rmtree(parts)
            seconds = time.perf_counter() - start
            boxes = sum(len(scored.boxes) for scored in found.values())
            mean = boxes / max(len(found), 1)
            log.info("%s: %d images, %.0f boxes each", path, len(found), mean)
            result[split] = dict(
                file=str(path), images=len(found), mean=mean, seconds=seconds
            )
    print(json.dumps(dict(result, failed=wrong) if wrong else result))
    if wrong:
        raise troubles.Partly(f"{len(wrong)} images have no proposals: {wrong[0]}")


if __name__ == "__main__":
    cli.run(main)
