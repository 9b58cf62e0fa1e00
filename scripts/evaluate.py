"""COCO and VOC metrics of a checkpoint, or of a detections file.

python scripts/evaluate.py --checkpoint=runs/demo --split=test --pictures=12
python scripts/evaluate.py --detections=detections.json --annotations=annotations.json

With a checkpoint, its data is read as in training (`--set=data.root=DIR` where it has
moved), and annotations.json, detections.json (COCO format) and annotated pictures go to
`--output`. The last line on stdout is one JSON object.
"""

import json
import pathlib

from absl import app, flags

from frcnn_jax.evaluation import coco, files, voc
from frcnn_jax.training import checkpoint, cli, devices, evaluate
from frcnn_jax.training.metrics import log_to_stderr

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run (its best checkpoint), RUN/last or a checkpoint."
)
DETECTIONS = flags.DEFINE_string("detections", None, "A COCO-format results file.")
ANNOTATIONS = flags.DEFINE_string("annotations", None, "A COCO-format instances file.")
SPLIT = flags.DEFINE_string("split", None, "The split; default data.eval_split.")
OUTPUT = flags.DEFINE_string("output", None, "A folder; default the run's own.")
PICTURES = flags.DEFINE_integer("pictures", 0, "How many annotated pictures to write.")
SCORE = flags.DEFINE_float("score", 0.5, "The least score shown in pictures.")
BATCH = flags.DEFINE_integer("batch_size", None, "Images at a time.")
SET = flags.DEFINE_multi_string("set", [], "Changes a config value: data.root=DIR.")


def main(argv):
    if argv[1:]:
        raise app.UsageError(f"unexpected {argv[1:]}: options begin with --")
    log_to_stderr()
    devices.keep_compiled()
    if CHECKPOINT.value:
        changes = list(SET.value)
        if SPLIT.value:
            changes.append(f"data.eval_split={SPLIT.value}")
        if BATCH.value:
            changes.append(f"eval_batch_size={BATCH.value}")
        path = checkpoint.find(CHECKPOINT.value)
        run = path.parents[1] if path.parent.name == "checkpoints" else path
        output = pathlib.Path(OUTPUT.value or run)
        annotations, detections = evaluate.evaluate_checkpoint(
            path,
            output,
            changes=changes,
            pictures=PICTURES.value,
            score=SCORE.value,
        )
    elif DETECTIONS.value and ANNOTATIONS.value:
        annotations = files.read_annotations(ANNOTATIONS.value)
        detections = files.read_detections(DETECTIONS.value, annotations)
    else:
        raise app.UsageError("give --checkpoint, or --detections and --annotations")

    result = coco.evaluate(annotations, detections)
    for metric in ("07", "area"):
        ap = voc.evaluate(annotations, detections, metric=metric)
        result[f"VOC{metric}"] = ap["mAP"]
        for name, values in ap["per_class"].items():
            result["per_class"][name][f"VOC{metric}"] = values["AP"]
    print(coco.format_table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
