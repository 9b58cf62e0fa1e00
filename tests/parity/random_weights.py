"""Weights and images of a seed, the same in every environment: NumPy and nothing else.

Used by the comparisons with torchvision on both sides, and by the tests that repeat
them without torch.
"""

import re
import zlib
from collections.abc import Mapping

import numpy as np


def random_weights(
    shapes: Mapping[str, tuple[int, ...]], seed: int
) -> dict[str, np.ndarray]:
    """A state dict of a seed, each array by its own name: He convolutions, mild norms.

    The last norm of a residual branch is small, so that the maps keep their size.
    """
    weights = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if name.endswith("running_var"):
            array = rng.uniform(0.5, 1.5, shape)
        elif name in ("pos_embed", "cls_token"):  # as large as the cells
            array = rng.normal(0, 0.5, shape)
        elif len(shape) > 1:
            fan_in = np.prod(shape[1:])
            array = rng.standard_normal(shape, np.float32) * np.sqrt(2 / fan_in)
        elif name.endswith("weight"):
            small = 0.3 if re.search(r"bn3|block\.[23]\.1", name) else 1.0
            array = small * rng.uniform(0.5, 1.5, shape)
        else:
            array = rng.normal(0, 0.1, shape)
        weights[name] = np.asarray(array, np.float32)
    return weights


def random_image(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Normalised noise of many scales `[1, h, w, 3]`, zero in the padding (to 32)."""
    h, w = (-(-s // 32) * 32 for s in size)
    image = noise(np.random.default_rng([seed, *size]), h, w)
    image[size[0] :], image[:, size[1] :] = 0, 0
    return image[None].astype(np.float32)


def noise(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A picture `[h, w, 3]` with blobs of three sizes."""
    image = np.zeros((h, w, 3))
    for cell in (4, 16, 64):
        blobs = rng.normal(size=(-(-h // cell), -(-w // cell), 3))
        image += np.kron(blobs, np.ones((cell, cell, 1)))[:h, :w]
    return image


def on_canvas(image: np.ndarray, seed: int, wider: float) -> np.ndarray:
    """An image `[1, h, w, 3]` at the top left of a canvas of noise, `wider` as large.

    The canvas is a multiple of 32 pixels.
    """
    h, w = (32 * round(side * wider / 32) for side in image.shape[1:3])
    placed = np.random.default_rng(seed).normal(0, 9, (1, h, w, 3))
    placed[:, : image.shape[1], : image.shape[2]] = image
    return placed.astype(np.float32)
