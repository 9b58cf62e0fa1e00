"""How many objects a set of proposals covers: recall against IoU, and its average.

g objects of an image, p proposals, best first. Classes are not used; leave out objects
that are marked ignored.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

COUNTS = (100, 300, 1000, 2000)
IOUS = tuple(np.round(np.arange(0.5, 1.0, 0.05), 2).tolist())
Boxes = Float[np.ndarray, "_ 4"]


def covered(objects: Boxes, proposals: Boxes) -> Float[np.ndarray, " g"]:
    """The IoU at which each object is covered, 0 where no proposal is left for it.

    The best pair is taken out, then the best of the others, and so on: a proposal
    covers one object (as Detectron2 and Hosang et al. 2015 count).

    >>> objects = np.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]])
    >>> covered(objects, np.array([[0.0, 0.0, 4.0, 4.0]]))
    array([1., 0.])
    """
    iou = _iou(objects, proposals)
    found = np.zeros(len(objects))
    for _ in range(min(iou.shape)):
        i, j = np.unravel_index(np.argmax(iou), iou.shape)
        found[i] = iou[i, j]
        iou[i], iou[:, j] = -1, -1
    return np.maximum(found, 0)


def evaluate(
    images: Iterable[tuple[Boxes, Boxes]], *, counts: Sequence[int] = COUNTS
) -> dict:
    """Recall of the first 100, 300, ... proposals of every image.

    Args:
        images: objects and proposals, best first, of each image, in the same pixels.
        counts: how many proposals to take.

    Returns:
        `{"AR@100": mean recall over IoU .5:.05:.95, "R50@100": at .5, "R70@100": ...,
        "curves": {"100": recalls at .5, .55, ..., .95}, "objects", "proposals": mean
        number an image}`; recalls are None where there is no object.
    """
    best: dict[int, list] = {count: [] for count in counts}
    numbers = []
    for objects, proposals in images:
        numbers.append(len(proposals))
        for count in counts:
            best[count].append(covered(objects, proposals[:count]))
    result: dict = {}
    curves = {}
    for count in counts:
        ious = np.concatenate([np.zeros(0), *best[count]])
        recalls = (ious[None] >= np.array(IOUS)[:, None]).sum(1) / max(ious.size, 1)
        curve = recalls.tolist() if ious.size else [None] * len(IOUS)
        curves[str(count)] = curve
        result[f"AR@{count}"] = float(recalls.mean()) if ious.size else None
        for iou in (0.5, 0.7):
            result[f"R{100 * iou:.0f}@{count}"] = curve[IOUS.index(iou)]
        result["objects"] = len(ious)
    result["proposals"] = float(np.mean(numbers)) if numbers else 0.0
    return result | {"curves": curves}


def format_table(results: dict[str, dict]) -> str:
    """A line for each set of proposals and count: AR, then recall at every IoU.

    >>> nothing = [(np.zeros((1, 4)), np.zeros((0, 4)))]
    >>> table = format_table({"none": evaluate(nothing, counts=(10,))})
    >>> print(table[:45])
    proposals          AR  @0.50  @0.55  @0.60  @
    """
    labels = [f"{name} {c}" for name, r in results.items() for c in r["curves"]]
    width = max(16, *(len(label) + 1 for label in labels))
    head = " ".join(f"{f'@{iou:.2f}':>6}" for iou in IOUS)
    lines = [f"{'proposals':{width}} {'AR':>4} {head}"]
    for name, result in results.items():
        for count, recalls in result["curves"].items():
            cells = [result[f"AR@{count}"], *recalls]
            text = " ".join("     -" if v is None else f"{v:6.3f}" for v in cells)
            lines.append(f"{f'{name} {count}':{width}}{text[1:]}")
    return "\n".join(lines)


def plot(results: dict[str, dict]) -> UInt8[np.ndarray, "h w 3"]:
    """Recall against IoU as fig. 4 of the paper: a panel for each count, RGB."""
    counts = list(next(iter(results.values()))["curves"])
    panels = [_panel(results, count) for count in counts]
    return np.concatenate(panels, axis=1)


def _panel(results, count, size=360, margin=44):
    colors = [(200, 40, 40), (40, 90, 200), (30, 140, 60), (150, 80, 170)]
    image = np.full((size, size, 3), 255, np.uint8)
    span = size - 2 * margin

    def point(iou, recall):
        x, y = margin + (iou - 0.5) / 0.5 * span, size - margin - recall * span
        return round(x), round(y)

    def write(text, at, color=(60, 60, 60)):
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(image, text, at, font, 0.42, color, 1, cv2.LINE_AA)

    for i in range(6):
        iou, recall = 0.5 + i / 10, i / 5
        cv2.line(image, point(iou, 0), point(iou, 1), (225, 225, 225))
        cv2.line(image, point(0.5, recall), point(1, recall), (225, 225, 225))
        write(f"{iou:.1f}", (point(iou, 0)[0] - 10, size - margin + 16))
        write(f"{recall:.1f}", (margin - 28, point(0.5, recall)[1] + 4))
    write(f"{count} proposals", (margin, margin - 14))
    write("IoU", (size // 2 - 10, size - 10))
    for i, (name, result) in enumerate(results.items()):
        color = colors[i % len(colors)]
        recalls = [0.0 if r is None else r for r in result["curves"][count]]
        line = np.array([point(t, r) for t, r in zip(IOUS, recalls, strict=True)])
        cv2.polylines(image, [line.astype(np.int32)], False, color, 2, cv2.LINE_AA)
        write(name, (size // 2, margin + 18 + 16 * i), color)
    return image


def _iou(a, b):
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.maximum(high - low, 0).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b))
    return common / np.maximum(area_a[:, None] + area_b[None] - common, 1e-12)
