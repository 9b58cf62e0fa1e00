r"""A checkpoint as one file, StableHLO or ONNX, that runs without this package.

python scripts/export.py --checkpoint=runs/demo --output=exported
python scripts/export.py --checkpoint=runs/demo --output=exported --input=batch \
    --batch_size=8 --platforms=cuda
python scripts/export.py --checkpoint=runs/demo --output=model.onnx --format=onnx
python scripts/export.py --checkpoint=runs/demo --output=model.onnx --format=onnx \
    --quantize --calibrate=100

Leaves `model.stablehlo` (weights, preprocessing and NMS inside) and `model.json` (class
names, what goes in and what comes out, which JAX made it). `--input=image` takes one
RGB image of any size, or of `--size` alone; `--input=batch` takes images resized and
padded by the caller, any number of them or `--batch_size`.

`--format=onnx` leaves `model.onnx` and `model.json`, or a file of the name that
`--output` gives. It takes a batch of `--batch_size` (1) prepared images; with
`--input=image` one image of any size, or of `--size` alone. `--quantize` makes it int8,
with the ranges that `--calibrate` images of the run's training split give;
`scripts/evaluate_onnx.py` says what that costs. Images that cannot be read are named
and left out, with exit code 1. `--config.data.root=DIR` says where the data is now.

docs/export.md helps to choose and shows the ten lines that load each. The file is run
once and compared with the checkpoint; the last line on stdout is one JSON object.
"""

import json
import logging
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from frcnn_jax import detector, export, extras
from frcnn_jax.data import images
from frcnn_jax.training import cli, devices, trained, troubles
from frcnn_jax.training import config as configs
from frcnn_jax.training.compiling import Announced
from frcnn_jax.training.metrics import log_to_stderr

log = logging.getLogger("frcnn_jax.export")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A run's folder, a checkpoint, or a detector's name or file.",
    required=True,
)
OUTPUT = flags.DEFINE_string(
    "output", None, "A folder, or a file NAME.onnx.", required=True
)
FORMAT = flags.DEFINE_enum(
    "format", "stablehlo", ["stablehlo", "onnx"], "The form of the program."
)
INPUT = flags.DEFINE_enum(
    "input",
    None,
    ["image", "batch"],
    "What the program takes: one image, or a batch of prepared ones. Default: one "
    "image; with --format=onnx and without --size a batch.",
)
SIZE = flags.DEFINE_string(
    "size", "", "With --input=image: the only image size, HEIGHTxWIDTH; default any."
)
BATCH = flags.DEFINE_integer(
    "batch_size", 0, "With --input=batch: the number of images; 0: any, in ONNX 1.", 0
)
PLATFORMS = flags.DEFINE_list(
    "platforms", "cpu,cuda,tpu", "The platforms of the program."
)
SCORE = flags.DEFINE_float(
    "score", None, "The least score of a detection; default postprocess.score."
)
QUANTIZE = flags.DEFINE_bool("quantize", False, "With --format=onnx: int8.")
CALIBRATE = flags.DEFINE_integer(
    "calibrate", 100, "With --quantize: training images that give the ranges.", 1
)
SET = cli.define_changes()


def takes_image():
    """Whether the program takes one image and resizes it."""
    if INPUT.value is None:
        return FORMAT.value != "onnx" or bool(SIZE.value)
    return INPUT.value == "image"


def check_flags():
    if SIZE.value and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", SIZE.value):
        raise app.UsageError(f"--size={SIZE.value}: expected HEIGHTxWIDTH, 480x640")
    if SIZE.value and not takes_image():
        raise app.UsageError("--size is for --input=image, a batch has the canvas's")
    if BATCH.value and takes_image():
        raise app.UsageError("--batch_size is for --input=batch")
    if FORMAT.value == "onnx":
        if flags.FLAGS["platforms"].present:
            raise app.UsageError("--platforms is for --format=stablehlo")
        if QUANTIZE.value and SIZE.value:
            raise app.UsageError("--quantize is not for --size: leave --size out")
    elif QUANTIZE.value:
        raise app.UsageError("--quantize is for --format=onnx")


class Written(NamedTuple):
    """A program on disk: what `model.json` says of it, and how it is called."""

    file: pathlib.Path
    about: dict[str, Any]
    call: Callable[..., dict[str, Any]] | None  # None: not on this machine
    size: tuple[int, int] | None = None  # (h, w) of the only image that it takes
    skipped: tuple[str, ...] = ()  # images that could not calibrate it, and why


ROWS = (
    "boxes [.., n, 4] (x1, y1, x2, y2), scores, classes (1..C; 0: unused) [.., n] and "
)


def only_size():
    """(h, w) of --size, or None."""
    if not SIZE.value:
        return None
    h, w = map(int, SIZE.value.split("x"))
    return h, w


def about_input(name="images", sizes="sizes"):
    """What goes in and which pixels boxes are in."""
    if takes_image():
        image = "image: uint8 RGB [h, w, 3]"
        return dict(input=image, pixels="of the image given")
    given = (
        f"{name}: uint8 RGB [b, H, W, 3], resized so that the short side is "
        "short_side and the long one at most max_side, at the top left of a canvas "
        f"of zeros; {sizes}: int32 [b, 2], (h, w) that each fills"
    )
    space = "of the canvas; times original / size for the original's"
    return dict(input=given, pixels=space)


