"""What a recipe needs to know of a data set: sizes, boxes and counts, by one scan."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from frcnn_jax.data.source import Source

LOOK = 5000  # examples of a source that makes them on demand


class Facts(NamedTuple):
    """m images with n objects; ignored boxes (crowds, difficult) do not count."""

    images: int  # of the source, m or more
    sizes: Int[np.ndarray, "m 2"]  # (h, w) on disk
    boxes: Float[np.ndarray, "n 4"]  # pixels on disk
    image: Int[np.ndarray, "n"]  # each object's position in `sizes`
    classes: Int[np.ndarray, "n"]
    slots: int  # the most boxes of an image, the ignored ones as well
    num_classes: int

    @property
    def objects(self) -> int:
        """The number in all images; an estimate if not all images were looked at."""
        return round(len(self.boxes) * self.images / max(1, len(self.sizes)))


def facts_of(source: Source) -> Facts:
    """The facts of a validated source; images of unknown size are left out.

    All examples of a list are looked at. Any other sequence makes its examples on
    demand: of more than 5,000, every k-th is looked at, 5,000 in all.
    """
    n = len(source)
    listed = isinstance(source.examples, list | tuple)
    at = range(n) if listed or n <= LOOK else np.linspace(0, n - 1, LOOK).astype(int)
    kept = [e for e in (source[int(i)] for i in at) if e.size is not None]
    objects = [~e.ignore for e in kept]
    none, zero = np.zeros((0, 4), np.float32), np.zeros(0, int)
    counts = [int(keep.sum()) for keep in objects]
    pairs = list(zip(kept, objects, strict=True))
    return Facts(
        images=n,
        sizes=np.array([e.size for e in kept], int).reshape(-1, 2),
        boxes=np.concatenate([none, *(e.boxes[keep] for e, keep in pairs)]),
        image=np.repeat(np.arange(len(kept)), counts),
        classes=np.concatenate([zero, *(e.classes[keep] for e, keep in pairs)]),
        slots=max((len(e.boxes) for e in kept), default=0),
        num_classes=len(source.classes),
    )


def relative_sides(facts: Facts) -> Float[np.ndarray, "n"]:
    """The objects' sides, square roots of areas, over their images' short sides."""
    sides = np.sqrt((facts.boxes[:, 2:] - facts.boxes[:, :2]).prod(1))
    return sides / facts.sizes.min(1)[facts.image]
