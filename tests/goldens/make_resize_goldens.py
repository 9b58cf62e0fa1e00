"""Writes resize.npz: images as Pillow resizes them, in the peer's environment.

    .venv-peer/bin/python tests/goldens/make_resize_goldens.py

Both sides change by about the same ratio, as in Detectron2's transforms: then every
version of Pillow goes across first.
"""

import pathlib

import numpy as np
from PIL import Image

SIZES = (  # (h, w) of an image, (h, w) wanted
    *(((48, 64), (30, 40)), ((48, 64), (90, 120)), ((60, 47), (37, 29))),
    *(((7, 9), (1, 1)), ((64, 64), (64, 20)), ((50, 80), (13, 80))),
    *(((75, 100), (25, 33)), ((1, 1), (3, 4)), ((100, 80), (11, 9))),
)


def main():
    rng = np.random.default_rng(0)
    arrays = {}
    for i, (size, wanted) in enumerate(SIZES):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        if i == 0:
            image[:24] = 255  # an edge
        arrays[f"image{i}"] = image
        resized = Image.fromarray(image).resize(wanted[::-1], Image.BILINEAR)
        arrays[f"resized{i}"] = np.asarray(resized)
    path = pathlib.Path(__file__).with_name("resize.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
