"""Records: any source written as a TFDS data set of sequential files (array_record).

    folder = records.write({"train": source, "val": other}, "prepared")

`data.name=tfds data.root=prepared` reads the result, and TFDS itself does. Image files
are copied as they are, in their order. Boxes are normalised yxyx, as in all of TFDS.
Writing and reading need no TensorFlow.
"""

import io
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from frcnn_jax.data.conventions import from_xyxy
from frcnn_jax.data.folders import few
from frcnn_jax.data.images import image_size
from frcnn_jax.data.source import Example, Source, image_ids


class Records(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of a few sources, one a split, that share their classes."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, sources: Mapping[str, Source], **kwargs: Any):
        self.sources = dict(sources)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        first = next(iter(self.sources.values()))
        objects = dict(
            bbox=tfds.features.BBoxFeature(),
            label=tfds.features.ClassLabel(names=first.classes),
            is_crowd=np.bool_,
            area=np.float32,  # NaN if the source has none
        )
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "image/filename": tfds.features.Text(),
                    "image/id": np.int64,
                    "image/height": np.int64,
                    "image/width": np.int64,
                    "objects": tfds.features.Sequence(objects),
                }
            ),
            metadata=tfds.core.MetadataDict(category_ids=list(first.category_ids)),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(s) for name, s in self.sources.items()}

    def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict]]:
        for i, image_id in enumerate(image_ids(source)):
            yield i, _record(source[i], image_id, source.classes)


def write(
    sources: Mapping[str, Source], root: str | os.PathLike, *, name: str = "records"
) -> pathlib.Path:
    """Writes sources as the splits of a new data set below `root`; returns its folder.

    FileExistsError if the data set is there already, ValueError if classes differ.
    """
    if len({(s.classes, s.category_ids) for s in sources.values()}) != 1:
        shown = {split: source.classes for split, source in sources.items()}
        raise ValueError(
            f"the splits {few(sources)} have no or different classes, "
            f"{str(shown)[:200]}: give all of them the same classes and category_ids"
        )
    if found := sorted(pathlib.Path(root).glob(f"{name}/**/dataset_info.json")):
        raise FileExistsError(f"{found[0].parent} is there already: remove it first")
    with registered.skip_registration():
        kind = type("Named", (Records,), dict(name=name, __module__=__name__))
    builder = kind(sources=sources, data_dir=str(root), file_format="array_record")
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return pathlib.Path(builder.data_dir)


def _record(example: Example, image_id: int, classes: tuple[str, ...]) -> dict:
    image = example.image
    name = pathlib.Path(image).name if isinstance(image, str) else f"{image_id}.png"
    if isinstance(image, np.ndarray):
        h, w = image.shape[:2]
        image = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
        image = image.tobytes()
    else:
        h, w = example.size or image_size(image)
        image = pathlib.Path(image).read_bytes() if isinstance(image, str) else image
    name = os.fsencode(name).decode("utf-8", "backslashreplace")  # the text is UTF-8
    boxes = from_xyxy(example.boxes.astype(np.float64), "yxyx_normalized", (h, w))
    areas = np.full(len(boxes), np.nan) if example.area is None else example.area
    rows = zip(boxes.tolist(), example.classes, example.ignore, areas, strict=True)
    return {
        "image": io.BytesIO(image),
        "image/filename": name,
        "image/id": image_id,
        "image/height": h,
        "image/width": w,
        "objects": [
            dict(
                bbox=tfds.features.BBox(*(min(v, 1.0) for v in box)),
                label=classes[c - 1],
                is_crowd=bool(crowd),
                area=float(area),
            )
            for box, c, crowd, area in rows
        ],
    }
