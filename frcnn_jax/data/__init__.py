"""Data: from annotation files and pictures to padded batches of static shape.

| module | what it does |
| --- | --- |
| `source` | what a data set is (`Source` of `Example`s); what happens to bad boxes |
| `images` | one image: decode, resize, place on a canvas of static size |
| `voc`, `coco`, `shapes` | one data set format each: `load(*, split, ...) -> Source` |
| `pipeline` | shuffle, flip, pad, batch, shard and resume: `build(...) -> Data` |

A new format is one new file with one function `load`. NumPy, OpenCV and grain only.
"""
