r"""The pictures of docs/walkthrough.md: what the parts of Faster R-CNN do to an image.

python docs/make_walkthrough.py runs/paper_joint photo.jpg --output=docs/images

Takes the checkpoint of any FasterRCNN and one photo, and leaves walkthrough_*.jpg:
anchors, objectness, offsets, proposals before and after NMS, one RoI pooled, and
detections. What can be counted is printed; the last line on stdout is one JSON object.
"""

import json
import math
import pathlib
import sys

import cv2
import jax
import numpy as np
from absl import app, flags

from frcnn_jax.data import images
from frcnn_jax.detector import load, predict_batch
from frcnn_jax.evaluation import draw
from frcnn_jax.models import FasterRCNN
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.training import cli, devices
from frcnn_jax.training.algorithms.faster_rcnn import rpn_proposals

OUTPUT = flags.DEFINE_string("output", "docs/images", "The folder for the pictures.")
SHOWN = flags.DEFINE_integer("shown", 40, "How many proposals are drawn.")
SCORE = flags.DEFINE_float("score", 0.5, "The least score of a detection.")
RED, BLUE, GREEN, GRAY = (220, 40, 40), (40, 90, 220), (30, 150, 60), (170, 170, 170)


def look(detector, batch):
    """The maps, what the RPN says of every anchor, and proposals, before NMS and after.

    Everything of the one image in `batch`.
    """
    group = detector.config.proposals.eval.to_dict()

    def run(variables, batch):
        def method(model):
            out = model.rpn(model.normalize(batch.image, batch.image_size))
            found = [
                rpn_proposals(out, batch.image_size, **{**group, **changes})
                for changes in (dict(nms_iou=1.0, post_nms=SHOWN.value), {})
            ]
            logits = out.logits
            if logits.ndim == 3:
                logits = logits[..., 1] - logits[..., 0]
            scores = jax.nn.sigmoid(logits)
            return out.features, out.anchors[0], scores, out.deltas, *found

        return detector.model.apply(variables, method=method)

    return jax.device_get(jax.jit(run)(detector.variables, batch))


def pool(detector, features, box):
    """One RoI, `[o, o, channels]`."""
    pooled = detector.model.pool(features, box[None, None])
    return np.asarray(pooled)[0, 0]


def rectangle(picture, box, color, width=2):
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    cv2.rectangle(picture, (x1, y1), (x2, y2), color, width, cv2.LINE_AA)


