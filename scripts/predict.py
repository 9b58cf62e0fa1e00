r"""Boxes for your images and videos: annotated pictures, a COCO-format JSON, a CSV.

python scripts/predict.py --checkpoint=runs/demo --images='photos/*.jpg' --output=out
python scripts/predict.py --checkpoint=runs/demo --images=photos --images=clip.mp4 \
    --output=out --score=0.7 --classes=star,circle --batch_size=8

The checkpoint is enough: it contains the configuration and the class names. `--images`
are files, globs and folders (with all images and videos below them), each file taken
once. Leaves in `--output`

    pictures/   an annotated picture an image      detections.json  COCO results
    videos/     an annotated video a video         images.json      their ids
                                                   detections.csv   one row a box

Boxes are in pixels of the original. Pictures and the CSV have what scores at least
`--score`, the JSON everything. Of a video each frame is an image, with its number and
time. What cannot be read is named and left out; the exit code is then 1. The last line
on stdout is one JSON object.
"""

import concurrent.futures
import csv
import glob
import itertools
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from absl import app, flags

from frcnn_jax.data import images as image_files
from frcnn_jax.detector import Detector, load
from frcnn_jax.evaluation import draw, files
from frcnn_jax.training import cli, devices
from frcnn_jax.training.metrics import Countdown, log_to_stderr
from frcnn_jax.types import Detections

log = logging.getLogger("frcnn_jax.predict")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's folder or a checkpoint.", required=True
)
IMAGES = flags.DEFINE_multi_string(
    "images", None, "Files, folders or globs; may be repeated.", required=True
)
OUTPUT = flags.DEFINE_string(
    "output", None, "A folder for pictures, videos, JSON and CSV.", required=True
)
SCORE = flags.DEFINE_float("score", 0.5, "The least score in pictures and CSV.")
CLASSES = flags.DEFINE_list("classes", [], "Names of the classes to keep; default all.")
BATCH = flags.DEFINE_integer("batch_size", 1, "Images of one batch.", lower_bound=1)
PICTURES = flags.DEFINE_bool("pictures", True, "Whether to draw pictures and videos.")

IMAGE_NAMES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
VIDEO_NAMES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
MIN_SIDE = 320  # a smaller picture is enlarged, so that its labels can be read


class Picture(NamedTuple):
    """An image or a frame of a video."""

    path: str
    pixels: np.ndarray
    frame: int | None = None
    time: float | None = None


def find_files(patterns: list[str], output: str) -> tuple[list[str], list[str]]:
    """Files by name, glob or folder, each once and in order; patterns without any.

    Not what an earlier call drew into `output`, unless it is named or its folder is.
    """
    drawn = {pathlib.Path(os.path.abspath(output), x) for x in ("pictures", "videos")}
    found: dict[str, str] = {}
    missing = []
    for pattern in patterns:  # a name that exists is meant as it is
        names = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        inside: list[str] = []
        for name in names:
            if os.path.isdir(name):
                below = sorted(p for p in pathlib.Path(name).rglob("*") if p.is_file())
                known = IMAGE_NAMES | VIDEO_NAMES
                root = pathlib.Path(os.path.abspath(name))
                mine = drawn - {root, *root.parents}
                inside += [
                    str(p)
                    for p in below
                    if p.suffix.lower() in known
                    and not mine & {*pathlib.Path(os.path.abspath(p)).parents}
                ]
            else:
                inside.append(name)
        if not inside:
            log.error("--images=%s matches no file", pattern)
            missing.append(pattern)
        for name in inside:
            found.setdefault(os.path.abspath(name), name)
    return list(found.values()), missing


def is_video(path: str) -> bool:
    return pathlib.Path(path).suffix.lower() in VIDEO_NAMES


class Writer:
    """Gathers what is found: COCO entries at the end, rows of the CSV as they come."""

    def __init__(self, output: pathlib.Path, detector: Detector, keep: set[int]):
        self.output, self.detector, self.keep = output, detector, keep
        self.images: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        output.mkdir(parents=True, exist_ok=True)
        self.file = (output / "detections.csv").open("w", newline="")
        self.rows = csv.writer(self.file)
        head = ("file", "frame", "time", "class", "score", "x1", "y1", "x2", "y2")
        self.rows.writerow(head)

    def add(self, picture: Picture, found: Detections) -> tuple[int, np.ndarray | None]:
        """Takes note of one image; its number, and it annotated if that is wanted."""
        number, size = len(self.images) + 1, picture.pixels.shape[:2]
        entry = dict(id=number, file_name=picture.path, height=size[0], width=size[1])
        if picture.frame is not None:
            entry |= dict(frame=picture.frame, time=picture.time)
        self.images.append(entry)
        kept = found.valid & np.isin(found.classes, list(self.keep))
        one = found._replace(valid=kept)
        ids = self.detector.category_ids
        rows = files.to_results(one, number, size, size, ids)
        self.results += [dict(row, file_name=picture.path) for row in rows]
        shown = kept & (found.scores >= SCORE.value)
        boxes, classes, scores = (
            np.asarray(x)[shown] for x in (found.boxes, found.classes, found.scores)
        )
        for box, c, score in zip(boxes, classes, scores, strict=True):
            when = "" if picture.time is None else f"{picture.time:.3f}"
            place = [picture.path, "" if picture.frame is None else picture.frame, when]
            box = [f"{v:.2f}" for v in box]
            name = self.detector.classes[c - 1]
            self.rows.writerow([*place, name, f"{score:.4f}", *box])
        if not PICTURES.value:
            return number, None
        return number, draw.draw(
            picture.pixels,
            *(boxes, classes, scores),
            names=self.detector.classes,
            min_side=0 if picture.frame is not None else MIN_SIDE,
        )

    def close(self) -> None:
        """Leaves the JSON files."""
        self.file.close()
        ids, names = self.detector.category_ids, self.detector.classes
        categories = [dict(id=i, name=name) for i, name in zip(ids, names, strict=True)]
        files.write_annotations(
            self.output / "images.json",
            dict(images=self.images, categories=categories, annotations=[]),
        )
        files.write_detections(self.output / "detections.json", self.results)


