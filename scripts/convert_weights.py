r"""A peer's detector -> a checkpoint, or a checkpoint -> a torchvision state dict.

    python scripts/convert_weights.py --config=experiments/coco_r50_fpn_v1.py \
        --weights=fasterrcnn_resnet50_fpn_coco-258fb6c6.pth --output=runs/r50_fpn
    python scripts/convert_weights.py --config=experiments/coco_r50_fpn.py \
        --weights=model_final_b275ba.pkl --output=runs/detectron2 --report
    python scripts/convert_weights.py --checkpoint=runs/mine --output=mine.safetensors

The checkpoint is one like any other: evaluate.py, predict.py and `--config.init_from`
read it. Files of torchvision (`.pth`), Detectron2 and Detectron (`.pkl`), and either's
arrays as `.safetensors` or `.npz`, are read without torch and without running anything
that lies in them. The config must be that of the file (without one, that which the
package has for it): the error says which one fits, and a leaf that a flag sets
(`--config.model.anchors.sizes=...`) is taken with a warning. Files of 80 or 90 classes
are taken for COCO: of torchvision's 91 rows those of the 80 categories are kept
(`--all_rows` keeps the ten unused ones, which count in its softmax). Other files take
`--classes`, in the order of the rows after background. `--report` says of every array
where it went and what was done to it; one without a place is an error.

What is exported loads in torchvision, with `safetensors.torch.load_file(f)` or

    model.load_state_dict({k: torch.from_numpy(v) for k, v in numpy.load(f).items()})

(`strict=False` for v2, whose norms also count batches), from .safetensors or .npz. The
last line on stdout is one JSON object.
"""

import json
import pathlib
import sys
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from frcnn_jax.training import checkpoint, cli, pretrained, trained, troubles
from frcnn_jax.training import config as configs
from frcnn_jax.training.convert import convert
from frcnn_jax.training.metrics import log_to_stderr
from frcnn_jax.weights import coco, torchvision
from frcnn_jax.weights.files import write_npz, write_safetensors

CONFIG = cli.define_config("The experiment whose model it is: experiments/coco_*.py.")
WEIGHTS = flags.DEFINE_string(
    "weights", None, "A detector's file of torchvision, Detectron2 or Detectron."
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run or checkpoint to export.")
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The checkpoint's folder, or a .safetensors or .npz file to export to.",
    required=True,
)
CLASSES = flags.DEFINE_list("classes", [], "The names of classes 1..C.")
ALL_ROWS = flags.DEFINE_bool(
    "all_rows", False, "Keep the ten rows of COCO's 90 that no category uses."
)
REPORT = flags.DEFINE_bool("report", False, "Print the place of every array.")


def rows_and_classes(count: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
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
    if count == len(coco.CLASSES):
        return rows, coco.CLASSES
    if count != 90:
        raise app.UsageError(
            f"{WEIGHTS.value} has {count} classes, COCO 80 or 90: give their --classes"
        )
    if not ALL_ROWS.value:
        return coco.IDS, coco.CLASSES
    names = dict(zip(coco.IDS, coco.CLASSES, strict=True))
    return rows, tuple(names.get(row, f"unused {row}") for row in rows)


def from_peer(weights: str) -> dict[str, Any]:
    """Write a checkpoint at step 0."""
    troubles.check_folder(OUTPUT.value)
    rows, classes = rows_and_classes(torchvision.count_classes(weights))
    config = CONFIG.value or configs.from_json(trained.settings_of(weights))
    changed = CONFIG.value and config_flags.get_override_values(flags.FLAGS["config"])
    report = convert(
        weights,
        config,
        OUTPUT.value,
        classes=classes,
        category_ids=coco.IDS if classes is coco.CLASSES else rows,
        rows=rows,
        set_by_flag=changed or (),
    )
    if REPORT.value:
        print("\n".join(report))
    used = sum(not line.startswith("ignored") for line in report)
    return dict(arrays=used, ignored=len(report) - used, classes=len(classes))


def to_torchvision(run: str) -> dict[str, Any]:
    """Write a state dict."""
    writers = {".npz": write_npz, ".safetensors": write_safetensors}
    suffix = pathlib.Path(OUTPUT.value).suffix
    if suffix not in writers:
        raise app.UsageError(
            f"--output={OUTPUT.value}: expected a name ending in one of "
            f"{tuple(writers)}"
        )
    troubles.prepare_file(OUTPUT.value)
    path = checkpoint.find(run)
    arrays = torchvision.export_detector(checkpoint.read_variables(path))
    writers[suffix](OUTPUT.value, arrays)
    config = checkpoint.read_meta(path).config.to_dict()
    if wrong := pretrained.contradicted(OUTPUT.value, config)[2]:
        print(
            "torchvision's own model computes something else until it is built with "
            "the run's values (found): "
            + "; ".join(f"{leaf}: {text}" for leaf, text in wrong.items()),
            file=sys.stderr,
        )
    return dict(arrays=len(arrays))


def main(_):
    log_to_stderr()
    if CHECKPOINT.value and not WEIGHTS.value:
        summary = to_torchvision(CHECKPOINT.value)
    elif WEIGHTS.value and not CHECKPOINT.value:
        summary = from_peer(WEIGHTS.value)
    else:
        raise app.UsageError("give --weights or --checkpoint, and not both")
    print(f"{summary['arrays']} arrays -> {OUTPUT.value}")
    print(json.dumps(summary))


if __name__ == "__main__":
    cli.run(main)
