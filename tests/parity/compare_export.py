r"""`export_image` against `Detector`: images of many sizes, several lists of canvases.

    python tests/parity/compare_export.py --checkpoint=runs/bccd --image=photo.jpg

The photograph is stretched to --sizes random sizes; every tenth needs no resizing. The
program that `export_image` exports is run in its two parts, resizing and detection, so
that detection is compiled once for each list of canvases. OpenCV resizes in fixed
point, the program in floating point: where their pixels are the same, boxes within 0.02
pixels and scores within 1e-4 are equal. The last line on stdout is one JSON object.
"""

import functools
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from frcnn_jax import detector, export
from frcnn_jax.data import images
from frcnn_jax.training import cli, trained

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from tests.parity.detections import ours_as_dict  # noqa: E402

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run.", required=True)
IMAGE = flags.DEFINE_string("image", None, "A photograph.", required=True)
SIZES = flags.DEFINE_integer("sizes", 200, "How many sizes.", 1)
Sizes = tuple[tuple[int, int], ...]


def lists_of_canvases(short: int, long: int) -> list[Sizes]:
    """One that lies, one of each orientation, and three of which one is larger."""
    h, w = (-(-side // 32) * 32 for side in (short, long))
    return [((h, w),), ((h, w), (w, h)), ((h, w), (w, h), (w + 64, w + 64))]


def sizes_of_images(rng: np.random.Generator, short: int, long: int) -> Sizes:
    """Random ones; every tenth is as long as `long` and needs no resizing."""
    sizes = rng.integers(short // 3, 3 * long, (SIZES.value, 2))
    sizes[::10] = [(short, rng.integers(short, long)) for _ in sizes[::10]]
    return tuple((int(h), int(w)) for h, w in sizes)


def difference(a: Any, b: Any) -> dict[str, Any]:
    """What boxes and scores differ by, row by row; how many sure ones have another.

    `kept` of `sure`: those of 0.5 and more that have one of their label within half a
    pixel and 0.02 of the score in `b`.
    """
    a, b = ours_as_dict(a), ours_as_dict(b)
    row: dict[str, Any] = dict(count=len(a["labels"]), equal=False)
    if np.array_equal(a["labels"], b["labels"]):
        boxes, scores = (
            np.abs(a[k] - b[k]).max(initial=0) for k in ("boxes", "scores")
        )
        row |= dict(pixels=float(boxes), score=float(scores))
        row["equal"] = bool(boxes <= 0.02 and scores <= 1e-4)
    sure = np.flatnonzero(a["scores"] >= 0.5)
    near = np.abs(a["boxes"][sure, None] - b["boxes"][None]).max(-1) <= 0.5
    near &= a["labels"][sure, None] == b["labels"][None]
    near &= np.abs(a["scores"][sure, None] - b["scores"][None]) <= 0.02
    return row | dict(sure=len(sure), kept=int(near.any(1).sum()))


def main(_):
    model, variables, meta, _ = trained.load(CHECKPOINT.value)
    data, photo = meta.config.data, images.load_image(IMAGE.value)
    rows = []
    for canvases in lists_of_canvases(data.short_side, data.max_side):
        data.canvas = canvases
        config = meta.config.to_dict()
        whole = detector.Detector(model, variables, meta)
        canvas, reduced = export.canvas_of(config), images.reduced_of(**data)
        sides = dict(short_side=data.short_side, max_side=data.max_side)
        detect = jax.jit(
            functools.partial(export.detect_batch, model=model, config=config)
        )
        resize = jax.jit(
            functools.partial(export.resize, canvas=canvas, reduced=reduced)
        )
        rng = np.random.default_rng(0)
        for size in sizes_of_images(rng, data.short_side, data.max_side):
            image = images.resize(photo, size)
            fitted = export.fit(jnp.array(size), **sides, canvas=canvases)
            pixels = resize(image, fitted)
            found = detect(variables, pixels[None], fitted[None])
            found = {name: x[0] for name, x in found.items()}
            boxes = export.boxes_of_image(found["boxes"], fitted, jnp.array(size))
            exported = detector.Detections(**found | dict(boxes=boxes))
            ours = jax.tree.map(lambda x: x[0], whole([image]))
            expected, _ = images.prepare(
                image, **sides, canvas=canvases, reduced=reduced
            )
            expected = images.place(expected, canvas)
            levels = int(np.abs(np.asarray(pixels, int) - expected).max())
            row = dict(size=size, canvases=canvases, levels=levels)
            row |= difference(ours, jax.device_get(exported))
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    groups = dict(
        same_pixels=[row for row in rows if row["levels"] == 0],
        other_pixels=[row for row in rows if row["levels"] > 0],
    )
    summary: dict[str, Any] = {
        name: dict(
            images=len(group),
            **{k: sum(row[k] for row in group) for k in ("equal", "sure", "kept")},
        )
        for name, group in groups.items()
    }
    summary["levels"] = max(row["levels"] for row in rows)
    print(json.dumps(summary))


if __name__ == "__main__":
    cli.run(main)
