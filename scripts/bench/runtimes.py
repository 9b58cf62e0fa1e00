r"""Milliseconds an image of a detector in onnxruntime, in OpenVINO, here, and a peer.

python scripts/bench/runtimes.py --config=experiments/coco_r50_fpn_v1.py \
    --canvas=800x1088 --peer=.venv-peer/bin/python --peer_model=r50_fpn --quantize
python scripts/bench/runtimes.py --checkpoint=runs/bccd --onnx=model.onnx

Weights are those of a checkpoint, or of a seed; speed depends on the proposals that
survive, so compare files of one checkpoint. Each way gets the same image, which fills
the canvas, and the same number of threads; they take turns, `--rounds` times, and
medians are compared. `--peer` exports torchvision's detector
(`tests/parity/peer_onnx.py`, in the environment that `make peer` makes) and runs it in
the same onnxruntime. `--profile` lists the operators that take the time. Run it on a
machine that does nothing else. The last line on stdout is one JSON object.
"""

import collections
import functools
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from frcnn_jax import export, extras, models
from frcnn_jax.training import checkpoint, cli
from frcnn_jax.training.compiling import announced
from frcnn_jax.training.metrics import log_to_stderr
from frcnn_jax.training.state import init_variables

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "A run's folder, in its place.")
CANVAS = flags.DEFINE_string("canvas", "", "HEIGHTxWIDTH; default the experiment's.")
CLASSES = flags.DEFINE_integer("classes", 90, "Classes of --config's detector.", 1)
ONNX = flags.DEFINE_list("onnx", [], "More files of the checkpoint, such as int8.")
QUANTIZE = flags.DEFINE_bool("quantize", False, "An int8 file too, of noise.")
THREADS = flags.DEFINE_integer("threads", os.cpu_count() or 1, "Of each way.", 1)
ROUNDS = flags.DEFINE_integer("rounds", 10, "Measurements of each way.", 1)
PEER = flags.DEFINE_string("peer", "", "A Python with torchvision; empty: no peer.")
PEER_MODEL = flags.DEFINE_string("peer_model", "r50_fpn", "The peer's detector.")
PROFILE = flags.DEFINE_bool("profile", False, "Milliseconds by operator, too.")


def parts():
    """Model, variables and plain configuration, with one canvas."""
    if CHECKPOINT.value:
        path = checkpoint.find(CHECKPOINT.value)
        model, variables, meta = checkpoint.load_model(path)
        config = meta.config.to_dict()
    elif CONFIG.value is not None:
        config = CONFIG.value.to_dict()
        model = models.build_detector(num_classes=CLASSES.value, **config["model"])
        variables = init_variables(jax.random.key(0), (64, 64, 3), model=model)
    else:
        raise app.UsageError("give --config or --checkpoint")
    if CANVAS.value:
        h, w = map(int, CANVAS.value.split("x"))
        config["data"]["canvas"] = h, w
    return model, variables, config


def image_of(canvas):
    """Soft noise on the whole canvas, and its size."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (1, -(-canvas[0] // 16), -(-canvas[1] // 16), 3))
    image = coarse.astype(np.uint8).repeat(16, 1).repeat(16, 2)
    return image[:, : canvas[0], : canvas[1]], np.array([canvas], np.int32)


def ways(folder):
    """`{name: call}` of what is measured."""
    from frcnn_jax import to_onnx
    from frcnn_jax.to_onnx import quantize, runtime

    model, variables, config = parts()
    image, size = image_of(export.canvas_of(config))
    predict = functools.partial(export.detect_batch, model=model, config=config)
    predict = jax.jit(predict)
    variables = jax.device_put(variables)
    found = {"jax": lambda: jax.block_until_ready(predict(variables, image, size))}
    graph = to_onnx.batch_model(model, variables, config)
    written = {"onnxruntime": folder / "model.onnx"}
    written["onnxruntime"].write_bytes(graph.SerializeToString())
    if QUANTIZE.value:
        small = quantize.quantize(graph, [dict(image=image, image_size=size)])
        written["onnxruntime int8"] = folder / "int8.onnx"
        written["onnxruntime int8"].write_bytes(small.SerializeToString())
    written |= {f"onnxruntime {file}": pathlib.Path(file) for file in ONNX.value}
    for name, file in written.items():
        session = runtime.Session(file, threads=THREADS.value)
        found[name] = functools.partial(session, image, size)
        vino = in_openvino(file, image, size)
        if vino is not None:
            found[name.replace("onnxruntime", "openvino")] = vino
    if PEER.value:
        found["onnxruntime peer"] = peer(folder, image)
    return found, written


def in_openvino(file, image, size):
    """A call in OpenVINO in float32, or None where it is not installed."""
    from frcnn_jax.to_onnx import runtime

    if importlib.util.find_spec("openvino") is None:
        return None
    session = runtime.OpenVINO(file, threads=THREADS.value)
    return functools.partial(session, image, size)


def peer(folder, image):
    """torchvision's detector, exported by the peer, in onnxruntime."""
    from frcnn_jax.to_onnx import runtime

    file = folder / "peer.onnx"
    worker = ROOT / "tests/parity/peer_onnx.py"
    h, w = image.shape[1:3]
    command = [PEER.value, worker, PEER_MODEL.value, file, h, w]
    subprocess.run(list(map(str, command)), check=True)
    session = runtime.Session(file, threads=THREADS.value)
    pixels = np.ascontiguousarray(image[0].transpose(2, 0, 1), np.float32) / 255
    return functools.partial(session, pixels)


def by_operator(file, image, size):
    """Milliseconds of each operator in one run of three, the longest first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.intra_op_num_threads = THREADS.value
    options.profile_file_prefix = str(file.with_suffix(""))
    session = onnxruntime.InferenceSession(
        str(file), options, providers=["CPUExecutionProvider"]
    )
    for _ in range(3):
        session.run(None, dict(image=image, image_size=size))
    events = json.loads(pathlib.Path(session.end_profiling()).read_text())
    total = collections.Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            total[event["args"]["op_name"]] += event["dur"] / 3000
    return {name: round(x, 2) for name, x in total.most_common(12)}


def main(_):
    log_to_stderr()
    extras.need("onnx", "onnx", "onnxruntime")
    with tempfile.TemporaryDirectory() as name:
        calls, written = ways(pathlib.Path(name))
        with announced("the detector"):
            calls["jax"]()
        times = {name: [] for name in calls}
        for i in range(ROUNDS.value + 2):  # the first two warm up
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if i > 1:
                    times[name].append(1000 * (time.perf_counter() - start))
        result = {k: round(statistics.median(x), 1) for k, x in times.items()}
        sizes = {k: x.stat().st_size for k, x in written.items()}
        report = dict(milliseconds=result, bytes=sizes, threads=THREADS.value)
        operators = {}
        if PROFILE.value:
            image, size = image_of(export.canvas_of(parts()[2]))
            file = written["onnxruntime"]
            operators = by_operator(file, image, size)
    for name, x in result.items():
        print(f"{name:40} {x:9.1f} ms")
    for name, x in operators.items():
        print(f"    {name:36} {x:9.1f} ms")
    print(json.dumps(report | ({"operators": operators} if operators else {})))


if __name__ == "__main__":
    cli.run(main)
