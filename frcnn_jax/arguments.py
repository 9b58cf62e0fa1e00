"""What a function of one image takes, stated above it and checked when it is called.

@takes("rpn_targets", anchors="a 4", num_samples=ranges.COUNT)
def rpn_targets(key, anchors, *, num_samples=256): ...
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from frcnn_jax import ranges
from frcnn_jax.ops import modes

F = TypeVar("F", bound=Callable[..., Any])


def takes(group: str, **rules: str | Mapping[str, str] | ranges.Rule) -> Callable:
    """Decorate a function with checks of the arguments that it is called with.

    A text is the axes of an array (`modes.one_image`), a mapping those of the fields of
    a tuple, and a Rule the range of a hyperparameter (`ranges.check`) of `group`.

    >>> @takes("thing", boxes="n 4", count=ranges.COUNT)
    ... def f(boxes, *, count=3):
    ...     return count
    >>> f(None, count=2)
    2
    >>> f(None, count=0)
    Traceback (most recent call last):
    ValueError: thing.count=0: expected a whole number of at least 1
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args, **kwargs):
            arrays, values = {}, {}
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                rule = rules.get(name)
                if isinstance(rule, ranges.Rule):
                    values[name] = value, rule
                elif isinstance(rule, str):
                    arrays[name] = value, rule
                elif rule is not None:
                    for field, axes in rule.items():
                        arrays[f"{name}_{field}"] = getattr(value, field), axes
            ranges.check(group, **values)
            modes.one_image(function.__name__, **arrays)
            return function(*args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorate
