r"""COCO and VOC metrics of a checkpoint, of a peer's weights, or of a detections file.

python scripts/evaluate.py --checkpoint=runs/demo --split=test --pictures=12
python scripts/evaluate.py --checkpoint=detectron2/faster_rcnn_R_50_FPN_3x \
    --set=data.root=COCO
python scripts/evaluate.py --config=experiments/coco_r50_fpn.py \
    --weights=model_final_b275ba.pkl --config.data.root=COCO
python scripts/evaluate.py --detections=detections.json --annotations=annotations.json

With a checkpoint, its data is read as in training (`--config.data.root=DIR` where it
has moved), and annotations_SPLIT.json, detections_SPLIT.json (COCO format) and the
folder pictures_SPLIT go to `--output`. What cannot be drawn is named; the exit code is
then 1. `--weights` is a file of torchvision, Detectron2 or Detectron, as in
convert_weights.py, and `--config` the experiment that it belongs to; the output is then
left in runs/NAME unless told otherwise. `--annotations` of LVIS bring its federated AP
too, as LVIS_AP, LVIS_APr, ... . The last line on stdout is one JSON object.
"""

import json
import pathlib
import tempfile

from absl import app, flags
from ml_collections import config_flags

from frcnn_jax.evaluation import coco, files, lvis, results, voc
from frcnn_jax.training import (
    checkpoint,
    cli,
    convert,
    devices,
    evaluate,
    lock,
    trained,
    troubles,
)
from frcnn_jax.training import config as configs
from frcnn_jax.training.metrics import log_to_stderr
from frcnn_jax.weights import families

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A run (its best checkpoint), RUN/last, a checkpoint, a detector's name or file.",
)
CONFIG = cli.define_config("The experiment that fits the file of --weights.")
WEIGHTS = flags.DEFINE_string(
    "weights", None, "A detector's file of torchvision, Detectron2 or Detectron."
)
DETECTIONS = flags.DEFINE_string("detections", None, "A COCO-format results file.")
ANNOTATIONS = flags.DEFINE_string("annotations", None, "A COCO-format instances file.")
SPLIT = flags.DEFINE_string("split", None, "The split; default data.eval_split.")
OUTPUT = flags.DEFINE_string("output", None, "A folder; default the run's own.")
PICTURES = flags.DEFINE_integer(
    "pictures", 0, "The number of annotated pictures to write."
)
SCORE = flags.DEFINE_float("score", 0.5, "The least score shown in pictures.")
BATCH = flags.DEFINE_integer(
    "batch_size", None, "Images of one batch; default eval_batch_size."
)
SET = cli.define_changes()


def changes() -> list[str]:
    """What the flags change in the configuration."""
    found = list(SET.value)
    if SPLIT.value:
        found.append(f"data.eval_split={SPLIT.value}")
    if BATCH.value:
        found.append(f"eval_batch_size={BATCH.value}")
    return found


def check_complete(weights: str) -> None:
    """An experiment that training completes from the data fits no peer's file."""
    left = sorted(leaf for leaf in configs.RUN if CONFIG.value.get(leaf) is None)
    if left:
        fits = dict.fromkeys(f.experiment for f in families.families(weights))
        raise app.UsageError(
            f"this --config leaves {', '.join(left)} open for training to choose from "
            f"the data, but {weights} needs the experiment of its own network: give "
            f"--config={' or '.join(fits) or 'experiments/coco_*.py'}; your own run is "
            "evaluated by --checkpoint=RUN"
        )


def convert_weights(weights: str, folder: str) -> None:
    """Write a peer's weights as a checkpoint, with the classes of the data."""
    configs.change(CONFIG.value, changes())
    check_complete(weights)
    config = configs.resolve(CONFIG.value)
    source = evaluate.build_eval_data(configs.check(config)).eval
    convert.convert(
        weights,
        config,
        folder,
        classes=source.classes,
        category_ids=source.category_ids,
        rows=convert.rows_of(weights, source.category_ids),
        set_by_flag=[
            *config_flags.get_override_values(flags.FLAGS["config"]),
            *(change.partition("=")[0] for change in SET.value),
        ],
    )


def of_checkpoint(source: str, run: pathlib.Path | None = None) -> evaluate.Evaluated:
    """Annotations and detections, left in --output or else in `run` or the run's."""
    path: str | pathlib.Path = source
    if trained.is_run(source):
        path = checkpoint.find(source)
        run = run or (path.parents[1] if path.parent.name == "checkpoints" else path)
    output = pathlib.Path(OUTPUT.value or run or trained.folder_of(source))
    name = f".evaluation_{results.file_name(SPLIT.value or 'default')}_lock"
    cure = "wait for its end, or use another --output"
    with lock.held(output, "evaluated", name=name, cure=cure):
        return evaluate.evaluate_checkpoint(
            *(path, output),
            changes=changes(),
            pictures=PICTURES.value,
            score=SCORE.value,
        )


def next_step(found: evaluate.Evaluated) -> str:
    """What to open now."""
    folder = found.paths.annotations.parent
    page = f"`python scripts/report.py {folder}` makes a page of all"
    drawn = sorted(found.paths.pictures.glob("*.jpg")) if PICTURES.value else []
    return f"open {drawn[0]} and its neighbours; {page}" if drawn else page


def main(_):
    log_to_stderr()
    devices.keep_compiled()
    if CHECKPOINT.value:
        found = of_checkpoint(CHECKPOINT.value)
    elif WEIGHTS.value and CONFIG.value:
        with tempfile.TemporaryDirectory() as folder:
            convert_weights(WEIGHTS.value, folder)
            run = pathlib.Path("runs") / pathlib.Path(WEIGHTS.value).stem
            found = of_checkpoint(folder, run)
    elif DETECTIONS.value and ANNOTATIONS.value:
        annotations = files.read_annotations(ANNOTATIONS.value)
        detections = files.read_detections(DETECTIONS.value, annotations)
        found = None
    else:
        raise app.UsageError(
            "give --checkpoint, --weights and --config, or --detections and "
            "--annotations"
        )

    if found is not None:
        annotations, detections = found.annotations, found.detections
    result = coco.evaluate(annotations, detections)
    for metric in ("07", "area"):
        ap = voc.evaluate(annotations, detections, metric=metric)
        result[f"VOC{metric}"] = ap["mAP"]
        for name, values in ap["per_class"].items():
            result["per_class"][name][f"VOC{metric}"] = values["AP"]
    if lvis.is_federated(annotations):
        scores = lvis.evaluate(annotations, detections)
        result |= {f"LVIS_{name}": value for name, value in scores.items()}
    print(coco.format_table(result))
    if found is not None:
        print(next_step(found))
    print(json.dumps(result))
    if found is not None and found.undrawn:
        raise troubles.Partly(f"{len(found.undrawn)} pictures were not drawn")


if __name__ == "__main__":
    cli.run(main)
