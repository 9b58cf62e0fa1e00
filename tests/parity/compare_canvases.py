r"""One image on several canvases, in company: ours against ours on the image's extent.

    python tests/parity/compare_canvases.py --model=r50_fpn --images=60
    python tests/parity/compare_canvases.py --model=vgg16 --images=10 --extents=3

Random weights under which the detectors have something to do: scores and deltas are
spread, so that NMS suppresses within levels and classes. An image of random size is
detected alone on a canvas of exactly its extent, then at the top left of each of
--canvases, with noise around it and another image beside it. Detections agree when
count and labels are the same, boxes within 0.01 pixels and scores within 1e-4; a pair
of image and canvas where they do not is listed with what explains it: how near its
scores and overlaps came to a bound.

Each extent compiles a program: --extents bounds their number. The last line on stdout
is one JSON object.
"""

import functools
import json
import pathlib
import sys
import zlib
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import flags

from frcnn_jax import models
from frcnn_jax.detector import predict_batch
from frcnn_jax.training import cli
from frcnn_jax.training import config as configs
from frcnn_jax.training.step import predict_step

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from tests.parity.detections import (  # noqa: E402
    differing,
    nearest_decision,
    ours_as_dict,
)

EXPERIMENTS = {
    "r50_fpn": ("coco_r50_fpn_v1", ""),
    "r50_fpn_v2": ("coco_r50_fpn_v2", ""),
    "mobilenet_v3": ("coco_mobilenet_v3", ""),
    "r50_c4": ("coco_r50_c4", ""),
    "vgg16": ("voc07_vgg16", ""),
}
CLASSES = 20
# The last layers, and the deviation of their outputs that gives NMS something to do.
DEVIATION = {
    ("rpn_head", "objectness"): 2.0,
    ("rpn_head", "deltas"): 0.2,
    ("box_head", "class_logits"): 2.5,
    ("box_head", "class_deltas"): 1.0,
}

MODEL = flags.DEFINE_enum("model", "r50_fpn", list(EXPERIMENTS), "The detector.")
IMAGES = flags.DEFINE_integer("images", 60, "How many images, each of its own size.")
EXTENTS = flags.DEFINE_integer("extents", 0, "Their extents; 0: as many as images.")
LARGEST = flags.DEFINE_string("largest", "448x512", "HxW of the largest image.")
CANVASES = flags.DEFINE_list(
    "canvases", ["448x512", "640x640", "800x1344"], "HxW of each canvas."
)


def pair(text: str) -> tuple[int, int]:
    h, w = text.split("x")
    return int(h), int(w)


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


def spread(variables: Any, outputs: dict[tuple[str, str], np.ndarray]) -> Any:
    """Scale last layers, so that their `outputs` `[n, c]` have a useful deviation."""
    params = jax.tree.map(np.asarray, variables["params"])
    for (part, layer), x in outputs.items():
        kernel, bias = (params[part][layer][k] for k in ("kernel", "bias"))
        scale = DEVIATION[part, layer] / np.maximum(x.std(0), 1e-6)
        bias = (bias - x.mean(0)) * scale
        new = dict(kernel=np.float32(kernel * scale), bias=np.float32(bias))
        params = {**params, part: {**params[part], layer: new}}
    return {**variables, "params": params}


@functools.cache
def setup():
    """The model, its busy variables, its configuration and its compiled prediction."""
    module, arg = EXPERIMENTS[MODEL.value]
    file = ROOT / "experiments" / f"{module}.py"
    config = configs.load_experiment(file).get_config(arg).to_dict()
    model = models.build_detector(num_classes=CLASSES, **config["model"])
    pixels = jax.ShapeDtypeStruct((1, 256, 256, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixels)
    variables = random_tree(shapes)
    batch = predict_batch(
        picture(0, (256, 256))[None], np.array([[256, 256]], np.int32)
    )

    @jax.jit
    def outputs(variables):
        def run(model):
            images = model.normalize(batch.image, batch.image_size)
            out = model.rpn(images)
            best = out.logits[0] if out.logits.ndim == 2 else out.logits[0, :, 1]
            anchors = out.anchors[0][jax.lax.top_k(best, 300)[1]]
            rois = anchors[None].clip(0, 256)
            return out.logits, out.deltas, *model.detect(out.features, rois)

        return model.apply(variables, method=run)

    for names in (
        list(DEVIATION)[:2],
        list(DEVIATION)[2:],
    ):
        found = dict(zip(DEVIATION, map(np.asarray, outputs(variables)), strict=True))
        params = variables["params"]
        rows = {n: found[n].reshape(-1, params[n[0]][n[1]]["bias"].size) for n in names}
        variables = spread(variables, rows)
    predict = jax.jit(partial(predict_step, model=model, config=config))
    return model, jax.device_put(variables), config, predict


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Noise of many scales, uint8 `[h, w, 3]`."""
    rng, (h, w) = np.random.default_rng([seed, *size]), size
    image = np.zeros((h, w, 3))
    for cell in (4, 16, 64):
        noise = rng.normal(size=(-(-h // cell), -(-w // cell), 3))
        image += np.kron(noise, np.ones((cell, cell, 1)))[:h, :w]
    return np.clip(127 + 60 * image, 0, 255).astype(np.uint8)


def sizes_of_images(pad_to: int) -> list[tuple[int, int]]:
    """One size an image; those of one extent follow each other."""
    rng, largest = np.random.default_rng(0), np.array(pair(LARGEST.value))
    count = EXTENTS.value or IMAGES.value
    steps = largest // pad_to
    extents = [pad_to * rng.integers(-(-steps // 2), steps + 1) for _ in range(count)]
    chosen = [extents[i * count // IMAGES.value] for i in range(IMAGES.value)]
    sizes = [e - rng.integers(0, pad_to, 2) for e in chosen]
    return [(int(h), int(w)) for h, w in sizes]


def detections(images: list[np.ndarray], sizes: list[tuple[int, int]]) -> dict:
    """Those of the first image."""
    _, variables, _, predict = setup()
    batch = predict_batch(np.stack(images), np.array(sizes, np.int32))
    found = jax.device_get(predict(variables, batch))
    return ours_as_dict(jax.tree.map(lambda x: x[0], found))


def placed(seed: int, image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """The image at the top left of a canvas of noise."""
    whole = picture(seed + 1000, canvas)
    whole[: image.shape[0], : image.shape[1]] = image
    return whole


def main(_):
    model, _, config, _ = setup()
    rows, exceptions, counts = [], [], []
    for seed, size in enumerate(sizes_of_images(model.pad_to)):
        image = picture(seed, size)
        h, w = (-(-side // model.pad_to) * model.pad_to for side in size)
        alone = detections([placed(seed, image, (h, w))], [size])
        counts.append(len(alone["boxes"]))
        for canvas in map(pair, CANVASES.value):
            both = [placed(seed, image, canvas), picture(seed + 500, canvas)]
            found = detections(both, [size, canvas])
            row: dict[str, Any] = dict(image=seed, size=size, canvas=canvas)
            row["differing"] = differing(alone, found)
            if row["differing"]:
                row["gaps"] = nearest_decision(alone, found, config)
                exceptions.append(row)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    summary = dict(
        model=MODEL.value,
        images=len(counts),
        detections=[min(counts), max(counts)],
        pairs=len(rows),
        equal=sum(not row["differing"] for row in rows),
        exceptions=exceptions,
    )
    print(json.dumps(summary))


if __name__ == "__main__":
    cli.run(main)
