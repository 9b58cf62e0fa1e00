"""NumPy's `.npz` archives of any origin: arrays only, and no larger than they say.

NumPy refuses pickled objects but trusts the header: for a file of a kilobyte that
claims a terabyte it allocates a terabyte. This module compares sizes before it reads an
array.
"""

import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Container

import numpy as np

# What zeros may grow to when they are unpacked, whatever the size of the file.
UNPACKED = 1 << 30
RATIO = 20


def read(
    path: str | os.PathLike, names: Container[str] | None = None
) -> dict[str, np.ndarray]:
    """`{name: array}` of an archive, of all arrays or of those in `names`.

    FileNotFoundError, or ValueError that says what is wrong: no archive, cut short,
    pickled objects, a header that claims more than there is, or more than `RATIO` times
    the file's size (and `UNPACKED` bytes) once unpacked.
    """
    path = pathlib.Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            check_size(path, sum(i.file_size for i in archive.infolist()))
            found = {}
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if names is None or name in names:
                    found[name] = _array(archive, info)
            return found
    except FileNotFoundError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError),
        *(RuntimeError, OverflowError, ValueError, SyntaxError, TypeError, MemoryError),
    ) as error:
        raise ValueError(f"{path} is not a readable .npz file: {error}") from error


def check_size(path: pathlib.Path, unpacked: int) -> None:
    """ValueError where a file or folder would unpack to far more than it holds."""
    files = path.rglob("*") if path.is_dir() else (path,)
    there = sum(file.stat().st_size for file in files)
    if unpacked > max(UNPACKED, RATIO * there):
        raise ValueError(
            f"{path} holds {there:,} bytes and would unpack to {unpacked:,}: refused"
        )


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        claimed, there = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds pickled objects, which are not read")
    if min(shape, default=0) < 0 or claimed != there:
        raise ValueError(
            f"{info.filename} claims {claimed:,} bytes {shape} and holds {there:,}"
        )
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
