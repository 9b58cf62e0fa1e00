"""One process at a time in a folder: a lock that dies with the process that holds it.

The lock is `flock` on a file of the folder. The kernel gives it back when the process
ends, however it ends: no stale lock is ever left behind. On NFS Linux turns it into a
lock of the server (NFS 4, or version 3 with lockd), so two hosts exclude each other;
where a host is lost, the server gives its locks back after the lease, about 90 seconds.
On mounts without locks across hosts (`nolock`, `localflock`, Lustre without `flock`) it
holds on one host only; where the file system knows no locks at all, a warning says so
and the program goes on.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import platform
from collections.abc import Iterator

from frcnn_jax.training.troubles import Later

log = logging.getLogger(__name__)
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class Held(Later):
    """Another process is at work in the folder."""


@contextlib.contextmanager
def held(
    folder: str | pathlib.Path,
    doing: str,
    *,
    name: str = ".run_lock",
    cure: str = "wait for its end, or use another --workdir",
) -> Iterator[None]:
    """Holds the lock of `folder` (which is made); `doing` says at what, "trained".

    Raises Held that names the process, its host and since when.
    """
    folder = pathlib.Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                log.warning(
                    "%s: this file system has no locks (%s): nothing keeps a second "
                    "process out",
                    *(folder, error.strerror),
                )
                yield
                return
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise Held(f"{folder} {holder(path)}: {cure}") from None
        file.truncate(0)
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        who = dict(doing=doing, process=os.getpid(), host=platform.node(), since=now)
        file.write(json.dumps(who) + "\n")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)  # the file stays: removing it would let two in


def holder(path: str | pathlib.Path) -> str:
    """Who holds the lock file, in words."""
    try:
        who = json.loads(pathlib.Path(path).read_text())
        return (
            f"is being {who['doing']} by process {who['process']} on {who['host']} "
            f"since {who['since']}"
        )
    except (OSError, ValueError, KeyError, TypeError):  # it is just being written
        return "is in use by another process"
