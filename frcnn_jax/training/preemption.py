"""SIGTERM, sent before a machine is taken away: the run saves itself and ends."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)


class Preempted(SystemExit):
    """Ends the process with code 143 (128 + SIGTERM): saved, not finished."""

    def __init__(self):
        super().__init__(128 + signal.SIGTERM)


@contextlib.contextmanager
def watched() -> Iterator[Callable[[int], bool]]:
    """Gives a function that says, at a step's end, whether to save and leave.

    Instead of ending the process, SIGTERM makes it true. Of several processes one
    signal is enough: JAX tells the others, and it is true for all at the same step,
    which is why each has to ask at every step. Only a main thread can be told.
    """
    if jax.process_count() > 1:  # JAX has its own handler
        yield multihost_utils.reached_preemption_sync_point
        return
    noticed = threading.Event()

    def handle(*_):
        log.info("SIGTERM: saving at the end of this step")
        noticed.set()

    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield lambda step: noticed.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def heed(leaving: Callable[[int], bool], step: int) -> None:
    """Raises Preempted if `leaving(step)`, to end the current work."""
    if leaving(step):
        raise Preempted
