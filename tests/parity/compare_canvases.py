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
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import flags

from frcnn_jax.detector import predict_batch
from frcnn_jax.training import cli
from frcnn_jax.training.step import predict_step

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from tests.parity.busy_weights import busy, picture  # noqa: E402
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


@functools.cache
def setup():
    """The model, its busy variables, its configuration and its compiled prediction."""
    module, arg = EXPERIMENTS[MODEL.value]
    model, variables, config = busy(module, arg)
    predict = jax.jit(partial(predict_step, model=model, config=config))
    return model, jax.device_put(variables), config, predict


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
