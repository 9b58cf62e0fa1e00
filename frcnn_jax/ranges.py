"""What a hyperparameter may be, stated by the function that takes it.

    ranges.check(
        "rpn_targets", fg_iou=(fg_iou, ranges.SHARE), num_samples=(num_samples, COUNT)
    )

gives "rpn_targets.fg_iou=-1: expected a number from 0 to 1". NaN is in no range; a
whole number fits 32 bits and any other float32, in which the network computes. Arrays
are not looked at: a traced value has no value yet.
"""

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

HUGE = {True: 2**31 - 1, False: float(np.finfo(np.float32).max)}  # whole or not


class Rule(NamedTuple):
    """What a value has to be, in words and as a test."""

    says: str
    holds: Callable[[Any], bool]


def check(group: str, **values: tuple[Any, Rule]) -> None:
    """ValueError names the first value that is not what its rule says."""
    for name, (value, rule) in values.items():
        if hasattr(value, "aval") or (hasattr(value, "shape") and np.shape(value)):
            continue  # an array of the caller's, perhaps traced
        if not rule.holds(value):
            raise ValueError(f"{group}.{name}={value!r}: expected {rule.says}")


@functools.cache
def number(
    least: float | int = -math.inf,
    most: float | int = math.inf,
    *,
    above: float | int | None = None,
    below: float | int | None = None,
    whole: bool = False,
    infinite: bool = False,
) -> Rule:
    """A number between both ends; `above` and `below` leave out the ends themselves."""
    kind: Any = numbers.Integral if whole else numbers.Real
    ends = []
    if above is not None:
        ends.append(f"above {above:g}")
    elif least > -math.inf:
        ends.append(f"of at least {least:g}")
    if below is not None:
        ends.append(f"below {below:g}")
    elif most < math.inf:
        ends.append(f"of at most {most:g}")
    said = "a whole number" if whole else "a number"
    if above is None and below is None and least > -math.inf and most < math.inf:
        ends = [f"from {least:g} to {most:g}"]

    def holds(value: Any) -> bool:
        boolean = isinstance(value, (bool, np.bool_))  # an int to Python
        if boolean or not isinstance(value, kind):  # pyright: ignore
            return False
        if value != value:
            return False
        inside = least <= value <= most
        inside &= above is None or value > above
        inside &= below is None or value < below
        fits = abs(value) <= HUGE[isinstance(value, numbers.Integral)]
        return bool(inside and (fits or (infinite and math.isinf(value))))

    return Rule(" ".join([said, " and ".join(ends)]).strip(), holds)


@functools.cache
def several(rule: Rule, count: int | None = None, *, least: int = 1) -> Rule:
    """A sequence whose values all obey a rule: `count` of them, or at least `least`."""

    def holds(value: Any) -> bool:
        if isinstance(value, str) or not isinstance(value, Sequence):
            return False
        enough = len(value) == count if count is not None else len(value) >= least
        return enough and all(map(rule.holds, value))

    many = f"{count}" if count is not None else f"{least} or more"
    return Rule(f"a tuple of {many}, each {rule.says}", holds)


@functools.cache  # so that `several` of it is found again
def either(first: Rule, second: Rule) -> Rule:
    """What one of two rules allows."""
    return Rule(
        f"{first.says}, or {second.says}",
        lambda value: first.holds(value) or second.holds(value),
    )


def one_of(*options: Any) -> Rule:
    """One of a few values."""
    return Rule(
        "one of " + ", ".join(map(repr, options)),
        lambda value: isinstance(value, (str, int)) and value in options,
    )


SHARE = number(0, 1)
OVERLAP = number(most=1, above=0)  # of an NMS: 1 keeps all
COUNT = number(1, whole=True)
COUNT_OR_NONE = number(0, whole=True)
POSITIVE = number(above=0)
NOT_NEGATIVE = number(0)
FINITE = number()
TRUTH = Rule("True or False", lambda value: isinstance(value, (bool, np.bool_)))
TEXT = Rule("a text", lambda value: isinstance(value, str))
WORDS = Rule("a text that is not empty", lambda v: isinstance(v, str) and bool(v))
STDS = several(POSITIVE, 4)
