"""SAHI's sliced prediction with a detector of ours: small objects in large images.

    from sahi.predict import get_sliced_prediction
    model = SahiDetector(model=load("runs/mine"), confidence_threshold=0.5)
    result = get_sliced_prediction("large.jpg", model, 512, 512)
    result.export_visuals("out/")

`pip install sahi` brings opencv-python, which must not lie beside the package
opencv-contrib-python-headless of ours: an environment of its own (`make test-tools`
shows one).
"""

# pyright: reportMissingImports=false
from typing import Any

import numpy as np
from sahi.models.base import DetectionModel
from sahi.prediction import ObjectPrediction

from frcnn_jax.detector import load
from frcnn_jax.records import records


class SahiDetector(DetectionModel):
    """`model` is a `Detector`, `model_path` what `frcnn_jax.detector.load` takes.

    Category ids are those of the detector's result files.
    """

    def set_device(self, device: str | None = None) -> None:
        """JAX has chosen already."""
        self.device = device or "jax"

    def load_model(self) -> None:
        """The detector of `model_path`."""
        self.set_model(load(str(self.model_path)))

    def set_model(self, model: Any, **kwargs: Any) -> None:
        """Take a detector, and its classes unless some were given."""
        self.model = model
        names = zip(model.category_ids, model.classes, strict=True)
        self.category_mapping = self.category_mapping or {str(i): n for i, n in names}

    def perform_inference(self, image: np.ndarray) -> None:
        """Detect in one RGB slice."""
        self._original_predictions = records(
            self.model([image]), [image], self.model, score=self.confidence_threshold
        )

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        def first(value: Any) -> Any:  # of one image, or of a list of them
            return value[0] if value and isinstance(value[0], list | tuple) else value

        shift = list(first(shift_amount_list) or (0, 0))
        shape = list(first(full_shape_list) or ())
        found = []
        for record in self._original_predictions:
            rows = zip(
                *(record.boxes.tolist(), record.category_ids.tolist()),
                *(record.class_names, record.scores.tolist()),
                strict=True,
            )
            found.append(
                [
                    ObjectPrediction(
                        bbox=box,
                        category_id=number,
                        category_name=name,
                        score=score,
                        shift_amount=shift,
                        full_shape=shape or list(record.size),
                    )
                    for box, number, name, score in rows
                ]
            )
        self._object_prediction_list_per_image = found
