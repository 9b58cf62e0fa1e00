"""What RoIAlign and RoIPool share: the cells that a RoI is divided into."""

from typing import Any

from frcnn_jax.types import Array

Size = int | tuple[int, int]  # cells: of a side, or (rows, columns)
Extent = tuple[Any, Any] | Array  # (height, width) in cells of a map


def pair(size: Size) -> tuple[int, int]:
    """(rows, columns)."""
    return (size, size) if isinstance(size, int) else size
