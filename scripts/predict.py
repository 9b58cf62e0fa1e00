"""Boxes for your images: annotated pictures and a COCO-format JSON.

python scripts/predict.py --checkpoint=runs/demo --images='photos/*.jpg' --output=out

The checkpoint is all it needs: configuration and class names travel with it. Leaves one
picture an image, `detections.json` (COCO results, boxes in original pixels, with the
file's name) and `images.json` (the ids). An image that cannot be read is named and left
out; the exit code is then 1. The last line on stdout is one JSON object.
"""

import glob
import json
import logging
import os
import pathlib
import sys
import time

import numpy as np
from absl import app, flags

from frcnn_jax.data import images as image_files
from frcnn_jax.detector import load
from frcnn_jax.evaluation import draw, files
from frcnn_jax.training import cli, devices
from frcnn_jax.training.metrics import duration, log_to_stderr

log = logging.getLogger("frcnn_jax.predict")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's folder or a checkpoint.", required=True
)
IMAGES = flags.DEFINE_multi_string(
    "images", None, "Files or globs; may be repeated.", required=True
)
OUTPUT = flags.DEFINE_string(
    "output", None, "A folder for pictures and JSON.", required=True
)
SCORE = flags.DEFINE_float("score", 0.5, "The least score shown in pictures.")
BATCH = flags.DEFINE_integer("batch_size", 1, "Images at a time.")


def main(argv):
    if argv[1:]:
        raise app.UsageError(f"unexpected {argv[1:]}: options begin with --")
    log_to_stderr()
    devices.keep_compiled()
    paths, unread = [], []
    for pattern in IMAGES.value:  # a name that exists is meant as it is
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        paths += found
        if not found:
            log.error("--images=%s matches no file", pattern)
            unread.append(pattern)
    if not paths:
        raise app.UsageError(f"--images={IMAGES.value} matches no file")
    detector = load(CHECKPOINT.value, batch_size=BATCH.value)
    output = pathlib.Path(OUTPUT.value)
    results, entries = [], []
    start = said = time.perf_counter()
    for first in range(0, len(paths), BATCH.value):
        pictures = {}
        for path in paths[first : first + BATCH.value]:
            try:
                pictures[path] = image_files.load_image(path)
            except (ValueError, OSError) as error:
                log.error("%s", error)
                unread.append(path)
        found = detector(list(pictures.values()))
        for i, (path, picture) in enumerate(pictures.items()):
            one = type(found)(*(field[i] for field in found))
            size, image_id = picture.shape[:2], len(entries) + 1
            entries.append(
                dict(id=image_id, file_name=path, height=size[0], width=size[1])
            )
            rows = files.to_results(one, image_id, size, size, detector.category_ids)
            results += [dict(row, file_name=path) for row in rows]
            shown = one.valid & (one.scores >= SCORE.value)
            drawn = draw.draw(
                picture,
                *(np.asarray(x)[shown] for x in (one.boxes, one.classes, one.scores)),
                names=detector.classes,
            )
            name = f"{image_id:05d}_{pathlib.Path(path).stem}.jpg"
            image_files.save_image(output / "pictures" / name, drawn)
        if (now := time.perf_counter()) - said > 10:
            done = first + len(pictures)
            left = (now - start) / max(done, 1) * (len(paths) - done)
            log.info("%d/%d images, %s left", done, len(paths), duration(left))
            said = now
    categories = [
        dict(id=i, name=name)
        for i, name in zip(detector.category_ids, detector.classes, strict=True)
    ]
    files.write_annotations(
        output / "images.json",
        dict(images=entries, categories=categories, annotations=[]),
    )
    files.write_detections(output / "detections.json", results)
    summary = dict(images=len(entries), detections=len(results), unread=unread)
    print(f"{len(entries)} images, {len(results)} detections -> {output}")
    print(json.dumps(summary))
    sys.exit(1 if unread else 0)


if __name__ == "__main__":
    cli.run(main)
