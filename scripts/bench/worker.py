"""One side of scripts/bench/speed.py: what both processes do, with nothing but NumPy.

A request is a line of JSON on stdin, its answer a line on stdout:

    {"prepare": CASE, "folder": DIR}   modes, a check of the results, versions
    {"time": MODE, "seconds": S}       `ms` and `cpu_ms` of calls: one at least, for S
    {"peak": 1}                        the process's largest memory so far, in MB
    {"weights": MODEL, "folder": DIR}  (ours only) writes DIR/MODEL.npz for both

A case that fails answers {"error": ...}, and the process goes on.
"""

import json
import pathlib
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Prepared(NamedTuple):
    """A case ready to run: by mode, a call that ends when its work has ended."""

    calls: dict[str, Callable[[], Any]]
    check: list[float]  # of the results, to be alike on both sides
    more: dict[str, Any] = {}


def serve(
    prepare: Callable[[dict[str, Any], pathlib.Path], Prepared],
    *,
    versions: str,
    device: str,
    peak_mb: Callable[[], float] | None = None,
    weights: Callable[[str, pathlib.Path], None] | None = None,
) -> None:
    """Answers requests until stdin ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # nothing else may speak there
    ready = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "weights" in request:
                assert weights is not None
                weights(request["weights"], pathlib.Path(request["folder"]))
                answer = {}
            elif "prepare" in request:
                ready = None  # what the last case held may go
                ready = prepare(request["prepare"], pathlib.Path(request["folder"]))
                for call in ready.calls.values():  # once more, warm
                    call()
                answer = dict(modes=list(ready.calls), check=ready.check, **ready.more)
                answer |= dict(versions=versions, device=device)
            elif "time" in request:
                assert ready is not None
                answer = timed(ready.calls[request["time"]], request["seconds"])
            else:
                answer = dict(peak_mb=(peak_mb or largest_resident)())
        except Exception as error:
            traceback.print_exc()
            answer = dict(error=f"{type(error).__name__}: {str(error)[:300]}")
        print(json.dumps(answer), file=out, flush=True)


def timed(call: Callable[[], Any], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each call, by the clock and of processors, for `seconds`."""
    found: dict[str, list[float]] = dict(ms=[], cpu_ms=[])
    end = time.perf_counter() + seconds
    while not found["ms"] or time.perf_counter() < end:
        start, used = time.perf_counter(), time.process_time()
        call()
        found["ms"].append(1e3 * (time.perf_counter() - start))
        found["cpu_ms"].append(1e3 * (time.process_time() - used))
    return found


def largest_resident() -> float:
    """The largest resident memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- Inputs that both sides make alike -------------------------------------------------


def crowd(n: int, scene: str, side: tuple[int, int] = (800, 1344)) -> Arrays:
    """Boxes [n, 4] and scores [n].

    "typical": around 40 objects; "all": one object, all overlap; "none": a grid, no two
    touch; "equal": typical, all scores equal.
    """
    rng = np.random.default_rng(0)
    objects = 1 if scene == "all" else 40
    centre = rng.uniform(0, 1, (objects, 2))[rng.integers(0, objects, n)] * side[::-1]
    centre = centre + rng.normal(0, 2 if scene == "all" else 12, (n, 2))
    half = np.exp(rng.normal(4.5, 0.02 if scene == "all" else 0.25, (n, 2))) / 2
    boxes = np.concatenate([centre - half, centre + half], 1)
    if scene == "none":
        across = int(np.ceil(np.sqrt(n)))
        corner = np.stack(np.divmod(np.arange(n), across), 1) * 10.0
        boxes = np.concatenate([corner, corner + 8], 1)[rng.permutation(n)]
    scores = np.ones(n) if scene == "equal" else rng.permutation(n) / n
    return dict(boxes=boxes.astype(np.float32), scores=scores.astype(np.float32))


def objects(n: int, side: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Boxes of `n` objects inside an image."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.6, (n, 2)) * side[::-1]
    size = np.exp(rng.uniform(np.log(0.04), np.log(0.4), (n, 2))) * side[::-1]
    boxes = np.concatenate([corner, np.minimum(corner + size, side[::-1])], 1)
    return boxes.astype(np.float32)


def anchors(side: tuple[int, int]) -> np.ndarray:
    """The anchors of an FPN on an image of `side`, small stride first."""
    found = []
    for stride, size in zip((4, 8, 16, 32, 64), (32, 64, 128, 256, 512), strict=True):
        y, x = np.mgrid[: -(-side[0] // stride), : -(-side[1] // stride)] * stride
        for ratio in (0.5, 1.0, 2.0):
            h, w = size * np.sqrt(ratio) / 2, size / np.sqrt(ratio) / 2
            found.append(np.stack([x - w, y - h, x + w, y + h], -1).reshape(-1, 4))
    return np.concatenate(found).astype(np.float32)


def rois(n: int, side: tuple[int, int]) -> np.ndarray:
    """RoIs of all sizes inside an image."""
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 0.8, (n, 2)) * side[::-1]
    high = low + np.exp(rng.uniform(np.log(8), np.log(400), (n, 2)))
    boxes = np.concatenate([low, np.minimum(high, side[::-1])], 1)
    return boxes.astype(np.float32)


def levels(side: tuple[int, int], strides: tuple[int, ...], channels: int = 256):
    """Feature maps [1, h, w, c] of an image, by stride."""
    rng = np.random.default_rng(2)
    return {
        s: rng.standard_normal(
            (1, -(-side[0] // s), -(-side[1] // s), channels), np.float32
        )
        for s in strides
    }


def second_stage(n: int, classes: int, side: tuple[int, int], scene: str) -> Arrays:
    """RoIs, class logits [n, C + 1] and deltas [n, C, 4] of a scene."""
    rng = np.random.default_rng(3)
    boxes = crowd(n, scene, side)["boxes"]
    logits = rng.normal(0, 0.5, (n, classes + 1))
    logits[:, 0] += np.log(classes)
    for _ in range(3):  # a few classes stand out in each RoI
        logits[np.arange(n), rng.integers(1, classes + 1, n)] += np.log(classes) + 1
    if scene == "equal":
        logits[:] = 0
        logits[:, 1:9] = np.log(classes)
    deltas = rng.normal(0, 0.5, (n, classes, 4))
    arrays = dict(boxes=boxes, logits=logits, deltas=deltas)
    return {k: v.astype(np.float32) for k, v in arrays.items()}


def image_inputs(case: dict[str, Any]) -> Arrays:
    """Normalised images [b, h, w, 3], boxes [b, 8, 4] and labels [b, 8]."""
    rng = np.random.default_rng(4)
    (h, w), b = case["size"], case["batch"]
    images = np.zeros((b, h, w, 3), np.float32)
    for cell in (4, 16, 64):
        noise = rng.standard_normal((b, -(-h // cell), -(-w // cell), 3), np.float32)
        images += noise.repeat(cell, 1).repeat(cell, 2)[:, :h, :w]
    boxes = np.stack([objects(8, (h, w), seed) for seed in range(b)])
    return dict(images=images, boxes=boxes, labels=rng.integers(1, 91, (b, 8)))
