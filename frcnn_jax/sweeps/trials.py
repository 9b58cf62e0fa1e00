"""A trial of a sweep: its changes, its name, its folder, and its progress."""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

from frcnn_jax.training import metrics

DONE = ("finished", "pruned")


@dataclasses.dataclass
class Trial:
    """One run of the sweep: its changes, its folder and its progress."""

    name: str
    changes: dict[str, Any]
    folder: pathlib.Path
    total_steps: int
    state: str = "waiting"
    seconds: float = 0.0  # of earlier attempts
    began: float = 0.0
    step: int = 0
    loss: float = math.nan
    evaluations: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
    read_at: int = 0  # modification time of its metrics when last read
    number: int | None = None  # Optuna's

    @property
    def result(self) -> dict[str, float]:
        """The last evaluation's metrics."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else {}

    @property
    def time(self) -> float:
        """Seconds over all attempts."""
        return self.seconds + (time.time() - self.began if self.began else 0.0)

    def read(self) -> None:
        """Reads what it has written since the last time."""
        path = self.folder / "metrics.jsonl"
        if not path.exists() or path.stat().st_mtime_ns == self.read_at:
            return
        self.read_at = path.stat().st_mtime_ns
        self.evaluations = {}
        for row in metrics.read(path):
            self.step = row["step"]
            if row["group"] == "train":
                self.loss = row["total"]
            elif row["group"] == "eval":
                values = {k: v for k, v in row.items() if isinstance(v, float)}
                self.evaluations[row["step"]] = values

    def load(self) -> None:
        """How its earlier attempts ended, if there were any."""
        note = self.folder / "trial.json"
        if note.exists():
            saved = json.loads(note.read_text())
            self.state, self.seconds = saved["state"], saved["seconds"]
        self.read()

    def save(self, state: str) -> None:
        """Ends an attempt."""
        self.state, self.seconds, self.began = state, self.time, 0.0
        note = dict(state=state, seconds=self.seconds, changes=self.changes)
        temporary = self.folder / "trial.tmp"
        temporary.write_text(json.dumps(note, indent=2) + "\n")
        temporary.replace(self.folder / "trial.json")


def encode(value: Any) -> str:
    """A value as the flags of scripts/train.py read it."""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, list | tuple):
        return repr(tuple(plain(v) for v in value))
    return repr(plain(value))


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item() if hasattr(value, "item") else value


def trial_name(changes: Mapping[str, Any], leaves: Iterable[str] = ()) -> str:
    """Names a trial after its changes; the same changes always have the same name.

    A leaf is called by the end of its name that no other of the `leaves` has, a float
    by four significant digits. A hash of the whole values follows where the name does
    not state them exactly.

    >>> trial_name({"optimizer.learning_rate": 0.01, "seed": 1})
    'learning_rate=0.01,seed=1'
    >>> trial_name({"optimizer.learning_rate": 0.0123456789})
    'learning_rate=0.01235-3f8528c0'
    >>> trial_name({"rpn.fg_iou": 0.7}, ["rpn.fg_iou", "roi.fg_iou"])
    'rpn.fg_iou=0.7'
    """
    leaves = list(leaves)
    whole = ",".join(f"{ending(k, leaves)}={encode(v)}" for k, v in changes.items())
    text = ",".join(
        f"{ending(k, leaves)}={encode(_readable(v))}" for k, v in changes.items()
    )
    short = re.sub(r"[^\w.=,+-]+", "_", text).strip("_.")[:80] or "as_it_is"
    if short == whole:
        return short
    values = json.dumps(changes, default=plain)
    return f"{short}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"


def _readable(value: Any) -> Any:
    """A float to four significant digits, inside of tuples too."""
    value = plain(value)
    if isinstance(value, list | tuple):
        return tuple(map(_readable, value))
    return float(f"{value:.4g}") if isinstance(value, float) else value


def ending(name: str, leaves: Iterable[str]) -> str:
    """The shortest end of a leaf's name that no other leaf has."""
    parts = name.split(".")
    ends = [".".join(parts[-n:]) for n in range(1, len(parts))]
    others = [f".{leaf}" for leaf in leaves if leaf != name]
    clear = (e for e in ends if not any(o.endswith(f".{e}") for o in others))
    return next(clear, name)
