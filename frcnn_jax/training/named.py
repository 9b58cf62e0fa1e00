"""Functions that a group of the configuration names: losses, post-processing.

`GROUP.name` is the name of a function of the group's module, or the dotted path of your
own, `my_module.my_function`; the rest of the group are its keyword arguments.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from frcnn_jax import detections, ranges, roi_losses

HOMES: dict[str, ModuleType] = {
    "roi_cls_loss": roi_losses,
    "roi_box_loss": roi_losses,
    "postprocess": detections,
}
# A keyword by which the functions that can be named differ from others of the module.
MARKS = {roi_losses: "normalizer", detections: "max_detections"}


def function(config: Mapping[str, Any], group: str) -> Callable[..., Any] | None:
    """The function that a group names, with its keyword arguments; None for no name.

    A group `postprocess` without a name means `detections.nms`.

    Raises ValueError for an unknown name, TypeError for a misspelt argument, both with
    those that there are.
    """
    options = dict(config.get(group) or {})
    name = options.pop("name", "")
    ranges.check(group, name=(name, ranges.TEXT))
    if not name and group == "postprocess":
        name = "nms"
    if not name:
        if options:
            raise ValueError(
                f"config.{group} has {sorted(options)} but no name: set "
                f"config.{group}.name to the function that takes them"
            )
        return None
    found = look_up(group, name)
    _check_arguments(f"config.{group} ({name!r})", found, options)
    return partial(found, **options)


def look_up(group: str, name: str) -> Callable[..., Any]:
    """The function of that name in the group's module, or of a dotted path."""
    home = HOMES[group]
    if "." in name:
        path, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(path), attribute, None)
        except ImportError:
            found = None
    else:
        found = vars(home).get(name) if name in names(home) else None
    if not callable(found):
        raise ValueError(
            f"config.{group}.name={name!r}: no function of that name; available are "
            f"{names(home)}, or the dotted path of your own, my_module.my_function"
        )
    return found


def leaves(group: str) -> set[str]:
    """What a group may hold: `name`, and the keywords of all functions of its module.

    Those of a function of your own stand in the experiment's file.
    """
    home = HOMES[group]
    keywords = (_keywords(vars(home)[name]) for name in names(home))
    return {"name", *(k for found in keywords for k in found)} - {"normalizer"}


def names(home: ModuleType) -> list[str]:
    """The public functions of a module that can be named, see `MARKS`."""
    return [
        name
        for name, value in vars(home).items()
        if inspect.isfunction(value)
        and not name.startswith("_")
        and MARKS[home] in _keywords(value)
    ]


def _keywords(found: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(found).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def _check_arguments(
    shown: str, found: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    allowed = [name for name in _keywords(found) if name != "normalizer"]
    if unknown := [name for name in options if name not in allowed]:
        raise TypeError(f"{shown}: unexpected {unknown}; expected some of {allowed}")