def titled(picture, text):
    """The picture under a white strip with a line of text."""
    strip = np.full((30, picture.shape[1], 3), 255, np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(strip, text, (6, 21), font, 0.55, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate([strip, picture])


def beside(*pictures):
    gap = np.full((pictures[0].shape[0], 8, 3), 255, np.uint8)
    row = [pictures[0]]
    for picture in pictures[1:]:
        row += [gap, picture]
    return np.concatenate(row, axis=1)


def heat(values, size):
    """A map of 0..1 as colours, every cell a square."""
    h, w = size
    grey = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
    grey = cv2.resize(grey, (w, h), interpolation=cv2.INTER_NEAREST)
    return cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[..., ::-1]


def draw_anchors(photo, levels, scale):
    """The places of each map, and the anchors of the one in the middle."""
    panels = []
    for stride, (h, w, anchors) in levels.items():
        picture = (photo * 0.6 + 255 * 0.4).astype(np.uint8)
        middle = anchors[h // 2, w // 2] * scale
        centers = (anchors[..., 0, :2] + anchors[..., 0, 2:]) / 2 * scale[:2]
        for x, y in centers.reshape(-1, 2):
            cv2.circle(picture, (round(x), round(y)), 1, BLUE, -1)
        for box in middle:
            rectangle(picture, box, RED)
        k = anchors.shape[2]
        panels.append(titled(picture, f"stride {stride}: {h} x {w} x {k} anchors"))
    return beside(*panels)


def draw_scores(photo, levels, scores):
    """The best score of the anchors of each place, over the photo."""
    panels = []
    for stride, (_, _, anchors) in levels.items():
        colors = heat(scores[stride].max(-1), photo.shape[:2])
        picture = cv2.addWeighted(photo, 0.35, np.ascontiguousarray(colors), 0.65, 0)
        title = f"stride {stride}, best of {anchors.shape[2]} anchors"
        panels.append(titled(picture, title))
    return beside(*panels)


def draw_offsets(photo, anchors, deltas, scores, stds, scale):
    """The best anchors that lie apart, and where their offsets move them."""
    kept = []
    for i in np.argsort(-scores):
        if all(iou(anchors[i], anchors[j]) < 0.1 for j in kept):
            kept.append(i)
        if len(kept) == 8:
            break
    moved = np.asarray(box_ops.decode(deltas[kept], anchors[kept], stds=stds))
    picture = photo.copy()
    for before, after in zip(anchors[kept] * scale, moved * scale, strict=True):
        rectangle(picture, before, BLUE, 1)
        rectangle(picture, after, RED)
        start, end = (
            (round(float(b[0] + b[2]) / 2), round(float(b[1] + b[3]) / 2))
            for b in (before, after)
        )
        cv2.arrowedLine(picture, start, end, RED, 2, cv2.LINE_AA)
    return titled(picture, "blue: anchor, red: anchor moved by its offsets")


def draw_proposals(photo, before, after, scale):
    panels = []
    for found, text in ((before, "before NMS"), (after, "after NMS")):
        boxes = found.boxes[0][found.valid[0]][: SHOWN.value]
        picture = photo.copy()
        for box in boxes[::-1]:
            rectangle(picture, box * scale, RED, 1)
        panels.append(titled(picture, f"the best {len(boxes)} {text}"))
    return beside(*panels)


def draw_pooling(photo, box, pooled, scale):
    """The RoI with its cells, and the four channels that answer most."""
    picture, size = photo.copy(), pooled.shape[0]
    x1, y1, x2, y2 = box * scale
    for i in range(1, size):
        x, y = (round(float(a + (b - a) * i / size)) for a, b in ((x1, x2), (y1, y2)))
        cv2.line(picture, (x, round(float(y1))), (x, round(float(y2))), GRAY, 1)
        cv2.line(picture, (round(float(x1)), y), (round(float(x2)), y), GRAY, 1)
    rectangle(picture, box * scale, RED)
    margin = 0.6 * max(x2 - x1, y2 - y1)
    h, w = photo.shape[:2]
    left, right = round(max(x1 - margin, 0)), round(min(x2 + margin, w))
    top, bottom = round(max(y1 - margin, 0)), round(min(y2 + margin, h))
    cut = cv2.resize(picture[top:bottom, left:right], (300, 300))
    panels = [titled(cut, f"one RoI, {size} x {size} cells")]
    spread = pooled.std((0, 1))
    for channel in np.argsort(-spread)[:3]:
        values = pooled[..., channel]
        values = (values - values.min()) / max(float(np.ptp(values)), 1e-6)
        title = f"channel {channel} of {pooled.shape[-1]}"
        panels.append(titled(heat(values, (300, 300)), title))
    return beside(*panels)


def iou(a, b):
    return float(np.asarray(box_ops.iou(a[None], b[None]))[0, 0])


def by_level(detector, features, anchors, scores):
    """Anchors and scores as maps, `{stride: ...}`."""
    levels, score_maps, start = {}, {}, 0
    k = detector.model.rpn_head.num_anchors
    for stride in sorted(detector.model.levels):
        rows, columns = features[stride].shape[1:3]
        part = slice(start, start + rows * columns * k)
        levels[stride] = rows, columns, anchors[part].reshape(rows, columns, k, 4)
        score_maps[stride] = scores[0, part].reshape(rows, columns, k)
        start += rows * columns * k
    return levels, score_maps


def save(pictures):
    """Writes `{name: picture}`, no wider than a page."""
    for name, picture in pictures.items():
        wide = picture.shape[1]
        if wide > 1300:  # pages are not wider
            new = (1300, math.ceil(picture.shape[0] * 1300 / wide))
            picture = cv2.resize(picture, new, interpolation=cv2.INTER_AREA)
        path = pathlib.Path(OUTPUT.value) / f"walkthrough_{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.save_image(path, picture)
        print(path, f"{path.stat().st_size // 1024} KB", file=sys.stderr)


def main(argv):
    if len(argv) != 3:
        raise app.UsageError("expected two arguments: CHECKPOINT IMAGE")
    devices.keep_compiled()
    detector = load(argv[1])
    if not isinstance(detector.model, FasterRCNN):
        raise app.UsageError(f"{argv[1]} is a FastRCNN: it has no RPN to look at")
    photo = images.load_image(argv[2])
    c = detector.config
    pixels, size = images.prepare(
        photo,
        short_side=c.data.short_side,
        max_side=c.data.max_side,
        canvas=c.data.canvas,
    )
    batch = predict_batch(pixels[None], np.array([size], np.int32))
    features, anchors, scores, deltas, before, after = look(detector, batch)
    h, w = np.array(photo.shape[:2]) / size
    scale = np.array([w, h, w, h])

    levels, score_maps = by_level(detector, features, anchors, scores)
    found = detector([photo])
    good = found.valid[0] & (found.scores[0] >= SCORE.value)
    # The largest detection: the one whose cells can be seen.
    boxes = found.boxes[0][good]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    box = boxes[np.argmax(areas)] / scale if len(boxes) else after.boxes[0, 0]
    pooled = pool(detector, features, np.float32(box))
    pictures = dict(
        anchors=draw_anchors(photo, levels, scale),
        scores=draw_scores(photo, levels, score_maps),
        offsets=draw_offsets(
            photo, anchors, deltas[0], scores[0], c.rpn_targets.stds, scale
        ),
        proposals=draw_proposals(photo, before, after, scale),
        pooling=draw_pooling(photo, box, pooled, scale),
        detections=draw.draw(
            photo,
            boxes,
            found.classes[0][good],
            found.scores[0][good],
            names=detector.classes,
        ),
    )
    save(pictures)
    facts = dict(
        image=pathlib.Path(argv[2]).name,
        network_size=[int(x) for x in size],
        maps={str(s): [h, w] for s, (h, w, _) in levels.items()},
        anchors_per_place=detector.model.rpn_head.num_anchors,
        anchors=len(anchors),
        proposals=int(after.valid.sum()),
        detections=len(boxes),
        roi=[round(float(v), 1) for v in box],
    )
    for name, value in facts.items():
        print(f"{name:18} {value}")
    print(json.dumps(facts))


if __name__ == "__main__":
    cli.run(main, takes="CHECKPOINT IMAGE")
