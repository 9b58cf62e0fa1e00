r"""Boxes for your images and videos: annotated pictures, a COCO-format JSON, a CSV.

python scripts/predict.py --checkpoint=runs/demo --output=out photos a.jpg
python scripts/predict.py --checkpoint=torchvision/fasterrcnn_resnet50_fpn \
    --output=out photos
python scripts/predict.py --checkpoint=runs/demo --output=out photos clip.mp4 \
    --score=0.7 --classes=star,circle --batch_size=8

`--set` changes its configuration: `--set=views.tile=400` looks at tiles of 400 pixels
too, `--set=views.flip=True` at mirrored images, `--set=postprocess.name=soft_nms`.

The checkpoint is enough: it contains the configuration and the class names. So does a
name that `python -m frcnn_jax.weights` lists (a download), or a file of COCO classes.
Arguments without a flag, or `--images`, are files, globs and folders (with all images
and videos below them, whatever their names), each file taken once. Leaves in `--output`

    pictures/   an annotated picture an image      detections.json  COCO results
    videos/     an annotated video a video         images.json      their ids
                                                   detections.csv   one row a box

Boxes are in pixels of the original. Pictures and the CSV have what scores at least
`--score`, the JSON everything. Of a video each frame is an image, with its number and
time. What cannot be read, drawn or written is named, counted and left out; the exit
code is then 1. The last line on stdout is one JSON object.
"""

import concurrent.futures
import csv
import glob
import itertools
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from absl import app, flags

from frcnn_jax.data import images as image_files
from frcnn_jax.detector import Detector, load
from frcnn_jax.evaluation import draw, files
from frcnn_jax.training import cli, devices, troubles
from frcnn_jax.training.metrics import Countdown, log_to_stderr
from frcnn_jax.types import Detections

log = logging.getLogger("frcnn_jax.predict")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A run's folder, a checkpoint, or a detector's name or file.",
    required=True,
)
IMAGES = flags.DEFINE_multi_string(
    "images", [], "Files, folders or globs, as the arguments without a flag."
)
OUTPUT = flags.DEFINE_string(
    "output", None, "A folder for pictures, videos, JSON and CSV.", required=True
)
SCORE = flags.DEFINE_float("score", 0.5, "The least score in pictures and CSV.")
CLASSES = flags.DEFINE_list("classes", [], "Names of the classes to keep; default all.")
BATCH = flags.DEFINE_integer("batch_size", 1, "Images of one batch.", lower_bound=1)
SET = cli.define_changes()
PICTURES = flags.DEFINE_bool("pictures", True, "Whether to draw pictures and videos.")

# How the files begin that OpenCV decodes; each may have any name, or none.
BEGINNINGS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM", b"GIF8", b"II*\0", b"MM\0*"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"#?RADIANCE", b"#?RGBE"),
    *(b"P%d" % n + c for n in range(1, 7) for c in (b"\n", b" ", b"\r", b"\t")),
)
IMAGE_NAMES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
IMAGE_NAMES |= {".avif", ".jp2", ".ppm", ".pgm", ".hdr", ".dib"}
VIDEO_NAMES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
MIN_SIDE = 320  # a smaller picture is enlarged, so that its labels can be read


class Picture(NamedTuple):
    """An image or a frame of a video."""

    path: str
    pixels: np.ndarray
    frame: int | None = None
    time: float | None = None


def find_files(
    patterns: list[str], output: str
) -> tuple[list[str], list[str], list[str]]:
    """Files by name, glob or folder, each once and in order.

    And patterns without any, and files of folders that are no image or video. Not what
    an earlier call drew into `output`, unless it is named or its folder is.
    """
    drawn = {pathlib.Path(os.path.abspath(output), x) for x in ("pictures", "videos")}
    found: dict[str, str] = {}
    missing, others = [], []
    for pattern in patterns:  # a name that exists is meant as it is
        names = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        inside: list[str] = []
        for name in names:
            if os.path.isdir(name):
                below = sorted(p for p in pathlib.Path(name).rglob("*") if p.is_file())
                root = pathlib.Path(os.path.abspath(name))
                mine = drawn - {root, *root.parents}
                for p in map(str, below):
                    if not mine & {*pathlib.Path(os.path.abspath(p)).parents}:
                        taken = is_video(p) or is_image(p)
                        (inside if taken else others).append(p)
            else:
                inside.append(name)
        if not inside:
            log.error("%s matches no file", pattern)
            missing.append(pattern)
        for name in inside:
            found.setdefault(os.path.abspath(name), name)
    return list(found.values()), missing, others


def is_image(path: str) -> bool:
    """Whether the name or the first bytes are those of an image."""
    if pathlib.Path(path).suffix.lower() in IMAGE_NAMES:
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(32)
    except OSError:
        return False
    boxed = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return boxed or webp or head.startswith(BEGINNINGS)


