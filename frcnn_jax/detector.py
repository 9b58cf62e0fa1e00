"""Detection with a trained model, in three lines.

from frcnn_jax.detector import load
detector = load("runs/demo")       # or "detectron2/faster_rcnn_R_50_FPN_3x"
detections = detector(images)      # RGB arrays or file names, of any size
"""

import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from frcnn_jax.data import images as image_files
from frcnn_jax.training import checkpoint, trained, views
from frcnn_jax.training import config as configs
from frcnn_jax.training.compiling import Announced
from frcnn_jax.training.step import predict_step
from frcnn_jax.types import Batch, Detections


class Detector:
    """A trained model with its classes; call it with images.

    Attributes: `classes` (names of classes 1..C), `category_ids` (their ids in result
    files), `config`, `model` (a Flax module) and `variables` (its arrays).
    """

    def __init__(
        self, model: Any, variables: Any, meta: checkpoint.Meta, *, batch_size: int = 1
    ):
        self.model, self.variables = model, jax.device_put(variables)
        self.config, self.batch_size = meta.config, batch_size
        self.classes, self.category_ids = meta.classes, meta.category_ids
        predict = partial(predict_step, model=model, config=meta.config.to_dict())
        self._predict = Announced(jax.jit(predict), "the detector")
        mirrored = jax.jit(views.mirrored(predict))
        self._mirrored = Announced(mirrored, "the detector of mirrored images")

    def __call__(self, images: Sequence[Any] | np.ndarray) -> Detections:
        """Detections `[b, max_detections]` in pixels of the images as they were given.

        `images`: RGB uint8 arrays `[h, w, 3]` or file names, sizes may differ. They are
        resized and padded as in training and run `batch_size` at a time (one compiled
        shape). `config.views` adds tiles, mirrored and resized images. Returns numpy
        arrays by falling score, zero where not `valid`.
        """
        if isinstance(images, str | pathlib.Path):
            raise ValueError(f"images={str(images)!r}: expected a list, [{images!r}]")
        if not len(images):
            n = self.config.postprocess.max_detections
            zeros = partial(np.zeros, (0, n))
            return Detections(
                np.zeros((0, n, 4), np.float32),
                zeros(np.float32),
                zeros(np.int32),
                zeros(bool),
            )
        wanted = views.of(self.config.to_dict())
        if not wanted.several:
            return self._each(images, self.config.data, self._predict)
        return self._in_views([self._read(x) for x in images], wanted)

    def _read(self, image: Any) -> np.ndarray:
        """An image as an array, decoded as `config.data` says if it is a file name."""
        if isinstance(image, str | pathlib.Path):
            how = image_files.reading(**self.config.data)
            return image_files.load_image(str(image), **how)
        return check_image(image)

    def _in_views(self, arrays: list[np.ndarray], wanted: views.Views) -> Detections:
        """What is found in all views of each image, merged."""
        data, places, parts = self.config.data, [], []
        for i, array in enumerate(arrays):
            grid = views.windows(array.shape[:2], wanted)
            places += [(i, *window) for window in grid.tolist()]
        crops = [arrays[i][y1:y2, x1:x2] for i, x1, y1, x2, y2 in places]
        ways = [self._predict, self._mirrored][: 1 + wanted.flip]
        for size in views.sides(data.to_dict(), wanted):
            parts += [self._each(crops, {**data, **size}, way) for way in ways]
        place = np.array(places)
        corner = np.tile(place[:, 1:3], 2)[:, None].astype(np.float32)
        merged = []
        for i in range(len(arrays)):
            mine = place[:, 0] == i
            rows = [
                part._replace(boxes=part.boxes + corner * part.valid[..., None])
                for part in parts
            ]
            flat = (
                np.concatenate([x[mine].reshape(-1, *x.shape[2:]) for x in field])
                for field in zip(*rows, strict=True)
            )
            count = self.config.postprocess.max_detections
            merged.append(views.merge(Detections(*flat), views=wanted, count=count))
        return Detections(*map(np.stack, zip(*merged, strict=True)))

    def _each(
        self, images: Sequence[Any] | np.ndarray, data: Any, predict: Callable
    ) -> Detections:
        """Detections of each image alone, at the sides that `data` says."""
        order: list[int] = []
        found: list[Detections] = []
        waiting: dict[Any, list] = {}  # those of one canvas run together
        for i, x in enumerate(images):
            array = self._read(x)
            pixels, size = image_files.prepare(
                array,
                short_side=data["short_side"],
                max_side=data["max_side"],
                canvas=data["canvas"],
                reduced=image_files.reduced_of(**data),
            )
            group = waiting.setdefault(pixels.shape, [])
            group.append((i, pixels, size, array.shape[:2]))
            if len(group) == self.batch_size:
                order += [i for i, *_ in group]
                found.append(self._batch(waiting.pop(pixels.shape), predict))
        for group in waiting.values():
            order += [i for i, *_ in group]
            found.append(self._batch(group, predict))
        joined = Detections(*map(np.concatenate, zip(*found, strict=True)))
        return jax.tree.map(lambda x: x[np.argsort(order)], joined)

    def _batch(self, group: list, predict: Callable) -> Detections:
        """Detections of up to `batch_size` images of one canvas, in original pixels."""
        n, fill = len(group), [group[0]] * (self.batch_size - len(group))
        _, pixels, sizes, originals = zip(*group, *fill, strict=True)
        sizes = np.array(sizes, np.int32)
        batch = predict_batch(np.stack(pixels), sizes)
        found = jax.device_get(predict(self.variables, batch))
        scale = (np.array(originals) / sizes)[:, [1, 0, 1, 0]].astype(np.float32)
        found = found._replace(boxes=found.boxes * scale[:, None])
        return jax.tree.map(lambda x: x[:n], found)


def load(
    source: str | pathlib.Path,
    *,
    classes: Sequence[str] = (),
    batch_size: int = 1,
    changes: Sequence[str] = (),
) -> Detector:
    """The detector of a run, of a name, or of a file of torchvision, Detectron2, ....

    `source` is what `training.trained` lists: a run's folder (its best checkpoint), a
    name that `python -m frcnn_jax.weights` prints, a file, a URL, or
    `hf:OWNER/REPOSITORY/FILE`. `classes` are the names of a file's classes, where it is
    not COCO's and does not carry them. `changes` are values of its configuration, such
    as "views.tile=400" or "postprocess.name=soft_nms". Raises FileNotFoundError that
    says what was looked for or where to put what could not be downloaded.
    """
    found = trained.load(source, classes=classes)
    configs.change(found.meta.config, changes)
    return Detector(found.model, found.variables, found.meta, batch_size=batch_size)


def check_image(image: Any) -> np.ndarray:
    """`image` if it is RGB uint8 `[h, w, 3]`, else ValueError says what it is."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"image has dtype {image.dtype} and shape {image.shape}: expected uint8 "
            "RGB [h, w, 3]; for a batch pass a list of such arrays"
        )
    return image


def predict_batch(image: np.ndarray, image_size: np.ndarray) -> Batch:
    """A Batch for prediction: images and their sizes, no ground truth."""
    b = len(image)
    return Batch(
        image=image,
        image_size=image_size,
        original_size=image_size,
        gt_boxes=np.zeros((b, 0, 4), np.float32),
        gt_classes=np.zeros((b, 0), np.int32),
        gt_valid=np.zeros((b, 0), bool),
        gt_ignore=np.zeros((b, 0), bool),
        index=np.zeros((b,), np.int32),
        valid=np.ones((b,), bool),
    )
