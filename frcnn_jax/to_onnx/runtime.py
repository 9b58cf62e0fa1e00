"""An ONNX file in onnxruntime or OpenVINO on the CPU, fed with a run's data.

session = Session("model.onnx")
found = session(image, image_size)     # {"boxes": [b, n, 4], "scores", ...}
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime

from frcnn_jax import export
from frcnn_jax.training import evaluate
from frcnn_jax.types import Batch, Detections


class Session:
    """Calls the file with arrays in the order of its inputs; `threads` 0: all cores."""

    def __init__(self, file: str | pathlib.Path, *, threads: int = 0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self.inputs: dict[str, list[Any]] = {
            x.name: x.shape for x in self.session.get_inputs()
        }
        self.outputs = [x.name for x in self.session.get_outputs()]

    def __call__(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs by name."""
        given = dict(zip(self.inputs, arrays, strict=True))
        found: list[Any] = list(self.session.run(None, given))
        return dict(zip(self.outputs, found, strict=True))


class OpenVINO:
    """The same call in OpenVINO, in float32; needs the package openvino."""

    def __init__(self, file: str | pathlib.Path, *, threads: int = 0):
        import openvino  # pyright: ignore[reportMissingImports]

        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        self.compiled = openvino.Core().compile_model(str(file), "CPU", options)
        self.inputs: dict[str, list[Any]] = {
            x.any_name: [
                d.get_length() if d.is_static else str(d) for d in x.partial_shape
            ]
            for x in self.compiled.inputs
        }

    def __call__(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs, each by all names that it has in OpenVINO."""
        found = self.compiled(dict(zip(self.inputs, arrays, strict=True)))
        outputs = self.compiled.outputs
        return {name: found[output] for output in outputs for name in output.names}


def detections(found: Mapping[str, np.ndarray]) -> Detections:
    """What a file of batches gives, as `Detections` `[b, n]`; boxes as in the file."""
    valid = np.arange(found["scores"].shape[1])[None] < found["count"][:, None]
    return Detections(found["boxes"], found["scores"], found["classes"], valid)


def prepared(batch: Batch, canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """`image` and `image_size` of a batch, on the canvas that holds all of its run's.

    >>> small = np.zeros((1, 2, 2, 3), np.uint8)
    >>> prepared(Batch(small, np.int32([[2, 2]]), *[None] * 7), (4, 6))[0].shape
    (1, 4, 6, 3)
    """
    below, right = (c - s for c, s in zip(canvas, batch.image.shape[1:3], strict=True))
    image = np.pad(batch.image, ((0, 0), (0, below), (0, right), (0, 0)))
    return image, np.asarray(batch.image_size, np.int32)


class Calibration:
    """Inputs of the first `count` images of the run's training split, or of fewer.

    Each is `image` uint8 `[b, H, W, 3]` and `image_size` int32 `[b, 2]`, read as for an
    evaluation: nothing is flipped or changed. A batch that is not full is left out, and
    so is one with an image that cannot be read, whatever `data.on_bad_image` says.
    """

    def __init__(self, config: Mapping[str, Any], batch_size: int, count: int):
        data = dict(config["data"], eval_split=config["data"]["train_split"])
        data |= dict(augment={}) if "augment" in data else {}
        data["on_bad_image"] = "skip"
        self.data = evaluate.build_eval_data(
            dict(config, data=data, eval_batch_size=batch_size)
        )
        self.batch_size, self.count = batch_size, count
        self.canvas = export.canvas_of(config)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        left = self.count
        for batch in self.data.eval_batches():
            if left <= 0:
                break
            if batch.valid.all():
                image, size = prepared(batch, self.canvas)
                yield dict(image=image, image_size=size)
                left -= self.batch_size

    def skipped(self) -> list[str]:
        """What could not be read so far, and why."""
        return sorted(self.data.eval_stream.skipped)
