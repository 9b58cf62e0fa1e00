r"""Recall of proposals: AR@100/300/1000/2000 and recall against IoU (fig. 4).

python scripts/evaluate_proposals.py --config=experiments/voc07_vgg16.py \
    --config.data.root=VOCdevkit --split=2007_test \
    --proposals=SS=proposals/2007_test.npz --proposals=EB=edge_boxes.npz \
    --checkpoint=runs/voc07 --plot=recall.png
python scripts/evaluate_proposals.py --checkpoint=runs/demo --counts=10,100

Files (NAME=FILE, or FILE) and the RPN of checkpoints side by side, on the objects of
one split that are not marked difficult or crowd. A checkpoint alone needs no --config.
The last line on stdout is one JSON object.
"""

import json
import pathlib

from absl import app, flags

from frcnn_jax.data import images, proposal_files
from frcnn_jax.evaluation import recall
from frcnn_jax.training import cli, propose, troubles
from frcnn_jax.training import config as configs
from frcnn_jax.training.metrics import log_to_stderr

CONFIG = cli.define_config("The experiment whose data are used.")
SPLIT = flags.DEFINE_string("split", None, "The split; default data.eval_split.")
PROPOSALS = flags.DEFINE_multi_string(
    "proposals", [], "A file of proposals, FILE or NAME=FILE."
)
CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint", [], "A checkpoint whose RPN proposes, PATH or NAME=PATH."
)
COUNTS = flags.DEFINE_list(
    "counts", [str(c) for c in recall.COUNTS], "The numbers of proposals to compare."
)
PLOT = flags.DEFINE_string("plot", None, "A picture of recall against IoU.")
SET = cli.define_changes()


def named(text):
    name, equals, path = text.partition("=")
    return (name, path) if equals else (pathlib.Path(text).stem, text)


def main(_):
    log_to_stderr()
    if PLOT.value:
        troubles.prepare_file(PLOT.value)
    counts = [int(count) for count in COUNTS.value]
    sets = []
    for text in CHECKPOINT.value:
        name, path = named(text)
        changes = [f"proposals.eval.post_nms={max(counts)}", *SET.value]
        if SPLIT.value:
            changes.append(f"data.eval_split={SPLIT.value}")
        sets.append((name, *propose.rpn_of_checkpoint(path, changes=changes)))
    if PROPOSALS.value:
        if CONFIG.value is not None:
            data = configs.resolve(CONFIG.value).data.to_dict()
            source = propose.source_of(data, SPLIT.value or data["eval_split"])
        elif sets:
            source = sets[0][1]
        else:
            raise app.UsageError("--proposals needs --config: whose objects are they?")
        for text in PROPOSALS.value:
            name, path = named(text)
            sets.append((name, source, proposal_files.read(path)))
    if not sets:
        raise app.UsageError("give --proposals, --checkpoint or both")
    results = {
        name: recall.evaluate(propose.with_objects(source, found), counts=counts)
        for name, source, found in sets
    }
    print(recall.format_table(results))
    if PLOT.value:
        images.save_image(PLOT.value, recall.plot(results))
    print(json.dumps(results))


if __name__ == "__main__":
    cli.run(main)
