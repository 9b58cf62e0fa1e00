"""Random weights of our own under which a detector has something to do.

For comparisons of ours with ours, of any experiment. Those with a peer have weights in
the peer's scheme (`random_weights.py`).
"""

import pathlib
import zlib
from functools import partial
from typing import Any

import jax
import numpy as np

from frcnn_jax import models
from frcnn_jax.detector import predict_batch
from frcnn_jax.models.cascade import CascadeRCNN
from frcnn_jax.training import config as configs
from tests.parity.random_weights import noise

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLASSES = 20
# The deviation of the last layers' outputs that gives NMS something to do.
RPN = dict(objectness=2.0, deltas=0.2)
HEAD = dict(class_logits=2.5, class_deltas=1.0)


def random_tree(variables: Any) -> Any:
    """He convolutions, mild norms, biases that are not zero."""

    def draw(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("var"):
            return rng.uniform(0.5, 1.5, x.shape)
        if x.ndim > 1:
            fan_in = np.prod(x.shape[:-1])
            return rng.standard_normal(x.shape, np.float32) * np.sqrt(2 / fan_in)
        if name.endswith("scale"):
            small = 0.3 if "bn3" in name or "project_bn" in name else 1.0
            return small * rng.uniform(0.5, 1.5, x.shape)
        return rng.normal(0, 0.1, x.shape)

    return jax.tree_util.tree_map_with_path(
        lambda path, x: np.float32(draw(path, x)), variables
    )


def spread(params: Any, deviations: dict[str, float], outputs: Any) -> Any:
    """Scale the layers of one head, so that their `outputs` have a useful deviation."""
    new = {}
    for (layer, deviation), x in zip(deviations.items(), outputs, strict=True):
        kernel, bias = (params[layer][k] for k in ("kernel", "bias"))
        x = np.asarray(x).reshape(-1, bias.size)
        scale = deviation / np.maximum(x.std(0), 1e-6)
        bias = (bias - x.mean(0)) * scale
        new[layer] = dict(kernel=np.float32(kernel * scale), bias=np.float32(bias))
    return {**params, **new}


def busy(module: str, arg: str = "") -> tuple[Any, Any, dict[str, Any]]:
    """The model of an experiment, its busy variables, and its configuration."""
    file = ROOT / "experiments" / f"{module}.py"
    config = configs.load_experiment(file).get_config(arg).to_dict()
    model = models.build_detector(num_classes=CLASSES, **config["model"])
    pixels = jax.ShapeDtypeStruct((1, 256, 256, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixels)
    variables = random_tree(shapes)
    batch = predict_batch(
        picture(0, (256, 256))[None], np.array([[256, 256]], np.int32)
    )

    def outputs(model):
        images = model.normalize(batch.image, batch.image_size)
        out = model.rpn(images)
        best = out.logits[0] if out.logits.ndim == 2 else out.logits[0, :, 1]
        anchors = out.anchors[0][jax.lax.top_k(best, 300)[1]]
        rois = anchors[None].clip(0, 256)
        if isinstance(model, CascadeRCNN):
            stages = range(len(model.box_head.stages))
            heads = [model.detect_stage(out.features, rois, i) for i in stages]
        else:
            heads = [model.detect(out.features, rois)]
        return (out.logits, out.deltas), heads

    run = jax.jit(partial(model.apply, method=outputs))
    params = variables["params"]
    rpn, _ = run(variables)
    params = {**params, "rpn_head": spread(params["rpn_head"], RPN, rpn)}
    _, heads = run({**variables, "params": params})
    head = params["box_head"]
    if len(heads) == 1:
        head = spread(head, HEAD, heads[0])
    else:
        stages = {f"stages_{i}": found for i, found in enumerate(heads)}
        head = {k: spread(head[k], HEAD, found) for k, found in stages.items()}
    params = {**params, "box_head": head}
    return model, {**variables, "params": params}, config


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Noise of many scales, uint8 `[h, w, 3]`."""
    image = noise(np.random.default_rng([seed, *size]), *size)
    return np.clip(127 + 60 * image, 0, 255).astype(np.uint8)
