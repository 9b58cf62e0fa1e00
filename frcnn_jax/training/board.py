"""TensorBoard files, written by the calling thread.

tensorboardX's own `SummaryWriter` writes in a thread: a full disk ends that thread with
a traceback, and its file stays open.
"""

import pathlib
import socket
import time
from typing import Any

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

# Made when the module is loaded: a type checker does not see them.
Event, SessionLog = (getattr(event_pb2, name) for name in ("Event", "SessionLog"))
FLUSH_EVERY = 30.0  # seconds


class Board:
    """One file of events in `folder`.

    TensorBoard hides what earlier files of the folder say of `purge_step` and later.
    """

    def __init__(self, folder: str | pathlib.Path, *, purge_step: int):
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self.file, self.flushed = RecordWriter(str(path / name)), 0.0
        self._write(Event(file_version="brain.Event:2"))
        self._write(
            Event(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        )

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One point of the curve `name`."""
        self._write(Event(step=step, summary=scalar(name, value)))
        if time.monotonic() - self.flushed > FLUSH_EVERY:
            self.file.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left and closes the file, on a full disk as well."""
        self.file.close()  # Python closes the file even where the last write fails

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self.file.write(event.SerializeToString())
