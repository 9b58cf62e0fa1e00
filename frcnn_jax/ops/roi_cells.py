"""What RoIAlign and RoIPool share: the cells that a RoI is divided into."""

import jax

Size = int | tuple[int, int]  # cells: of a side, or (rows, columns)


def pair(size: Size) -> tuple[int, int]:
    """(rows, columns)."""
    return (size, size) if isinstance(size, int) else size


def loops_are_cheap() -> bool:
    """Whether to go RoI by RoI within the cache, or to do all of them in one step."""
    return jax.default_backend() == "cpu"
