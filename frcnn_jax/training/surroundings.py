"""What a run needs of its machine: its folder for itself, room on the disk, its data.

What fails there is one line that says what to do, and `troubles.Later`: the same
command goes on from the last checkpoint.
"""

import contextlib
import errno
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from frcnn_jax.training import devices, lock, troubles

log = logging.getLogger(__name__)
KEPT = 3  # checkpoints: the last two and the best; one more is being written
FULL = ("No space left on device", "Disk quota exceeded")


@contextlib.contextmanager
def watched(workdir: pathlib.Path, data: Mapping[str, Any]) -> Iterator[None]:
    """Holds the run's lock; says in a line what is wrong with the disk or the data."""
    held = lock.held(workdir, "trained") if devices.is_first() else None
    with held or contextlib.nullcontext():
        try:
            yield
        except Exception as error:
            if (said := say(error, workdir, data)) is None:
                raise
            raise troubles.Later(said) from error


def say(
    error: BaseException, workdir: pathlib.Path, data: Mapping[str, Any]
) -> str | None:
    """What is wrong with the folder, the disk or the data's folder; None if nothing."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    if any(isinstance(e, troubles.Later) for e in chain[:1]):
        return None
    goes_on = f"{last_checkpoint(workdir)}; the same command goes on from there"
    if not workdir.is_dir():
        return f"the run's folder {workdir} is gone (unmounted?)"
    full = {errno.ENOSPC, errno.EDQUOT}
    if any(
        getattr(e, "errno", None) in full or any(text in str(e) for text in FULL)
        for e in chain
    ):
        return f"{troubles.room(workdir)}, it is full: make room; {goes_on}"
    for root in roots(data):
        if not pathlib.Path(root).exists():
            return f"the data folder {root} is gone (unmounted?): {goes_on}"
    return None


def roots(data: Mapping[str, Any]) -> list[str]:
    """The folders that a group `data` names."""
    found = [str(data["root"])] if data.get("root") else []
    for part in (data.get("datasets") or {}).values():
        found += roots(part)
    return found


def last_checkpoint(workdir: pathlib.Path) -> str:
    """The last good checkpoint, in words."""
    steps = [p for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdigit()]
    steps = [p for p in steps if (p / "meta").is_dir()]
    if not steps:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {max(steps, key=lambda p: int(p.name))}"


def bytes_of(state: PyTree) -> int:
    """The bytes of a checkpoint's arrays, before compression."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def warn_of_room(workdir: pathlib.Path, state: PyTree) -> None:
    """A warning where the checkpoints to be kept do not fit on the disk."""
    if not devices.is_first():
        return
    one, free = bytes_of(state), shutil.disk_usage(workdir).free
    there = len(list((workdir / "checkpoints").glob("[0-9]*")))
    need = one * max(KEPT + 1 - there, 1)
    if free < need:
        log.warning(
            "%s, but the checkpoints to be kept need up to %s (%d, and one being "
            "written, of %s each): make room, or the run will stop at a full disk",
            *(troubles.room(workdir), troubles.size(need), KEPT, troubles.size(one)),
        )


def check_room(workdir: pathlib.Path, state: PyTree) -> None:
    """Later where the next checkpoint will not fit, before a part of it is written.

    Zstandard takes off about a tenth of float32 weights, so much is left out here.
    """
    if not devices.is_first():
        return
    need, free = 0.9 * bytes_of(state), shutil.disk_usage(workdir).free
    if free < need:
        raise troubles.Later(
            f"{troubles.room(workdir)}, a checkpoint needs {troubles.size(need)}: make "
            f"room; {last_checkpoint(workdir)}; the same command goes on from there"
        )


def close_all(*closes: Callable[[], Any]) -> None:
    """Calls each, whatever the others do; the first error is raised at the end."""
    errors = []
    for close in closes:
        try:
            close()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
