"""A detector as one ONNX file: weights, normalisation, NMS and RoIAlign inside.

    model = batch_model(detector.model, detector.variables, config, batch_size=1)
    pathlib.Path("model.onnx").write_bytes(model.SerializeToString())

The program of the prediction is traced by JAX and written operator by operator
(`lower`), so it has what the checkpoint has, masks of the padding included. Running the
file needs an ONNX runtime and nothing of this package.
"""

from collections.abc import Mapping
from typing import Any

from frcnn_jax import extras

extras.need("onnx", "onnx")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import onnx  # noqa: E402

from frcnn_jax import export  # noqa: E402
from frcnn_jax.to_onnx.detection import with_operators  # noqa: E402
from frcnn_jax.to_onnx.lower import lower  # noqa: E402
from frcnn_jax.to_onnx.resizing import with_resizing  # noqa: E402

__all__ = ["batch_model", "image_model", "lower", "shape_of", "with_resizing"]

OUTPUTS = ("boxes", "scores", "classes", "count")


def batch_model(
    model: Any, variables: Any, config: Mapping[str, Any], *, batch_size: int = 1
) -> onnx.ModelProto:
    """`image` uint8 RGB `[b, H, W, 3]`, `image_size` int32 `(h, w)` `[b, 2]` in.

    Out come `boxes` `[b, n, 4]`, `scores` and `classes` `[b, n]` by falling score, and
    `count` `[b]`, of how many rows are detections; the others are zero. Boxes are in
    pixels of the canvas, on which an image lies at the top left. Raises ValueError for
    what has no form in ONNX.
    """
    export.check(config)
    operators = with_operators(model)

    def detect(image, image_size):
        found = export.detect_batch(
            variables, image, image_size, model=operators, config=config
        )
        return _outputs(found)

    canvas = export.canvas_of(config)
    inputs = dict(
        image=jax.ShapeDtypeStruct((batch_size, *canvas, 3), jnp.uint8),
        image_size=jax.ShapeDtypeStruct((batch_size, 2), jnp.int32),
    )
    return checked(lower(detect, inputs=inputs, outputs=OUTPUTS))


def image_model(
    model: Any,
    variables: Any,
    config: Mapping[str, Any],
    *,
    size: tuple[int, int] | None = None,
) -> onnx.ModelProto:
    """`image` uint8 RGB `[h, w, 3]` in, of any h and w, or of one `size` alone.

    Resizing and padding are inside. Out come `boxes` `[n, 4]` in pixels of that image,
    `scores`, `classes` `[n]` and `count` `[]`. Rows beyond `count` are zero. Where the
    size is known masks of the padding are constants. Raises ValueError for what has no
    form in ONNX.
    """
    if size is None:
        return checked(with_resizing(batch_model(model, variables, config), config))
    export.check(config)
    operators = with_operators(model)

    def detect(image):
        found = export.detect_image(variables, image, model=operators, config=config)
        return _outputs(found)

    inputs = dict(image=jax.ShapeDtypeStruct((*size, 3), jnp.uint8))
    return checked(lower(detect, inputs=inputs, outputs=OUTPUTS))


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself; onnx's ValidationError where the strict checker refuses it."""
    onnx.checker.check_model(model, full_check=True)
    return model


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """The shape of an input or output; a name for a side that may have any length."""
    return [
        side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim
    ]


def _outputs(found):
    count = found["valid"].sum(-1, dtype=jnp.int32)
    return found["boxes"], found["scores"], found["classes"], count