def predict_images(detector: Detector, paths: list[str], writer: Writer) -> list[str]:
    """Detects in image files; gives back those that could not be read."""
    unread: list[str] = []
    tell = Countdown(len(paths), "images")

    def read(path: str) -> Picture | None:
        try:
            how = image_files.reading(**detector.config.data)
            return Picture(path, image_files.load_image(path, **how))
        except (ValueError, OSError) as error:
            log.error("%s", error)
            return None

    def save(number: int, path: str, drawn: np.ndarray) -> None:
        name = f"{number:05d}_{pathlib.Path(path).stem}.jpg"
        image_files.save_image(writer.output / "pictures" / name, drawn)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        saved = []
        for first in range(0, len(paths), BATCH.value):
            group = paths[first : first + BATCH.value]
            pictures = list(pool.map(read, group))
            pairs = zip(group, pictures, strict=True)
            unread += [path for path, picture in pairs if picture is None]
            read_ones = [p for p in pictures if p is not None]
            found = detector([p.pixels for p in read_ones])
            for i, picture in enumerate(read_ones):
                one = Detections(*(field[i] for field in found))
                number, drawn = writer.add(picture, one)
                if drawn is not None:
                    saved.append(pool.submit(save, number, picture.path, drawn))
            tell(len(group))
            while len(saved) > 64:  # what is drawn waits in memory
                saved.pop(0).result()
        for future in saved:
            future.result()
    return unread


def frames(capture: cv2.VideoCapture, path: str, rate: float) -> Iterator[Picture]:
    """The frames of a video."""
    number = 0
    while (read := capture.read())[0]:
        pixels = np.asarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), np.uint8)
        yield Picture(path, pixels, number, number / rate)
        number += 1


def predict_video(detector: Detector, path: str, writer: Writer) -> bool:
    """Detects in every frame; False if the video cannot be read to its end."""
    capture = cv2.VideoCapture(path)
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    tell = Countdown(total, f"frames of {path}")
    video, done = None, 0
    try:
        source = frames(capture, path, rate)
        while waiting := list(itertools.islice(source, BATCH.value)):
            found = detector([p.pixels for p in waiting])
            for i, picture in enumerate(waiting):
                one = Detections(*(field[i] for field in found))
                number, drawn = writer.add(picture, one)
                if drawn is None:
                    continue
                if video is None:
                    name = f"{number:05d}_{pathlib.Path(path).stem}.mp4"
                    video = open_video(writer.output / "videos" / name, rate, drawn)
                video.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
            done += len(waiting)
            tell(len(waiting))
    finally:
        capture.release()
        if video is not None:
            video.release()
    if not done:
        log.error("%s: no frame can be read: is it a video OpenCV knows?", path)
    elif done < total:
        log.error("%s: ends after %d of %d frames", path, done, total)
    return bool(done) and done >= total


def open_video(path: pathlib.Path, rate: float, frame: np.ndarray) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    video = cv2.VideoWriter(str(path), codec, rate, frame.shape[1::-1])
    if not video.isOpened():
        raise OSError(f"cannot write the video {path}")
    return video


def chosen_classes(classes: tuple[str, ...]) -> set[int]:
    """Numbers of the classes that `--classes` names."""
    if unknown := sorted(set(CLASSES.value) - set(classes)):
        raise app.UsageError(
            f"--classes={','.join(unknown)}: the checkpoint knows {', '.join(classes)}"
        )
    wanted = CLASSES.value or classes
    return {classes.index(name) + 1 for name in wanted}


def main(_):
    log_to_stderr()
    devices.keep_compiled()
    paths, unread = find_files(IMAGES.value, OUTPUT.value)
    if not paths:
        raise app.UsageError(f"--images={IMAGES.value} matches no file")
    detector = load(CHECKPOINT.value, batch_size=BATCH.value)
    output = pathlib.Path(OUTPUT.value)
    writer = Writer(output, detector, chosen_classes(detector.classes))
    try:
        pictures = [p for p in paths if not is_video(p)]
        unread += predict_images(detector, pictures, writer)
        for path in filter(is_video, paths):
            if not predict_video(detector, path, writer):
                unread.append(path)
    finally:
        writer.close()
    counts = dict(images=len(writer.images), detections=len(writer.results))
    print("{images} images, {detections} detections".format(**counts), "->", output)
    print(json.dumps(dict(counts, unread=unread)))
    sys.exit(1 if unread else 0)


if __name__ == "__main__":
    cli.run(main)
