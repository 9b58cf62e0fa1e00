"""Detections for people and other tools: what was found in each image, without padding.

    from frcnn_jax.records import records
    for record in records(detector(images), images, detector, score=0.5):
        print(record.name, record.class_names, record.boxes)
        record.to_supervision()      # supervision's Detections: tracks, zones, pictures
        record.to_coco(image_id=1)   # entries of a COCO results file
        record.plot(image)           # the picture with its boxes

`detector(images)` stays padded, so that a compiled program can hold it.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from frcnn_jax.types import Detections


class Record(NamedTuple):
    """What was found in one image, by falling score.

    boxes         [n, 4], (x1, y1, x2, y2) in pixels of the image
    scores        [n]
    classes       [n], 1..C
    category_ids  [n], the classes' ids in result files
    class_names   n names
    size          (h, w) of the image
    name          its file, "" for an array
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]
    category_ids: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    size: tuple[int, int]
    name: str

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """The entries of a COCO results file; `bbox` is (x, y, w, h) in pixels."""
        corners = self.boxes.astype(np.float64)
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        rows = zip(self.category_ids.tolist(), sides.tolist(), self.scores, strict=True)
        return [
            dict(image_id=image_id, category_id=c, bbox=box, score=float(score))
            for c, box, score in rows
        ]

    def to_supervision(self) -> Any:
        """`supervision.Detections`; `class_id` counts from 0, names are in `data`.

        Needs the package supervision.
        """
        import supervision  # pyright: ignore[reportMissingImports]

        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.classes.astype(np.int64) - 1,
            data={
                "class_name": np.array(self.class_names, dtype=object),
                "category_id": self.category_ids,
            },
        )

    def plot(
        self, image: UInt8[np.ndarray, "h w 3"] | None = None, *, min_side: int = 320
    ) -> UInt8[np.ndarray, "i j 3"]:
        """The RGB image, or that of the record's file, with its boxes.

        An image whose short side has less than `min_side` pixels is enlarged. Raises
        ValueError for an image of another size than the record's.
        """
        from frcnn_jax.data.images import load_image
        from frcnn_jax.evaluation.draw import draw

        if image is None:
            image = load_image(self.name)
        if image.shape[:2] != self.size:
            raise ValueError(
                f"image is {image.shape[:2]}, the record's is {self.size}: give the "
                "image that was given to the detector"
            )
        names = dict(zip(self.classes.tolist(), self.class_names, strict=True))
        shown = [names.get(i, "") for i in range(1, max(names, default=0) + 1)]
        return draw(
            image,
            *(self.boxes, self.classes, self.scores),
            names=shown,
            min_side=min_side,
        )


def records(
    detections: Detections,
    images: Sequence[Any],
    about: Any,
    *,
    score: float = 0.0,
) -> list[Record]:
    """What a detector found in `images`, at least `score` sure, an entry each.

    `images` are those that were given to it, RGB arrays or file names; `about` is the
    detector, whose `classes` and `category_ids` are taken. Padded slots are left out.
    Raises ValueError where the numbers of images differ.
    """
    if len(images) != len(detections.valid):
        raise ValueError(
            f"{len(images)} images, but detections of {len(detections.valid)}: give "
            "the images that were given to the detector"
        )
    found = []
    for i, image in enumerate(images):
        boxes, scores, classes, valid = (np.asarray(x[i]) for x in detections)
        kept = valid & (scores >= score)
        classes = classes[kept].astype(np.int32)
        found.append(
            Record(
                boxes=boxes[kept],
                scores=scores[kept],
                classes=classes,
                category_ids=np.array(
                    [about.category_ids[c - 1] for c in classes], int
                ),
                class_names=tuple(about.classes[c - 1] for c in classes),
                size=_size(image),
                name=str(image) if isinstance(image, str | pathlib.Path) else "",
            )
        )
    return found


def _size(image: Any) -> tuple[int, int]:
    if isinstance(image, str | pathlib.Path):
        from frcnn_jax.data.images import image_size

        return image_size(str(image))
    h, w = np.shape(image)[:2]
    return int(h), int(w)
