"""Data: from annotation files and pictures to padded batches of static shape.

| module | what it does |
| --- | --- |
| `source` | what a data set is (`Source` of `Example`s); what happens to bad boxes |
| `conventions` | what four numbers mean in which format, and back |
| `images` | one image: decode, resize, choose and fill a canvas of static size |
| `sources.voc`, `coco`, `yolo`, `csv`, `dicts`, `tfds`, `shapes` | one format each: `load(*, split, ...) -> Source` |
| `sources.mix` | several of them as one, with a shared list of classes |
| `sources.records` | any of them written as a TFDS data set of sequential files |
| `sampling` | which examples make batch k |
| `augment` | random scale, crop and colours; boxes follow |
| `proposal_files`, `selective_search` | proposals from elsewhere |
| `example` | one example, from a file to a row of a batch |
| `batches` | batches by number, made by threads and processes; the stream that resumes |
| `pipeline` | all of that to batches, shared among processes: `build(...) -> Data` |
| `check` | what is in a set and what is wrong with it |
| `anchor_fit` | how well anchors suit its boxes, and better ones |

A new format is one new file of `sources` with one function `load`. NumPy, OpenCV, grain and TFDS
only; docs/data.md says how to use them.
"""  # noqa: E501

import os

from frcnn_jax.extras import need

need("train", "cv2", "grain", "absl", "yaml")
# An image that claims more pixels is not decoded (OpenCV reads this as it is loaded):
# 268 million, 0.8 GB, a quarter of OpenCV's own limit.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))
