"""How far an AP would move with other images and other seeds: bootstrap intervals.

A draw takes as many images as there are, with replacement; AP is computed of those.
An interval holds the middle 95 % of the draws' values (percentile bootstrap, B. Efron,
The Annals of Statistics 7, 1979). Annotations and detections have COCO's form.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from frcnn_jax.evaluation import coco

Detections = list[dict[str, Any]]
Metric = Callable[[dict[str, Any], Detections], float]


def average_precision(annotations: dict[str, Any], detections: Detections) -> float:
    """COCO's AP; NaN where there is no object."""
    found = coco.evaluate(annotations, detections)["AP"]
    return float("nan") if found is None else float(found)


def interval(
    annotations: dict[str, Any],
    detections: Detections,
    *,
    draws: int = 200,
    metric: Metric = average_precision,
) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile of the metric over resampled images.

    It says nothing of another training run. Draws without a value are left out.
    """
    rng, ids = np.random.default_rng(0), _ids(annotations)
    truth, found = _by_image(annotations["annotations"]), _by_image(detections)
    values = []
    for _ in range(draws):
        chosen = _draw(rng, ids)
        values.append(
            metric(_annotations(annotations, truth, chosen), _of(found, chosen))
        )
    return _middle(values)


def difference(
    annotations: dict[str, Any],
    ours: Sequence[Detections],
    theirs: Sequence[Detections],
    *,
    draws: int = 200,
    metric: Metric = average_precision,
) -> tuple[float, float, float]:
    """Mean of the metric over our runs minus that over theirs, and its 95 % interval.

    `ours` and `theirs` hold the detections of one run (seed) each, all of the same
    images. A draw takes the same images for every run, and of each side as many runs as
    it has, with replacement: the interval holds what other images and other seeds would
    change. With one run a side it says nothing of other seeds.
    """
    sides = [[_by_image(run) for run in runs] for runs in (ours, theirs)]
    if not all(sides):
        raise ValueError(
            "difference: each side needs the detections of one run or more"
        )
    rng, ids = np.random.default_rng(0), _ids(annotations)
    truth = _by_image(annotations["annotations"])

    def means(chosen: list[Any], runs: Sequence[Sequence[int]]) -> float:
        drawn, known = _annotations(annotations, truth, chosen), {}
        for side, numbers in enumerate(runs):
            for n in set(numbers):
                known[side, n] = metric(drawn, _of(sides[side][n], chosen))
        a, b = (
            np.mean([known[side, n] for n in numbers])
            for side, numbers in enumerate(runs)
        )
        return float(a - b)

    values = []
    for _ in range(draws):
        chosen = _draw(rng, ids)
        runs = [rng.integers(0, len(side), len(side)).tolist() for side in sides]
        values.append(means(chosen, runs))
    low, high = _middle(values)
    return means(ids, [range(len(side)) for side in sides]), low, high


def _ids(annotations) -> list[Any]:
    return [image["id"] for image in annotations["images"]]


def _draw(rng: np.random.Generator, ids: list[Any]) -> list[Any]:
    return [ids[k] for k in rng.integers(0, len(ids), len(ids))]


def _by_image(entries: Detections) -> dict[Any, Detections]:
    rows: dict[Any, Detections] = {}
    for entry in entries:
        rows.setdefault(entry["image_id"], []).append(entry)
    return rows


def _of(rows: dict[Any, Detections], chosen: list[Any]) -> Detections:
    """The entries of the chosen images; an image drawn twice counts as two."""
    return [
        {**entry, "image_id": n}
        for n, image in enumerate(chosen)
        for entry in rows.get(image, ())
    ]


def _annotations(annotations, truth, chosen) -> dict[str, Any]:
    drawn = [{**a, "id": n} for n, a in enumerate(_of(truth, chosen), 1)]
    images = [{"id": n} for n in range(len(chosen))]
    return dict(annotations, images=images, annotations=drawn)


def _middle(values: list[float]) -> tuple[float, float]:
    known = [v for v in values if np.isfinite(v)]
    if not known:
        return float("nan"), float("nan")
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
