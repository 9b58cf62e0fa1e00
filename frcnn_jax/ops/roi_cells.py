"""What RoIAlign and RoIPool share: the cells that a RoI is divided into."""

import operator
from typing import Any

import jax.numpy as jnp

from frcnn_jax.types import Array

Size = int | tuple[int, int]  # cells: of a side, or (rows, columns)
Extent = tuple[Any, Any] | Array  # (height, width) in cells of a map


def pair(size: Size) -> tuple[int, int]:
    """(rows, columns)."""
    rows, columns = size if isinstance(size, (tuple, list)) else (size, size)
    return operator.index(rows), operator.index(columns)


def within(extent: Extent | None, h: int, w: int) -> tuple[Any, Any]:
    """(height, width) of the extent, at most those of the map; None is the map."""
    if extent is None:
        return h, w
    height, width = extent
    return jnp.minimum(height, h), jnp.minimum(width, w)
