"""What is slow to make is made once for all of pytest's workers."""

import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest


def folder(
    factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """A copy of the folder `name`, which `make(folder)` fills for the first who asks.

    The others wait for it. A module asks once and may write into its copy.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers of this session
    whole = root / f"once_{name}"
    with (root / f"once_{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            part = factory.mktemp(name)
            make(part)
            part.rename(whole)
    return pathlib.Path(shutil.copytree(whole, factory.mktemp(name) / "copy"))
