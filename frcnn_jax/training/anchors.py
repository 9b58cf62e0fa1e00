"""Anchors for the boxes of a set, as a part of the recipe chooses them.

A level is its stride and the anchors at its first cell.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from frcnn_jax import models
from frcnn_jax.data import anchor_fit
from frcnn_jax.data.facts import Facts
from frcnn_jax.data.images import canvases, choose_canvas, fit
from frcnn_jax.training import config as configs

Settle = Callable[[str, Any, str], Any]


def choose_anchors(
    config: Mapping[str, Any],
    chosen: dict[str, Any],
    facts: Facts,
    settle: Settle,
) -> None:
    """Anchors that go with the short side, or those that fit the boxes better."""
    place = dict(config["model"].get("anchors") or {})
    if "strides" not in place or not ({"sizes", "aspect_ratios"} & set(place)):
        return
    flat = {**configs.leaves(config), **chosen}
    factor = 8.0 if flat["data.short_side"] >= 500 else 4.0
    sizes = place.get("sizes") or tuple(factor * s for s in place["strides"])
    ratios = place.get("aspect_ratios") or (0.5, 1.0, 2.0)
    why = f"{factor:g} times the strides"
    if None in (place.get("sizes", 0), place.get("aspect_ratios", 0)) and len(
        facts.boxes
    ):
        model = {**config["model"], "anchors": {**place, "sizes": sizes}}
        model["anchors"]["aspect_ratios"] = ratios
        now = levels(_filled_model(model, chosen), facts.num_classes) or []
        boxes, image_sizes = as_seen(facts, flat)
        found = anchor_fit.suggest(boxes, image_sizes, now)
        before = anchor_fit.coverage(boxes, image_sizes, now)["all"]
        why += f", which reach {before['0.7']:.0%} of the objects at IoU 0.7"
        if found["changes"] and found["coverage"]["0.7"] > before["0.7"] + 0.02:
            sizes = tuple(tuple(s) if len(s) > 1 else s[0] for s in found["sizes"])
            ratios = tuple(found["aspect_ratios"])
            why = (
                f"they reach {found['coverage']['0.7']:.0%} of the objects at IoU 0.7, "
                f"{factor:g} times the strides {before['0.7']:.0%}"
            )
    settle("model.anchors.sizes", sizes, why)
    settle("model.anchors.aspect_ratios", ratios, "as the sizes")


def levels(model: Mapping[str, Any], num_classes: int) -> anchor_fit.Levels | None:
    """Stride and boxes at the first cell of each level; None where a model has none."""
    detector: Any = models.build_detector(num_classes=num_classes, **model)
    place = getattr(detector, "anchors", None)
    if place is None:
        return None
    options = inspect.signature(place).parameters
    strides = options["strides"].default
    own = options["levels"].default if "levels" in options else ()
    boxes = np.asarray(place(dict.fromkeys(own or strides, (1, 1))), np.float64)
    return list(zip(strides, np.split(boxes, len(strides)), strict=True))


def as_seen(facts: Facts, flat: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The objects in the resized images, 10,000 of many, and their image sizes."""
    options = canvases(flat["data.canvas"])
    short, long = flat["data.short_side"], flat["data.max_side"]
    some = slice(None, None, max(1, len(facts.boxes) // 10_000))
    original = facts.sizes[facts.image[some]].reshape(-1, 2)
    kinds, which = np.unique(original, axis=0, return_inverse=True)
    fitted = [
        fit(s, short, long, options[choose_canvas(s, short, long, options)])
        for s in map(tuple, kinds.tolist())
    ]
    sizes = np.array(fitted).reshape(-1, 2)[which.reshape(-1)]
    scale = (sizes / original)[:, [1, 0, 1, 0]]
    return facts.boxes[some] * scale, sizes


def _filled_model(model: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict:
    """The group `model` with what was chosen, and with nothing in place of the rest."""
    out = {k: dict(v) if isinstance(v, Mapping) else v for k, v in model.items()}
    for name, value in chosen.items():
        group, _, leaf = name.removeprefix("model.").rpartition(".")
        if name.startswith("model."):
            (out[group] if group else out)[leaf] = value
    return out