def file_to_write() -> pathlib.Path:
    """The file --output, or that of the format in the folder --output."""
    output = pathlib.Path(OUTPUT.value)
    if FORMAT.value == "onnx" and output.suffix == ".onnx":
        return output
    return output / f"model.{FORMAT.value}"


def write_stablehlo(model, variables, config) -> Written:
    """`model.stablehlo` in the folder --output."""
    if takes_image():
        exported = export.export_image(
            model, variables, config, size=only_size(), platforms=PLATFORMS.value
        )
    else:
        exported = export.export_batch(
            model, variables, config, batch_size=BATCH.value, platforms=PLATFORMS.value
        )
    file = file_to_write()
    file.write_bytes(exported.serialize())
    about = about_input() | dict(
        output=f"{ROWS}valid [.., n], by falling score",
        arguments=[str(x) for x in exported.in_avals],
        platforms=exported.platforms,
        jax=jax.__version__,
        calling_convention=exported.calling_convention_version,
    )
    call = jax.jit(jax.export.deserialize(bytearray(file.read_bytes())).call)
    call = Announced(call, "the exported program")
    runs = jax.default_backend() in exported.platforms
    return Written(file, about, call if runs else None, only_size())


def write_onnx(model, variables, config) -> Written:
    """The file --output, or `model.onnx` in that folder."""
    extras.need("onnx", "onnx", "onnxruntime")
    from frcnn_jax import to_onnx
    from frcnn_jax.to_onnx import quantize, runtime

    if size := only_size():
        graph = to_onnx.image_model(model, variables, config, size=size)
    else:
        b = BATCH.value or 1
        graph = to_onnx.batch_model(model, variables, config, batch_size=b)
    feeds = None
    if QUANTIZE.value:
        feeds = runtime.Calibration(config, BATCH.value or 1, CALIBRATE.value)
        graph = quantize.quantize(graph, feeds)
    if takes_image() and not size:
        graph = to_onnx.with_resizing(graph, config)
    file = file_to_write()
    file.write_bytes(graph.SerializeToString())
    about = about_input("image", "image_size") | dict(
        output=f"{ROWS}count [..] of the rows that are used, by falling score",
        arguments={x.name: to_onnx.shape_of(x) for x in graph.graph.input},
        opset=graph.opset_import[0].version,
        ir_version=graph.ir_version,
        operators=sorted({node.op_type for node in graph.graph.node}),
        quantized=QUANTIZE.value,
    )
    skipped = tuple(feeds.skipped()) if feeds is not None else ()
    return Written(file, about, runtime.Session(file), size, skipped)


def main(_):
    check_flags()
    log_to_stderr()
    devices.keep_compiled()
    troubles.prepare_file(file_to_write())
    model, variables, meta, _ = trained.load(CHECKPOINT.value)
    configs.change(meta.config, SET.value)
    if QUANTIZE.value:  # nothing else reads the run's data
        configs.check_code(meta.config, SET.value)
    if SCORE.value is not None:
        meta.config.postprocess.score = SCORE.value
    config, data = meta.config.to_dict(), meta.config.data
    log.info("writing the program to %s", OUTPUT.value)
    start = time.perf_counter()
    write = write_onnx if FORMAT.value == "onnx" else write_stablehlo
    written = write(model, variables, config)
    about = written.about | dict(
        classes=meta.classes,
        category_ids=meta.category_ids,
        canvas=export.canvas_of(config),
        short_side=data.short_side,
        max_side=data.max_side,
        step=meta.step,
    )
    file = written.file
    file.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
    seconds = time.perf_counter() - start
    result = dict(bytes=file.stat().st_size, seconds=round(seconds, 2))
    if QUANTIZE.value:
        result["skipped"] = len(written.skipped)
    print(f"{file}: {result['bytes'] / 1e6:.1f} MB")
    if written.call is not None:
        whole = detector.Detector(model, variables, meta)
        sides, options = (data.short_side, data.max_side), images.canvases(data.canvas)
        chosen = options[images.choose_canvas((300, 400), *sides, options)]
        size = written.size or images.fit((300, 400), *sides, chosen)
        result |= compare(written.call, whole, size, about["canvas"])
        print(
            f"same classes as the checkpoint: {result['same']}; apart at most: scores "
            f"{result['score_difference']:.1e}, boxes {result['box_difference']:.1e} "
            "pixels"
        )
    print(json.dumps(result))
    if written.skipped:
        raise troubles.Partly(
            f"{len(written.skipped)} images did not calibrate: {written.skipped[0]}"
        )


def compare(call, whole, size, canvas):
    """Runs what was written on a soft pattern and on nothing, beside the checkpoint.

    Unless the artifact is of one size the image needs no resizing, and nothing but
    rounding may differ.
    """
    rng = np.random.default_rng(0)
    pattern = images.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), size)
    worst, apart, same = 0.0, 0.0, True
    for image in (pattern, np.zeros_like(pattern)):
        expected = whole([image])
        if takes_image():
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
