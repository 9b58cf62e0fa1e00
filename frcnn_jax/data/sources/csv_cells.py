"""Boxes that a table holds as the text of one column.

    image_id,bbox
    b6ab77fd7,"[834.0, 222.0, 56.0, 36.0]"

A text has four numbers, or four for each of several boxes, in any brackets. The table
does not say what the four numbers are: `convention_of` tells it from all boxes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from frcnn_jax.data.conventions import to_xyxy
from frcnn_jax.data.source import Size

SIDES = ("x1", "y1", "x2", "y2")
EMPTY = ("", "no_box", "none", "null", "nan")  # with and without brackets
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}(?:(?:\s*[,;|]\s*|\s+){_NUMBER})*")
_GUESSED = ("xywh", "xyxy")  # what a column of whole boxes holds


def boxes(text: str, where: object) -> list[tuple[str, str, str, str]]:
    """The boxes of a text, each four numbers; ValueError for any other text.

    >>> boxes("[[1, 2.5, 3, 4], [5, 6, 7, 8]]", "line 2")
    [('1', '2.5', '3', '4'), ('5', '6', '7', '8')]
    >>> boxes("no_box", "line 3")
    []
    """
    plain = re.sub(r"[\[\](){}\s]+", " ", text)
    plain = re.sub(r"\s+(?=[,;|])|(?<=[,;|])\s+", "", plain).strip(" ,;|")
    if plain.lower() in EMPTY:
        return []
    numbers = re.findall(_NUMBER, plain) if _NUMBERS.fullmatch(plain) else []
    if not numbers or len(numbers) % 4:
        raise ValueError(
            f"{where}: box {text[:80]!r}, expected four numbers, or four for each box: "
            "correct it, or leave it empty for an image without objects"
        )
    found = [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]
    return [(a, b, c, d) for a, b, c, d in found]


def labels(text: str, count: int, where: object) -> list[str]:
    """The labels of `count` boxes: one for all of them, or a list of as many.

    >>> labels("['cat', 'dog']", 2, "line 2"), labels("cat", 2, "line 3")
    (['cat', 'dog'], ['cat', 'cat'])
    """
    if not text.startswith(("[", "(")):
        return [text] * count
    parts = [p.strip().strip("'\"") for p in re.split("[,;]", text.strip("[]() "))]
    parts = [p for p in parts if p]
    if len(parts) != count:
        raise ValueError(
            f"{where}: {count} boxes and the labels {text[:80]!r}, expected one for "
            "each box: correct the line"
        )
    return parts


def spread(row: Mapping[str, str], where: object) -> Iterator[dict[str, str]]:
    """A row with a column `box` as one row for each of its boxes.

    A row without a box stays one row with empty numbers.
    """
    rest = {k: v for k, v in row.items() if k != "box"}
    if not (found := boxes(row["box"], where)):
        none = {"label": ""} if row.get("label", "").strip("[]() ") == "" else {}
        yield rest | dict.fromkeys(SIDES, "") | none
        return
    names = labels(row.get("label", ""), len(found), where)
    for box, name in zip(found, names, strict=True):
        named = dict(label=name) if "label" in row else {}
        yield rest | dict(zip(SIDES, box, strict=True)) | named


def convention_of(
    found: Float[np.ndarray, "n 4"], sizes: Sequence[Size]
) -> tuple[str, str]:
    """The one convention under which all boxes lie in their images, and the reason.

    `sizes` are the images' (h, w), one for each box. The convention is empty if neither
    of `xywh` and `xyxy` fits, or both do. A box may reach one pixel out of its image.
    """
    if not len(found):
        return "", "there is no box"
    if np.max(found) <= 1:
        return "", "no number is above 1: they seem to be shares of the sides"
    limits = np.array([(w, h) for h, w in sizes], float).reshape(-1, 2) + 1
    wrong = {}
    for convention in _GUESSED:
        corners = to_xyxy(found, convention)
        good = (corners[:, 2:] > corners[:, :2]) & (corners[:, 2:] <= limits)
        wrong[convention] = int(np.sum(~good.all(1)))
    fits = [convention for convention in _GUESSED if not wrong[convention]]
    if len(fits) == 1:
        (other,) = set(_GUESSED) - set(fits)
        return fits[0], f"as {other} {wrong[other]} of {len(found)} boxes are none"
    if fits:
        return "", f"all {len(found)} boxes would be right as {' and as '.join(fits)}"
    shown = " and ".join(f"{n} as {convention}" for convention, n in wrong.items())
    return "", f"of {len(found)} boxes {shown} would lie outside of their images"
