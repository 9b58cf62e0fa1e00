r"""A torchvision detector's weights -> a checkpoint, or a checkpoint -> a state dict.

    python scripts/convert_weights.py --config=experiments/coco_r50_fpn_v1.py \
        --weights=fasterrcnn_resnet50_fpn_coco-258fb6c6.pth --output=runs/r50_fpn
    python scripts/convert_weights.py --checkpoint=runs/mine --output=mine.npz

The checkpoint is one like any other: evaluate.py, predict.py and `--config.init_from`
read it. `.pth`, `.safetensors` and `.npz` files are read without torch and without
running anything that lies in them. A file of 91 rows is taken for COCO: the rows of its
80 categories are kept (`--all_rows` keeps the ten unused ones, which count in
torchvision's softmax). Other files take `--classes`, in the order of the rows after
background. `--report` says where every array went; one without a place is an error.

The exported .npz loads in torchvision by
`model.load_state_dict({k: torch.from_numpy(v) for k, v in numpy.load(f).items()})`
(`strict=False` for v2, whose norms also count batches). The last line on stdout is one
JSON object.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from ml_collections import config_flags

from frcnn_jax import models
from frcnn_jax.models import pretrained_torch
from frcnn_jax.models.weight_files import read_arrays, write_npz
from frcnn_jax.training import checkpoint, cli
from frcnn_jax.training import config as configs
from frcnn_jax.training.step import initial_state

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment whose model it is: experiments/coco_*.py."
)
WEIGHTS = flags.DEFINE_string("weights", None, "The peer's file.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run or checkpoint to export.")
OUTPUT = flags.DEFINE_string("output", None, "A folder, or an .npz.", required=True)
CLASSES = flags.DEFINE_list("classes", [], "The names of classes 1..C.")
ALL_ROWS = flags.DEFINE_bool("all_rows", False, "Keep COCO's ten unused rows.")
REPORT = flags.DEFINE_bool("report", False, "Print where every array went.")

COCO_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck"),
    *("boat", "traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra"),
    *("giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
    *("skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup"),
    *("fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange"),
    *("broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier"),
    "toothbrush",
)


def rows_and_names(count: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The rows of the file that become classes 1..C, and their names.

    `count` is the number of its rows without background.
    """
    rows = tuple(range(1, count + 1))
    if CLASSES.value:
        if len(CLASSES.value) != count:
            raise app.UsageError(
                f"--classes has {len(CLASSES.value)} names, {WEIGHTS.value} {count}"
            )
        return rows, tuple(CLASSES.value)
    if count != 90:
        raise app.UsageError(
            f"{WEIGHTS.value} has {count} classes, COCO 90: give their --classes"
        )
    used = tuple(row for row in rows if row not in COCO_UNUSED)
    if not ALL_ROWS.value:
        return used, COCO
    names = dict(zip(used, COCO, strict=True))
    return rows, tuple(names.get(row, f"unused {row}") for row in rows)


def convert(weights: str) -> dict[str, Any]:
    """Write a checkpoint at step 0."""
    c = configs.check(CONFIG.value)
    arrays = read_arrays(weights)
    name = "roi_heads.box_predictor.cls_score.bias"
    if name not in arrays:
        raise ValueError(f"{weights} has no {name}: no torchvision detector")
    rows, classes = rows_and_names(len(arrays[name]) - 1)
    model = models.build_detector(num_classes=len(classes), **c["model"])
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    variables, report = pretrained_torch.load_detector(weights, variables, classes=rows)
    if REPORT.value:
        print("\n".join(report))
    state = initial_state(
        jax.random.key(0),
        (64, 64, 3),
        model=model,
        optimizer=optax.identity(),
        variables=variables,
    )
    with checkpoint.manager(OUTPUT.value) as writer:
        checkpoint.save(
            writer,
            state,
            config=CONFIG.value,
            classes=classes,
            category_ids=rows,
        )
    used = sum(not line.startswith("ignored") for line in report)
    return dict(arrays=used, ignored=len(report) - used, classes=len(classes))


def export(run: str) -> dict[str, Any]:
    """Write a state dict as an .npz."""
    if pathlib.Path(OUTPUT.value).suffix != ".npz":
        raise app.UsageError(f"--output={OUTPUT.value}: expected a name.npz")
    variables = checkpoint.read_variables(checkpoint.find(run))
    arrays = pretrained_torch.export_detector(variables)
    write_npz(OUTPUT.value, arrays)
    return dict(arrays=len(arrays))


def main(_):
    if CHECKPOINT.value and not WEIGHTS.value:
        summary = export(CHECKPOINT.value)
    elif WEIGHTS.value and CONFIG.value and not CHECKPOINT.value:
        summary = convert(WEIGHTS.value)
    else:
        raise app.UsageError("give --config and --weights, or --checkpoint")
    print(f"{summary['arrays']} arrays -> {OUTPUT.value}")
    print(json.dumps(summary))


if __name__ == "__main__":
    cli.run(main)
