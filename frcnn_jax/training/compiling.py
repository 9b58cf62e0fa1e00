"""Says when a program is being compiled, how long that took, and if it was kept."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from frcnn_jax.training.metrics import duration

log = logging.getLogger(__name__)
_events: dict[str, float] = {}


def _count(event: str, **_: Any) -> None:
    _events[event] = _events.get(event, 0) + 1


def _add(event: str, duration_secs: float, **_: Any) -> None:
    if event == SPARED:
        _events[event] = _events.get(event, 0) + duration_secs


SPARED = "/jax/compilation_cache/compile_time_saved_sec"
jax.monitoring.register_event_listener(_count)
jax.monitoring.register_event_duration_secs_listener(_add)
HITS, MISSES = (
    "/jax/compilation_cache/cache_hits",
    "/jax/compilation_cache/cache_misses",
)


def spared() -> float:
    """Seconds of compiling that kept programs have spared this process so far."""
    return _events.get(SPARED, 0.0)


@contextlib.contextmanager
def announced(what: str, again: str = "") -> Iterator[None]:
    """Says before its block that `what` is compiled, and after it how long that took.

    The block has to wait for the result of the first call, or to compile without one.
    """
    kept = (
        "; kept for the next start"
        if jax.config.values["jax_compilation_cache_dir"]
        else ""
    )
    log.info("compiling %s (first time%s%s)", what, again, kept)
    before, start = dict(_events), time.perf_counter()
    yield
    hits, misses = (_events.get(e, 0) - before.get(e, 0) for e in (HITS, MISSES))
    seconds = duration(time.perf_counter() - start)
    found = hits and not misses
    log.info(
        "%s after %s",
        f"{what} was kept from an earlier start: ready" if found else "compiled",
        seconds,
    )


class Announced:
    """A compiled function that says so at the first call with arguments of a shape.

    The shapes of the first argument, state or variables, are taken to stay the same.
    `fresh` tells of the last call whether it compiled; it has then waited for the
    result.
    """

    def __init__(self, run: Callable[..., Any], what: str):
        self.run, self.what, self.fresh = run, what, False
        self.known: set[Any] = set()

    def __call__(self, *args: Any) -> Any:
        """The function's result."""
        shapes = tuple(
            x.shape for x in jax.tree.leaves(args[1:]) if hasattr(x, "shape")
        )
        self.fresh = shapes not in self.known
        if not self.fresh:
            return self.run(*args)
        again = ", for another image size" if self.known else ""
        with announced(self.what, again):
            out = jax.block_until_ready(self.run(*args))
        self.known.add(shapes)
        return out
