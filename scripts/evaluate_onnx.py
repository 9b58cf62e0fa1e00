r"""COCO's metrics of an ONNX file on the data of the run that it was exported from.

python scripts/evaluate_onnx.py --checkpoint=runs/demo --onnx=model.onnx --split=test
python scripts/evaluate_onnx.py --checkpoint=runs/demo --onnx=int8.onnx \
    --against=model.onnx

The file is that of `scripts/export.py --format=onnx`, quantised or not, for a batch of
prepared images. Compare with `scripts/evaluate.py --checkpoint=runs/demo`: the same
images, the same metrics. `--against=OTHER.onnx` adds the difference of the two; the
other runs in onnxruntime always, so `--runtime=openvino --against` with the same file
compares the two runtimes. `--config.data.root=DIR` says where the data is now,
`--config.data.on_bad_image=skip` goes on without images that cannot be read: their
objects are missed. The last line on stdout is one JSON object.
"""

import importlib.util
import json
import logging
import time

import numpy as np
from absl import app, flags

from frcnn_jax import export, extras
from frcnn_jax.data.source import image_ids
from frcnn_jax.data.sources import coco as coco_files
from frcnn_jax.evaluation import coco, files
from frcnn_jax.training import checkpoint, cli, evaluate
from frcnn_jax.training import config as configs
from frcnn_jax.training.metrics import Countdown, log_to_stderr

log = logging.getLogger("frcnn_jax.evaluate_onnx")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "The run's folder or a checkpoint of it.", required=True
)
ONNX = flags.DEFINE_string("onnx", None, "The file NAME.onnx.", required=True)
AGAINST = flags.DEFINE_string("against", "", "Another file, to take away.")
SPLIT = flags.DEFINE_string("split", "", "The split; default data.eval_split.")
RUNTIME = flags.DEFINE_enum(
    "runtime", "onnxruntime", ["onnxruntime", "openvino"], "What runs --onnx."
)
SET = cli.define_changes()
THREADS = flags.DEFINE_integer("threads", 0, "Of the runtime; 0: all cores.", 0)


def evaluated(file, config, kind="onnxruntime"):
    """Metrics of a file, and its milliseconds an image: a median, not of the first."""
    from frcnn_jax.to_onnx import runtime

    make = runtime.OpenVINO if kind == "openvino" else runtime.Session
    session = make(file, threads=THREADS.value)
    if len(session.inputs) != 2:
        raise app.UsageError(f"--onnx={file}: export it with --input=batch")
    b = session.inputs["image"][0]
    data = evaluate.build_eval_data(dict(config, eval_batch_size=b))
    ids, found, times = image_ids(data.eval), [], []
    tell = Countdown(len(data.eval), "images evaluated")
    for batch in data.eval_batches():
        given = runtime.prepared(batch, export.canvas_of(config))
        start = time.perf_counter()
        result = runtime.detections(session(*given))
        times.append((time.perf_counter() - start) / b)
        for i in np.flatnonzero(batch.valid):
            found += files.to_results(
                type(result)(*(field[i] for field in result)),
                image_id=ids[int(batch.index[i])],
                image_size=batch.image_size[i],
                original_size=batch.original_size[i],
                category_ids=data.eval.category_ids,
            )
        tell(int(batch.valid.sum()))
    for line in data.skipped():
        log.warning("data: %s", line)
    metrics = coco.evaluate(coco_files.to_coco(data.eval), found)
    return metrics, round(1000 * float(np.median(times[1:] or times)), 1)


def main(_):
    log_to_stderr()
    extras.need("onnx", "onnx", "onnxruntime")
    if RUNTIME.value == "openvino" and not importlib.util.find_spec("openvino"):
        raise app.UsageError("--runtime=openvino needs a package: pip install openvino")
    meta = checkpoint.read_meta(checkpoint.find(CHECKPOINT.value))
    configs.change(meta.config, SET.value)
    configs.check_code(meta.config, SET.value)
    config = meta.config.to_dict()
    if SPLIT.value:
        config["data"]["eval_split"] = SPLIT.value
    result, milliseconds = evaluated(ONNX.value, config, RUNTIME.value)
    print(coco.format_table(result))
    result["milliseconds"] = milliseconds
    if AGAINST.value:
        other, milliseconds = evaluated(AGAINST.value, config)
        result["milliseconds_against"] = milliseconds
        result["AP_difference"] = result["AP"] - other["AP"]
        print(f"AP {result['AP_difference']:+.4f} against {AGAINST.value}")
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