def is_video(path: str) -> bool:
    return pathlib.Path(path).suffix.lower() in VIDEO_NAMES


class Writer:
    """Gathers what is found: COCO entries at the end, rows of the CSV as they come."""

    def __init__(self, output: pathlib.Path, detector: Detector, keep: set[int]):
        self.output, self.detector, self.keep = output, detector, keep
        self.images: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.undrawn: list[str] = []
        output.mkdir(parents=True, exist_ok=True)
        self.file = (output / "detections.csv").open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        )
        self.shown = 0  # detections in pictures and the CSV
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
        self.shown += len(boxes)
        for box, c, score in zip(boxes, classes, scores, strict=True):
            when = "" if picture.time is None else f"{picture.time:.3f}"
            place = [picture.path, "" if picture.frame is None else picture.frame, when]
            box = [f"{v:.2f}" for v in box]
            name = self.detector.classes[c - 1]
            self.rows.writerow([*place, name, f"{score:.4f}", *box])
        if not PICTURES.value:
            return number, None
        try:
            return number, draw.draw(
                picture.pixels,
                *(boxes, classes, scores),
                names=self.detector.classes,
                min_side=0 if picture.frame is not None else MIN_SIDE,
            )
        except draw.FAILURES as error:
            self.undrawn.append(picture.path)
            log.error("no picture of %s: %s", picture.path, error)
            return number, None

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
        except draw.FAILURES as error:
            log.error("%s", error)
            return None

    def save(number: int, path: str, drawn: np.ndarray) -> None:
        try:
            place = writer.output / "pictures" / file_name(number, path, ".jpg")
            image_files.save_image(place, drawn)
        except draw.FAILURES as error:
            if troubles.is_of_the_disk(error):
                raise
            writer.undrawn.append(path)
            log.error("no picture of %s: %s", path, error)

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


def file_name(number: int, path: str, suffix: str) -> str:
    """The name of what is drawn of a file; its own name need not be UTF-8."""
    stem = os.fsencode(pathlib.Path(path).stem).decode("utf-8", "replace")
    return f"{number:05d}_{stem[:60]}{suffix}"


def predict_video(detector: Detector, path: str, writer: Writer) -> bool:
    """Detects in every frame; False if the video cannot be read to its end."""
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder) / f"video{pathlib.Path(path).suffix}"
        link.symlink_to(os.path.abspath(path))  # OpenCV takes UTF-8 names only
        try:
            return predict_frames(detector, path, str(link), writer)
        except draw.FAILURES as error:
            if troubles.is_of_the_disk(error) or troubles.is_memory(error):
                raise
            log.error("%s: %s", path, error)
            return False


def predict_frames(detector: Detector, path: str, link: str, writer: Writer) -> bool:
    """`predict_video` of the file that `link` leads to."""
    capture = cv2.VideoCapture(link)
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    log.info("%s: %s frames", path, total if total > 0 else "an unknown number of")
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
                    name = file_name(number, path, ".mp4")
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


def main(argv):
    log_to_stderr()
    devices.keep_compiled()
    wanted = [*IMAGES.value, *argv[1:]]
    if not wanted:
        raise app.UsageError("name images, videos or folders to predict on")
    paths, unread, others = find_files(wanted, OUTPUT.value)
    if not paths:
        raise app.UsageError(f"{wanted} matches no file that is an image or a video")
    output = troubles.prepare_folder(OUTPUT.value)
    detector = load(CHECKPOINT.value, batch_size=BATCH.value, changes=SET.value)
    writer = Writer(output, detector, chosen_classes(detector.classes))
    try:
        pictures = [p for p in paths if not is_video(p)]
        unread += predict_images(detector, pictures, writer)
        for path in filter(is_video, paths):
            if not predict_video(detector, path, writer):
                unread.append(path)
    finally:
        writer.close()
    report(writer, unread, others)


def report(writer: Writer, unread: list[str], others: list[str]) -> None:
    """Says what was drawn and what was left out; the latter is exit code 1."""
    counts = dict(images=len(writer.images), detections=len(writer.results))
    print(
        f"{plural(counts['images'], 'image')}, {plural(writer.shown, 'detection')} of "
        f"{SCORE.value:g} and more -> {writer.output}"
        + (f"; {plural(len(unread), 'file')} not read" if unread else "")
        + (f"; {len(writer.undrawn)} not drawn" if writer.undrawn else "")
        + (f"; {plural(len(others), 'file')} no image or video" if others else "")
    )
    about = dict(shown=writer.shown, undrawn=writer.undrawn, skipped=len(others))
    print(json.dumps(dict(counts, unread=unread, **about)))
    if counts["images"] and not writer.results:
        log.warning("nothing was detected in any image")
    if left := unread + writer.undrawn:
        raise troubles.Partly(f"left out: {', '.join(left[:5])}")


def plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


if __name__ == "__main__":
    cli.run(main, takes="images")
