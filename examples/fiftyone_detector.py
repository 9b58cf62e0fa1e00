"""A detector of ours as a model of FiftyOne.

    dataset.apply_model(FiftyOneDetector(load("runs/mine")), label_field="found")

`pip install fiftyone` brings opencv-python-headless, which must not lie beside the
package opencv-contrib-python-headless of ours: an environment of its own.
"""

# pyright: reportMissingImports=false
from typing import Any

import fiftyone as fo
import numpy as np
from fiftyone import Model

from frcnn_jax.records import records


class FiftyOneDetector(Model):
    """`detector` is a `frcnn_jax.detector.Detector`; boxes below `score` are left."""

    def __init__(self, detector: Any, *, score: float = 0.05):
        self.detector, self.score = detector, score

    @property
    def media_type(self) -> str:
        """What it takes."""
        return "image"

    @property
    def ragged_batches(self) -> bool:
        """Images of a batch may differ in size."""
        return True

    @property
    def transforms(self) -> None:
        """Images are taken as they are."""

    @property
    def preprocess(self) -> bool:
        """Nothing is to be done before."""
        return False

    def predict(self, arg: np.ndarray) -> fo.Detections:
        """The detections of an RGB image."""
        return self.predict_all([arg])[0]

    def predict_all(self, args: Any) -> list[fo.Detections]:
        """The detections of each image, boxes as (x, y, w, h) in shares of it."""
        images = [np.asarray(image) for image in args]
        found = records(self.detector(images), images, self.detector, score=self.score)
        return [fo.Detections(detections=_labels(record)) for record in found]


def _labels(record: Any) -> list[fo.Detection]:
    h, w = record.size
    shares = record.boxes / np.array([w, h, w, h])
    shares[:, 2:] -= shares[:, :2]
    rows = zip(record.class_names, shares.tolist(), record.scores.tolist(), strict=True)
    return [
        fo.Detection(label=name, bounding_box=box, confidence=score)
        for name, box, score in rows
    ]
