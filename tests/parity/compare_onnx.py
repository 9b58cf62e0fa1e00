r"""Ours as an ONNX file in onnxruntime against ours in JAX: same weights, same images.

    python tests/parity/compare_onnx.py --model=r50_fpn --seeds=0:100
    python tests/parity/compare_onnx.py --model=mobilenet_v3 --seeds=0:100 --batch=4
    python tests/parity/compare_onnx.py --experiment=coco_r50_c4 --seeds=0:10

Weights and images are those of `compare_torchvision.py`: each seed makes weights under
which both stages have hundreds of boxes to choose from. With --experiment they are
those of `compare_canvases.py`: one set of weights, and images of a seed. Images of
three sizes lie on one larger canvas, so that every extent is smaller than the canvas. A
seed is equal where each detection has one of its label within 0.01 pixels and 1e-4 of
its score, and the other way round; the others are listed with how close their
detections came to a bound. `pixels` and `score` are row by row: where scores are equal
to rounding, rows may change places. The last line on stdout is one JSON object.
"""

import functools
import json
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np
import onnxruntime
from absl import flags

from frcnn_jax import export, to_onnx
from frcnn_jax.training import cli

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from tests.parity import compare_torchvision as parity  # noqa: E402
from tests.parity.busy_weights import busy, picture  # noqa: E402
from tests.parity.random_weights import random_image  # noqa: E402

CANVAS = flags.DEFINE_string("canvas", "448x512", "HxW of the canvas.")
EXPERIMENT = flags.DEFINE_string(
    "experiment",
    None,
    "NAME or NAME:ARGUMENT, in place of --model.",
)
BATCH = flags.DEFINE_integer("batch", 1, "Images at a time.", 1)
THREADS = flags.DEFINE_integer("threads", 2, "Of onnxruntime.", 1)


def images_of(seed: int, size: tuple[int, int], canvas, config) -> tuple[Any, Any]:
    """--batch images of a seed on the canvas, each a little smaller than the last."""
    mean, std = (np.array(config["model"][f"pixel_{x}"]) for x in ("mean", "std"))
    pixels = np.zeros((BATCH.value, *canvas, 3), np.uint8)
    sizes = np.zeros((BATCH.value, 2), np.int32)
    for i in range(BATCH.value):
        h, w = sizes[i] = size[0] - 17 * i, size[1] - 29 * i
        if EXPERIMENT.value:
            pixels[i, :h, :w] = picture(seed + i, (h, w))
            continue
        image = random_image(seed + i, (h, w))[0, :h, :w] * std + mean
        pixels[i, :h, :w] = np.clip(np.round(image), 0, 255)
    return pixels, sizes


def detections(boxes, labels, scores, count) -> dict[str, np.ndarray]:
    """One image's detections without the rows that are none."""
    return dict(boxes=boxes[:count], labels=labels[:count], scores=scores[:count])


@functools.cache
def setup():
    """The model, its configuration, its compiled prediction, and its variables.

    The last is None where each seed makes its own.
    """
    variables = None
    if EXPERIMENT.value:
        module, _, arg = EXPERIMENT.value.partition(":")
        model, variables, config = busy(module, arg)
    else:
        model, config = parity.build(parity.MODEL.value)
    config["data"]["canvas"] = tuple(map(int, CANVAS.value.split("x")))
    for x, default in (
        ("mean", (123.675, 116.28, 103.53)),
        ("std", (58.395, 57.12, 57.375)),
    ):
        config["model"].setdefault(f"pixel_{x}", default)
    predict = functools.partial(export.detect_batch, model=model, config=config)
    return model, config, jax.jit(predict), variables


def compare_seed(seed: int, size: tuple[int, int], folder: pathlib.Path) -> Any:
    """What differs under the weights of one seed, for each image."""
    name, (model, config, predict, variables) = parity.MODEL.value, setup()
    canvas = config["data"]["canvas"]
    if variables is None:
        weights = folder / "weights.npz"
        parity.calibrated(name, seed, size, weights)
        variables = parity.load(name, weights)
    pixels, sizes = images_of(seed, size, canvas, config)
    ours = jax.device_get(predict(variables, pixels, sizes))
    file = to_onnx.batch_model(model, variables, config, batch_size=BATCH.value)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS.value
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = session.run(None, dict(image=pixels, image_size=sizes))
    theirs = dict(zip(to_onnx.OUTPUTS, found, strict=True))
    rows = []
    for i in range(BATCH.value):
        a = detections(
            *(ours[k][i] for k in ("boxes", "classes", "scores")),
            int(ours["valid"][i].sum()),
        )
        b = detections(
            *(theirs[k][i] for k in ("boxes", "classes", "scores")),
            int(theirs["count"][i]),
        )
        rows.append(dict(seed=seed, size=sizes[i].tolist()) | difference(a, b, config))
    return rows


def difference(a, b, config) -> dict[str, Any]:
    """What differs, row by row and in any order; what is nearest to a bound."""
    row: dict[str, Any] = dict(count=len(a["scores"]), count_onnx=len(b["scores"]))
    same = row["count"] == row["count_onnx"]
    same = same and bool((a["labels"] == b["labels"]).all())
    if same:
        row["pixels"] = float(np.abs(a["boxes"] - b["boxes"]).max(initial=0))
        row["score"] = float(np.abs(a["scores"] - b["scores"]).max(initial=0))
    row["differing"] = parity.differing(a, b)  # in any order
    row["equal"] = row["differing"] == 0
    if not row["equal"]:
        row["gaps"] = parity.nearest_decision(a, b, config)
    return row


def main(_):
    first, end = map(int, parity.SEEDS.value.split(":"))
    sizes, rows = parity.image_sizes(), []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(first, end):
            size = sizes[seed % len(sizes)]
            for row in compare_seed(seed, size, pathlib.Path(name)):
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    equal = [row for row in rows if row["equal"]]
    summary = dict(
        model=EXPERIMENT.value or parity.MODEL.value,
        images=len(rows),
        equal=len(equal),
        detections=[f(row["count"] for row in rows) for f in (min, max)],
        in_order=sum(row.get("pixels", 1) <= 0.01 for row in rows),
        score=max((row.get("score", 0) for row in equal), default=None),
        exceptions=[row for row in rows if not row["equal"]],
    )
    print(json.dumps(summary))


if __name__ == "__main__":
    cli.run(main)
