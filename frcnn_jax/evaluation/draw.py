"""Pictures for people: boxes on an image, and contact sheets.

    picture = draw(image, boxes, classes, scores, names=source.classes,
                   truth=gt_boxes, truth_classes=gt_classes)

Detections are solid boxes with a label `name score`; ground truth is dashed, thinner
and without a label. A class has the same colour in every picture, whatever the data
set. Images are RGB uint8 throughout; boxes are continuous pixels of the image given.
"""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

Image = UInt8[np.ndarray, "_ _ 3"]  # any size
Boxes = Float[np.ndarray, "n 4"]
Color = tuple[int, int, int]
Place = tuple[int, int, int, int]  # x, y, w, h of a label

FONT = cv2.FONT_HERSHEY_SIMPLEX
LONGEST = 4096  # pixels up to which a picture is enlarged
# What drawing, encoding or writing one picture may raise.
FAILURES = (OSError, ValueError, cv2.error, MemoryError)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def color(index: int) -> Color:
    """RGB of a class: hues a golden ratio apart, so that neighbours differ most.

    >>> color(1) == color(1), color(1) == color(2)
    (True, False)
    """
    hue = (0.98 + 0.618034 * (index - 1)) % 1.0
    saturation, value = [(0.85, 1.0), (0.6, 0.95), (1.0, 0.75)][(index // 7) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(
    image: Image,
    boxes: Boxes,
    classes: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"] | None = None,
    *,
    names: Sequence[str] = (),
    truth: Float[np.ndarray, "g 4"] | None = None,
    truth_classes: Int[np.ndarray, " g"] | None = None,
    colors: Sequence[Color] = (),
    min_side: int = 0,
) -> Image:
    """Draw labelled boxes onto a copy of the image.

    Lines and letters grow with the image. Better-scoring boxes lie on top. A label is
    above its box; if it would leave the image or cover another label, it is placed
    inside the box or below it.

    Args:
        image: RGB; left as it is.
        boxes: `(x1, y1, x2, y2)` in pixels of `image`; no padded rows.
        classes: 1..C, as in `Detections`.
        scores: shown in the label, and what boxes are ordered by.
        names: name of class 1, 2, ...; the number is shown where there is none.
        truth: ground-truth boxes, drawn dashed under the others.
        truth_classes: their classes, for the colour (white without).
        colors: RGB of class 1, 2, ...; by default `color`.
        min_side: enlarge the picture so that its short side has this many pixels, but
            no side beyond `LONGEST`.

    Raises:
        ValueError: a box is not finite.
    """
    picture, scale = _enlarged(image, min_side)
    line = max(1, round(min(picture.shape[:2]) / 240))

    def paint(index: int) -> Color:
        return colors[index - 1] if 0 < index <= len(colors) else color(index)

    truth = np.zeros((0, 4)) if truth is None else truth
    for n, corners in enumerate(_corners(truth, scale, picture)):
        shade = WHITE if truth_classes is None else paint(int(truth_classes[n]))
        _dashed(picture, corners, shade, max(1, line // 2))

    corners = _corners(boxes, scale, picture)
    best_first = np.argsort(-scores, kind="stable") if scores is not None else None
    order = np.arange(len(boxes)) if best_first is None else best_first
    for n in order[::-1]:
        x1, y1, x2, y2 = corners[n]
        cv2.rectangle(picture, (x1, y1), (x2, y2), paint(int(classes[n])), line)
    labels: list[tuple[str, Color, Place]] = []
    for n in order:
        index = int(classes[n])
        text = names[index - 1] if 0 < index <= len(names) else str(index)
        text = text if scores is None else f"{text} {scores[n]:.2f}"
        place = _place(picture, text, corners[n], line, [label[2] for label in labels])
        labels.append((text, paint(index), place))
    for label in labels[::-1]:
        _write(picture, *label, line)
    return picture


def _enlarged(image: Image, min_side: int) -> tuple[Image, float]:
    """A copy whose short side has `min_side` pixels or more, and its scale.

    No side is enlarged beyond `LONGEST`, however narrow the image is.
    """
    limit = LONGEST / max(image.shape[:2])
    scale = max(1.0, min(min_side / min(image.shape[:2]), limit))
    if scale == 1:
        return image.copy(), scale
    height, width = (round(side * scale) for side in image.shape[:2])
    how = cv2.INTER_CUBIC
    picture = cv2.resize(image, (width, height), interpolation=how)
    return np.asarray(picture, np.uint8), scale


def sheet(
    images: Sequence[Image], columns: int = 4, *, side: int = 320, gap: int = 6
) -> Image:
    """Lay images out in rows on white, each made to fit a square of `side` pixels.

    Raises ValueError where there is no image.

    >>> sheet([np.zeros((40, 80, 3), np.uint8)] * 3, columns=2, side=50, gap=2).shape
    (56, 106, 3)
    """
    if not images:
        raise ValueError("images is empty: a sheet needs at least one")
    small = [_fit(image, side) for image in images]
    rows = [small[i : i + columns] for i in range(0, len(small), columns)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    width = gap + min(columns, len(small)) * (side + gap)
    page = np.full((gap + sum(h + gap for h in heights), width, 3), 255, np.uint8)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for n, image in enumerate(row):
            h, w = image.shape[:2]
            y, x = top + (height - h) // 2, gap + n * (side + gap) + (side - w) // 2
            page[y : y + h, x : x + w] = image
        top += height + gap
    return page


def _fit(image: Image, side: int) -> Image:
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(s * scale)) for s in image.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)


def _corners(boxes: Boxes, scale: float, picture: Image) -> list[list[int]]:
    """First and last pixel of each box, inside the picture."""
    if not np.isfinite(boxes).all():
        row = int(np.argmin(np.isfinite(boxes).all(-1)))
        raise ValueError(f"boxes[{row}] is {boxes[row]}: draw finite boxes only")
    height, width = picture.shape[:2]
    pixels = np.rint(boxes * scale) - [0, 0, 1, 1]
    last = [width - 1, height - 1] * 2
    return np.clip(pixels, 0, last).astype(int).tolist()


def _lettering(picture: Image) -> tuple[float, int, int, int]:
    """Size and thickness of letters, their height above and below the line."""
    size = float(np.clip(min(picture.shape[:2]) / 1000, 0.36, 1.2))
    thick = max(1, round(size * 1.6))
    (_, rise), drop = cv2.getTextSize("Ag", FONT, size, thick)
    return size, thick, rise, drop


def _place(
    picture: Image, text: str, corners: list[int], line: int, taken: list[Place]
) -> Place:
    """Find where a label covers others least: on the box, inside, or under it."""
    height, width = picture.shape[:2]
    size, thick, rise, drop = _lettering(picture)
    w = cv2.getTextSize(text, FONT, size, thick)[0][0] + 2 * line + 2
    h = rise + drop + line // 2
    x1, y1, x2, y2 = corners
    places = [
        (min(max(x, 0), max(width - w, 0)), min(max(y, 0), max(height - h, 0)), w, h)
        for y in (y1 - line // 2 - h, y1 + line, y2 + 1 + line // 2, y2 - line - h)
        for x in (x1 - line // 2, x2 + 1 + line // 2 - w)
    ]
    return min(places, key=lambda place: sum(_common(place, t) for t in taken))


def _write(picture: Image, text: str, shade: Color, place: Place, line: int) -> None:
    """Write a label on the class' colour, black or white as stands out."""
    size, thick, _, drop = _lettering(picture)
    x, y, w, h = place
    cv2.rectangle(picture, (x, y), (x + w - 1, y + h - 1), shade, -1)
    ink = BLACK if np.dot(shade, (0.299, 0.587, 0.114)) > 140 else WHITE
    at = (x + line + 1, y + h - drop)
    cv2.putText(picture, text, at, FONT, size, ink, thick, cv2.LINE_AA)


def _common(a: Place, b: Place) -> int:
    """Count the pixels that two places share."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)


def _dashed(picture: Image, corners: Sequence[int], shade: Color, line: int) -> None:
    """Draw a black rectangle with dashes of the shade: seen on any ground."""
    x1, y1, x2, y2 = corners
    cv2.rectangle(picture, (x1, y1), (x2, y2), BLACK, line)
    points = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    for a, b in zip(points, points[1:] + points[:1], strict=True):
        steps = max(abs(b[0] - a[0]), abs(b[1] - a[1])) // (5 * line)
        marks = np.rint(np.linspace(a, b, max(steps, 1) + 1)).astype(int).tolist()
        for start, stop in list(zip(marks, marks[1:], strict=False))[::2]:
            cv2.line(picture, start, stop, shade, line)
