r"""A checkpoint as one StableHLO file that runs where only JAX is installed.

python scripts/export.py --checkpoint=runs/demo --output=exported
python scripts/export.py --checkpoint=runs/demo --output=exported --input=batch \
    --batch_size=8 --platforms=cuda

Leaves `model.stablehlo` (weights, preprocessing and NMS inside) and `model.json` (class
names, what goes in and what comes out, which JAX made it). `--input=image` takes one
RGB image of any size, or of `--size` alone; `--input=batch` takes images resized and
padded by the caller, any number of them or `--batch_size`. docs/export.md shows the ten
lines that load it. The file is run once and compared with the checkpoint; the last line
on stdout is one JSON object.
"""

import json
import pathlib
import re
import time

import jax
import numpy as np
from absl import app, flags

from frcnn_jax import detector, export
from frcnn_jax.data import images
from frcnn_jax.training import cli, devices, trained
from frcnn_jax.training.metrics import log_to_stderr

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A run's folder, a checkpoint, or a detector's name or file.",
    required=True,
)
OUTPUT = flags.DEFINE_string("output", None, "A folder.", required=True)
INPUT = flags.DEFINE_enum(
    "input",
    "image",
    ["image", "batch"],
    "What the program takes: one image, or a batch of prepared ones.",
)
SIZE = flags.DEFINE_string(
    "size", "", "With --input=image: the only image size, HEIGHTxWIDTH; default any."
)
BATCH = flags.DEFINE_integer(
    "batch_size", 0, "With --input=batch: the number of images; 0: any.", 0
)
PLATFORMS = flags.DEFINE_list(
    "platforms", "cpu,cuda,tpu", "The platforms of the program."
)
SCORE = flags.DEFINE_float(
    "score", None, "The least score of a detection; default postprocess.score."
)


def check_flags():
    if SIZE.value and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", SIZE.value):
        raise app.UsageError(f"--size={SIZE.value}: expected HEIGHTxWIDTH, 480x640")
    if SIZE.value and INPUT.value != "image":
        raise app.UsageError("--size is for --input=image, a batch has the canvas's")
    if BATCH.value and INPUT.value != "batch":
        raise app.UsageError("--batch_size is for --input=batch")


def exported_as_asked(model, variables, config):
    """What is exported, its (h, w) or None, and what `model.json` says of it."""
    if INPUT.value == "image":
        h, w = map(int, SIZE.value.split("x")) if SIZE.value else (None, None)
        size = (h, w) if h and w else None
        exported = export.export_image(
            model, variables, config, size=size, platforms=PLATFORMS.value
        )
        given = "image: uint8 RGB [h, w, 3]"
        return exported, size, given, "pixels of the image given"
    exported = export.export_batch(
        model, variables, config, batch_size=BATCH.value, platforms=PLATFORMS.value
    )
    given = (
        "images: uint8 RGB [b, H, W, 3], resized so that the short side is "
        "short_side and the long one at most max_side, at the top left of a canvas "
        "of zeros; sizes: int32 [b, 2], (h, w) that each fills"
    )
    space = "pixels of the canvas; times original / size for the original's"
    return exported, None, given, space


def main(_):
    check_flags()
    log_to_stderr()
    devices.keep_compiled()
    model, variables, meta, _ = trained.load(CHECKPOINT.value)
    if SCORE.value is not None:
        meta.config.postprocess.score = SCORE.value
    config, data = meta.config.to_dict(), meta.config.data
    canvas = export.canvas_of(config)
    start = time.perf_counter()
    exported, fixed, given, space = exported_as_asked(model, variables, config)
    output = pathlib.Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    file = output / "model.stablehlo"
    file.write_bytes(exported.serialize())
    about = dict(
        input=given,
        output="boxes [.., n, 4] (x1, y1, x2, y2), scores, classes (1..C; 0: unused) "
        f"and valid [.., n], by falling score; boxes in {space}",
        arguments=[str(x) for x in exported.in_avals],
        classes=meta.classes,
        category_ids=meta.category_ids,
        canvas=canvas,
        short_side=data.short_side,
        max_side=data.max_side,
        platforms=exported.platforms,
        jax=jax.__version__,
        calling_convention=exported.calling_convention_version,
        step=meta.step,
    )
    (output / "model.json").write_text(json.dumps(about, indent=2) + "\n")
    seconds = time.perf_counter() - start
    result = dict(bytes=file.stat().st_size, seconds=round(seconds, 2))
    print(f"{file}: {result['bytes'] / 1e6:.1f} MB, {', '.join(exported.platforms)}")
    if jax.default_backend() in exported.platforms:
        whole = detector.Detector(model, variables, meta)
        sides, options = (data.short_side, data.max_side), images.canvases(data.canvas)
        chosen = options[images.choose_canvas((300, 400), *sides, options)]
        size = images.fit((300, 400), *sides, chosen)
        result |= compare(file, whole, fixed or size, canvas)
        print(
            f"same classes as the checkpoint: {result['same']}; apart at most: scores "
            f"{result['score_difference']:.1e}, boxes {result['box_difference']:.1e} "
            "pixels"
        )
    print(json.dumps(result))


def compare(file, whole, size, canvas):
    """Runs what was written on a soft pattern and on nothing, beside the checkpoint.

    Unless the artifact is of one size the image needs no resizing, and nothing but
    rounding may differ.
    """
    call = jax.jit(jax.export.deserialize(file.read_bytes()).call)
    rng = np.random.default_rng(0)
    pattern = images.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), size)
    worst, apart, same = 0.0, 0.0, True
    for image in (pattern, np.zeros_like(pattern)):
        expected = whole([image])
        if INPUT.value == "image":
            found = jax.device_get(call(image))
        else:
            data = whole.config.data
            pixels, fitted = images.prepare(
                image,
                data.short_side,
                data.max_side,
                canvas,
                reduced=images.reduced_of(**data),
            )
            b = BATCH.value or 1
            sizes = np.array([fitted] * b, np.int32)
            found = jax.device_get(call(np.stack([pixels] * b), sizes))
            found = {name: x[0] for name, x in found.items()}
            scale = np.array(image.shape[:2]) / fitted
            found["boxes"] = found["boxes"] * np.tile(scale[::-1], 2)
        same &= bool(np.array_equal(found["classes"], expected.classes[0]))
        worst = max(worst, float(np.abs(found["scores"] - expected.scores[0]).max()))
        apart = max(apart, float(np.abs(found["boxes"] - expected.boxes[0]).max()))
    return dict(same=same, score_difference=worst, box_difference=apart)


if __name__ == "__main__":
    cli.run(main)
