"""What goes wrong around a program: one line for people, an exit code for programs.

| code | meaning | the same command again |
| --- | --- | --- |
| 0 | done | |
| 1 | done in part (files were left out, trials failed), a loss that is not finite, or an error that nobody foresaw | look first |
| 2 | a flag, the configuration, a checkpoint or the data are wrong | fails again: change it |
| 75 | the surroundings failed: full disk, folder gone, another process at work there | may work: try later |
| 130 | Ctrl-C | goes on |
| 143 | SIGTERM; a training run has saved itself | goes on |

So a loop goes on after 75 and 143 alone (and 137, which is a killed process):

    until python scripts/train.py ...; do
        case $? in 75|137|143) sleep 60;; *) break;; esac
    done
"""  # noqa: E501

import errno
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any

DONE, PARTLY, WRONG, LATER = 0, 1, 2, 75
PACKAGE = pathlib.Path(__file__).parents[1]
# What a file system says when it is full or has gone away: it may come back.
PASSING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOTCONN),
    *(errno.ENODEV, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENXIO),
}
# What else to do about a path that cannot be used.
CURES = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "choose a folder that this user may write",
    ),
    errno.ENOTDIR: "a part of this path is a file: choose another path",
    errno.EEXIST: "it is a file, but a folder is needed: choose another path",
    errno.EISDIR: "it is a folder: name a file in it",
}
MEMORY = re.compile(r"out of memory|RESOURCE_EXHAUSTED|bad_alloc", re.IGNORECASE)


class Later(OSError):
    """The surroundings failed: the same command may work later."""


class Partly(Exception):
    """All was done but for something that has been named already."""


def explain(
    error: BaseException, *, ours: tuple[Any, ...] = ()
) -> tuple[str, int] | None:
    """`(line, code)` of an error that the program foresaw, else None.

    Foreseen is what this package raises itself, or code in the folders `ours`, as
    ValueError, TypeError, KeyError, ImportError or FloatingPointError, and every
    OSError.
    """
    line = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    notes = getattr(error, "__notes__", ())
    notes = [note for note in notes if "Grain has removed" not in note]
    line = "; ".join([line, *notes])
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C", 130
    if isinstance(error, Later):
        return line, LATER
    if is_memory(error):
        return out_of_memory(error), WRONG
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename and error.strerror else ""
        line = f"{name}{error.strerror}" if error.strerror else line
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename:
            line += f" ({room(error.filename)})"
        if error.errno in CURES:
            line += f": {CURES[error.errno]}"
        return line, LATER if error.errno in PASSING else WRONG
    foreseen = ValueError, TypeError, KeyError, ImportError, AttributeError
    if isinstance(error, FloatingPointError):
        return line, PARTLY
    if isinstance(error, foreseen) and _raised_in(error, (PACKAGE, *ours)):
        return line, WRONG
    return None


def _raised_in(error: BaseException, folders: tuple[Any, ...]) -> bool:
    """Whether the last line that ran lies in one of these folders."""
    trace, last = error.__traceback__, ""
    while trace is not None:
        last, trace = trace.tb_frame.f_code.co_filename, trace.tb_next
    if not last:
        return False
    parents = pathlib.Path(last).absolute().parents
    return any(pathlib.Path(folder).absolute() in parents for folder in folders)


def prepare_folder(path: Any) -> pathlib.Path:
    """The folder, made where it is missing; OSError unless a file can be written there.

    To be called before the work whose results go there.
    """
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
    return folder


def check_folder(path: Any) -> pathlib.Path:
    """The folder, not made; OSError unless it can be made and written to.

    For work that may end before it has a result.
    """
    folder = pathlib.Path(path)
    whole = folder.absolute()
    there = next(p for p in (whole, *whole.parents) if p.exists())
    if not there.is_dir():
        code = errno.EEXIST if there == whole else errno.ENOTDIR
        raise OSError(code, os.strerror(code), str(folder))
    prepare_folder(there)
    return folder


def prepare_file(path: Any) -> pathlib.Path:
    """The path of a file to be written, its folder as in `prepare_folder`."""
    file = pathlib.Path(path)
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    prepare_folder(file.parent)
    return file


def is_of_the_disk(error: BaseException) -> bool:
    """Whether the file system failed, and not one file: the next would fail as well."""
    stops = PASSING | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
    return isinstance(error, OSError) and error.errno in stops


def is_memory(error: BaseException) -> bool:
    """Whether a device (or this machine) did not have the memory asked for."""
    if isinstance(error, MemoryError):
        return True
    return type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError") and bool(
        MEMORY.search(str(error))
    )


def out_of_memory(error: BaseException) -> str:
    """One line: what was asked for, and what to lower."""
    said = re.sub(r"\s+", " ", str(error)).strip()[:200] or "MemoryError"
    return (
        f"not enough memory ({said}): in training lower batch_size or set accumulate=2,"
        " lower data.canvas with short_side and max_side, roi_targets.num_samples or "
        "proposals.train.pre_nms, or set model.dtype='bfloat16' or "
        "model.backbone.remat=True; in evaluation and prediction lower eval_batch_size "
        "or --batch_size"
    )


def room(path: Any) -> str:
    """The file system of a path and what is free there, for messages."""
    where = existing(path)
    try:
        free = shutil.disk_usage(where).free
    except OSError:
        return f"file system of {where}"
    return f"file system {mount_of(where)}: {size(free)} free"


def existing(path: Any) -> pathlib.Path:
    """The path, or the nearest folder above it that is there."""
    where = pathlib.Path(path).absolute()
    while not where.exists() and where != where.parent:
        where = where.parent
    return where


def mount_of(path: Any) -> pathlib.Path:
    """The folder at which the file system of a path is mounted."""
    where = existing(path).resolve()
    while not where.is_mount() and where != where.parent:
        where = where.parent
    return where


def size(count: float | int) -> str:
    """Bytes for people.

    >>> size(0), size(2_500_000), size(3.2e10)
    ('0 bytes', '2.5 MB', '32.0 GB')
    """
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count:.0f} bytes"
