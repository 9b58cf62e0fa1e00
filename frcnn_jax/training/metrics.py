"""Output of metrics: metrics.jsonl, TensorBoard and the progress line."""

import json
import logging
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from frcnn_jax.training import devices, trackers
from frcnn_jax.training.board import Board

log = logging.getLogger(__name__)
# What the line of progress shows of a step, besides its loss.
SHOWN = ("rpn_cls", "rpn_box", "roi_cls", "roi_box", "fg_accuracy", "grad_norm")


def log_to_stderr() -> None:
    """Shows this package's progress, and of the libraries below only errors.

    Of several processes the first one shows progress, the others only warnings.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    package = logging.getLogger("frcnn_jax")
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO if devices.is_first() else logging.WARNING)
    for library in ("absl", "jax", "orbax", "tensorstore", "etils", "grain"):
        logging.getLogger(library).setLevel(logging.ERROR)


class Writer:
    """Appends to `metrics.jsonl` and TensorBoard files of a run's folder.

    On a resumed run the file is first cut back to what it was when the restored step
    was saved, before that was evaluated: its rows are then those of a run that never
    stopped. Of several processes the first one writes. `log_to` names a tracker that
    gets the same rows, see `trackers`.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        step: int = 0,
        log_to: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        self.board = self.tracker = None
        if not devices.is_first():
            return
        if log_to:
            self.tracker = trackers.open_tracker(log_to, workdir, config or {})
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        if self.path.exists():
            rows = read(self.path)
            kept = [
                json.dumps(row) + "\n"
                for row in rows
                if row["step"] < step
                or (row["step"] == step and row["group"] == "train")
            ]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(kept))
            temporary.replace(self.path)
        self.board = Board(pathlib.Path(workdir) / "tensorboard", purge_step=step + 1)

    def __call__(
        self, step: int, values: Mapping[str, float], *, group: str, split: str = ""
    ) -> None:
        """Writes one row, e.g. group "train", or "eval" of a split."""
        if self.board is None:
            return
        with self.path.open("a") as file:
            about = {"step": step, "group": group} | ({"split": split} if split else {})
            file.write(json.dumps({**about, **values}) + "\n")
        named = {f"{group}/{name}": value for name, value in values.items()}
        for name, value in named.items():
            self.board.add_scalar(name, value, step)
        if self.tracker is not None:
            log_row, _ = self.tracker
            log_row(step, named)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self.board is not None:
            self.board.close()
        if self.tracker is not None:
            _, close = self.tracker
            close()


def read(path: str | pathlib.Path) -> list[dict]:
    """The rows of a `metrics.jsonl`; a last line cut short by a crash is left out."""
    rows = []
    for line in pathlib.Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


# What a row holds of the clock and the machine: it differs from run to run.
CLOCK = {"images_per_second", "step_seconds", "waiting", "device_memory"}


def without_clock(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as any run of the same configuration writes them."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


class Progress:
    """The progress of a run: losses, learning rate, images a second, time left.

    `waiting` is the share of the time that the run spent waiting for its data.
    """

    def __init__(self, total_steps: int, batch_size: int, *, step: int = 0):
        self.total_steps, self.batch_size = total_steps, batch_size
        self.start(step)

    def start(self, step: int) -> None:
        """(Re)starts the clock: after compiling, evaluating or saving."""
        self.step, self.time, self.waited = step, time.perf_counter(), 0.0

    def next(self, batches: Iterator[Any]) -> Any:
        """The next batch; how long it takes counts as waiting for data."""
        start = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - start
        return batch

    def __call__(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Logs a line and returns the values with the speed added."""
        elapsed = time.perf_counter() - self.time
        rate = (step - self.step) / elapsed if step > self.step else 0.0
        left = (self.total_steps - step) / rate if rate else float("nan")
        waiting = self.waited / elapsed
        speed = (
            f"{rate * self.batch_size:.1f} images/s ({waiting:.0%} waiting for data)  "
            f"{duration(left)} left"
        )
        terms = "  ".join(
            f"{name} {value:.4g}" for name, value in values.items() if name in SHOWN
        )
        log.info(
            "step %d/%d  loss %.4f (%s)  lr %.2g  %s",
            step,
            self.total_steps,
            values["total"],
            terms,
            values["learning_rate"],
            speed if rate else "speed and time left: with the next line",
        )
        self.start(step)
        values = dict(values)
        if rate:
            speed = dict(images_per_second=rate * self.batch_size, waiting=waiting)
            values |= dict(speed, step_seconds=1 / rate)
        if (memory := device_memory()) is not None:
            values["device_memory"] = memory
        return values


def device_memory() -> float | None:
    """The most that any device of this process has used, in GiB; None on CPUs."""
    used = [
        (d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()
    ]
    found = [n for n in used if n is not None]
    return max(found) / 2**30 if found else None


class Countdown:
    """Says after five and then every twenty seconds how much of something is done.

    `what` is counted: "images evaluated" reads "12/87 images evaluated, 3m10s left".
    """

    def __init__(self, total: int, what: str):
        self.total, self.what, self.done, self.known = total, what, 0, 0
        self.start = self.said = time.perf_counter()
        self.first = True

    def __call__(self, count: int, *, known: bool = False) -> None:
        """Counts what is done; `known` was there before and took no time."""
        now = time.perf_counter()
        if not self.done:  # the first part compiled the program: it says no speed
            self.start, known = now, True
        self.done += count
        self.known += count * known
        if self.done == self.known or now - self.said < (5 if self.first else 20):
            return
        self.said, self.first = now, False
        if self.total < self.done:  # a video need not know its length
            log.info("%d %s", self.done, self.what)
            return
        left = (now - self.start) / (self.done - self.known) * (self.total - self.done)
        log.info("%d/%d %s, %s left", self.done, self.total, self.what, duration(left))


def duration(seconds: float) -> str:
    """`3h12m`, `4m05s` or `12s`; `?` if unknown."""
    if seconds != seconds:
        return "?"
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
