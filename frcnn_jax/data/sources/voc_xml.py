"""One XML file of PASCAL VOC's kind: the names and boxes of its objects.

`<bndbox>` is the box. Without one the upright box is taken around a rotated box
(roLabelImg's `<robndbox>`) or a polygon (LabelMe's `<pt>`, or `<x1>`, `<y1>`, ...).
"""

import math
import pathlib
import re
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from frcnn_jax.data.folders import xml_text
from frcnn_jax.data.source import Size


class Annotation(NamedTuple):
    """What one XML file says; boxes as they stand there, size None if it is missing.

    `around` is the number of boxes that were taken around another shape.
    """

    size: Size | None
    names: list[str]
    boxes: Float[np.ndarray, "n 4"]
    difficult: list[bool]
    filename: str = ""
    around: int = 0


def parse(file: pathlib.Path) -> Annotation:
    """Reads one annotation file; ValueError names it if it is not plain XML."""
    try:
        text = xml_text(file.read_bytes())
        if re.search("<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
            raise ValueError(
                "it declares a document type or entities, which are refused"
            )
        root = ElementTree.fromstring(text)
        elements = [e for e in root.findall("object") if e.findtext("deleted") != "1"]
        objects = [_object(e, i) for i, e in enumerate(elements, start=1)]
        w, h = (_whole(root, f"size/{k}", "the image") for k in ("width", "height"))
        filename = (root.findtext("filename") or "").strip()
    except FileNotFoundError:
        message = f"no annotation file {file}: add it, or set data.root"
        raise FileNotFoundError(message) from None
    except (ValueError, OverflowError, ElementTree.ParseError) as error:
        raise ValueError(
            f"cannot read the annotation {file}: {error}: correct or remove it"
        ) from error
    names, boxes, difficult = zip(*objects, strict=True) if objects else ((), (), ())
    return Annotation(
        size=(h, w) if h > 0 and w > 0 else None,
        names=list(names),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        difficult=list(difficult),
        filename=filename,
        around=sum(e.find("bndbox") is None for e in elements),
    )


def _object(element: ElementTree.Element, i: int) -> tuple[str, list[float], bool]:
    """The name, the box in VOC's numbers, and whether the object is difficult."""
    who = f"object {i}"
    if element.find("bndbox") is None and element.find("robndbox") is not None:
        box = _around_rotated(element, who)
    elif element.find("bndbox") is None and element.find("polygon") is not None:
        box = _around_polygon(element, who)
    else:
        paths = [f"bndbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax")]
        box = [_number(_text(element, path, who), path, who) for path in paths]
    difficult = _whole(element, "difficult", who) == 1
    return _text(element, "name", who), box, difficult


def _around_rotated(element: ElementTree.Element, who: str) -> list[float]:
    """The box around a rectangle that is turned by `angle` radians about its middle."""
    paths = [f"robndbox/{key}" for key in ("cx", "cy", "w", "h", "angle")]
    values = [_number(_text(element, path, who), path, who) for path in paths]
    cx, cy, w, h, angle = values
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{who} has the robndbox {values}, expected finite numbers")
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    dx, dy = (w * cosine + h * sine) / 2, (w * sine + h * cosine) / 2
    return _as_voc(cx - dx, cy - dy, cx + dx, cy + dy)


def _around_polygon(element: ElementTree.Element, who: str) -> list[float]:
    """The box around the points of a polygon."""
    polygon = element.find("polygon")
    x, y = (
        [
            _number((e.text or "").strip(), f"polygon/{e.tag}", who)
            for e in (polygon.iter() if polygon is not None else ())
            if re.fullmatch(tag, e.tag)
        ]
        for tag in (r"x\d*", r"y\d*")
    )
    if len(x) < 2 or len(x) != len(y):
        raise ValueError(
            f"{who} has a polygon of {len(x)} x and {len(y)} y, expected two or more "
            "points"
        )
    return _as_voc(min(x), min(y), max(x), max(y))


def _as_voc(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """Continuous corners in VOC's numbers, whose first pixel is 1."""
    return [x1 + 1, y1 + 1, x2, y2]


def _text(element: ElementTree.Element, path: str, who: str) -> str:
    value = element.findtext(path)
    if value is None or not value.strip():
        raise ValueError(f"{who} has no {path}")
    return value.strip()


def _number(text: str, path: str, who: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{who} has {path} {text!r}, expected a number") from None


def _whole(element: ElementTree.Element, path: str, who: str) -> int:
    """A whole number; 0 if there is none."""
    value = _number(element.findtext(path) or "0", path, who)
    if not math.isfinite(value):
        raise ValueError(f"{who} has {path} {value}, expected a number")
    return int(value)
