"""One HTML page about runs: curves, metrics, errors and a gallery, all inside it.

    runs = [Run(name, rows, config, annotations, detections), ...]
    page = render(runs, pictures)

The page needs no network and no library: data is JSON inside it, drawn by the script
in `report.html`. Text from runs (names of classes, files, values) is only ever set as
text, so none of it is read as HTML.
"""

import base64
import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from frcnn_jax.evaluation import coco, draw, errors

BINS = 100  # of scores: the slider's steps
POINTS = 1000  # of a curve at most


class Run(NamedTuple):
    """What one run left behind."""

    name: str
    rows: list[dict]  # of metrics.jsonl
    config: dict[str, Any]  # leaves, "optimizer.learning_rate": 0.01
    annotations: dict | None = None  # COCO; both None for a run not evaluated yet
    detections: list[dict] | None = None
    step: int | None = None  # of the checkpoint that gave the detections
    split: str = ""  # of the data, as in "test"; "" where that is not known


def render(
    runs: Sequence[Run], pictures: Sequence[Mapping[Any, str]], *, title: str = ""
) -> str:
    """The page as text.

    `pictures` has a mapping for each run, from image ids to data URIs (`data_uri`);
    the gallery shows those images. Runs with the same annotations share them. Raises
    ValueError for malformed annotations or detections, and for runs of different
    splits, whose metrics do not belong into one table; KeyError for an image id that
    the annotations do not have.
    """
    splits = {run.name: run.split for run in runs if run.annotations is not None}
    if len(set(splits.values())) > 1:
        said = ", ".join(f"{name} of {split!r}" for name, split in splits.items())
        raise ValueError(
            f"the results are of different splits: {said}; evaluate all on the same"
        )
    sets: list[dict] = []
    known: dict[str, int] = {}
    shown = []
    for run, images in zip(runs, pictures, strict=True):
        entry: dict[str, Any] = dict(name=run.name, step=run.step, split=run.split)
        entry["curves"] = curves(run.rows)
        if run.annotations is not None and run.detections is not None:
            analysis = errors.analyse(run.annotations, run.detections)
            entry |= numbers(run, analysis)
            key = json.dumps([run.annotations, sorted(map(str, images))], default=str)
            if key not in known:
                known[key] = len(sets)
                sets.append(image_set(run.annotations, images))
            entry["set"] = known[key]
            entry |= gallery(run, analysis, images)
        shown.append(entry)
    names = list(dict.fromkeys(name for run in runs for name in run.config))
    table = [[name, *(_text(run.config.get(name)) for run in runs)] for name in names]
    data = dict(
        title=title or ", ".join(run.name for run in runs),
        runs=shown,
        sets=sets,
        config=sorted(table),
        kinds=[*errors.KINDS, "missed"],
    )
    page = importlib.resources.files("frcnn_jax.evaluation") / "report.html"
    before, after = page.read_text(encoding="utf-8").split("/*DATA*/")
    return before + _json(data) + after


def data_uri(image: UInt8[np.ndarray, "h w 3"], *, side: int = 320) -> str:
    """An RGB image as a JPEG data URI, its longer side at most `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale < 1:
        h, w = (max(1, round(s * scale)) for s in image.shape[:2])
        image = np.asarray(
            cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA), np.uint8
        )
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 78])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """`{"train/total": [[step, value], ...]}`, thinned to at most `POINTS` means.

    Evaluations of several splits are several curves: "eval/AP of val".
    """
    found: dict[str, list] = {}
    splits = {row["split"] for row in rows if "split" in row}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "group") and isinstance(value, int | float):
                place = f"{row['group']}/{name}"
                if len(splits) > 1 and "split" in row:
                    place += f" of {row['split']}"
                found.setdefault(place, []).append((row["step"], value))
    result = {}
    for name, points in found.items():
        parts = np.array_split(np.array(points, float), min(len(points), POINTS))
        means = [part.mean(0) for part in parts]
        result[name] = [[round(x), _short(y)] for x, y in means if math.isfinite(y)]
    return result


def numbers(run: Run, analysis: errors.Analysis) -> dict[str, Any]:
    """COCO's metrics, precision over recall, error gains and histograms over scores."""
    assert run.annotations is not None and run.detections is not None
    classes = len(run.annotations["categories"])
    curves = coco.precision_recall(run.annotations, run.detections)
    per_class = curves.pop("per_class")
    a = analysis
    bins = score_bins(a.score)
    counted = a.kind != errors.IGNORED
    true = np.full(len(a.kind), classes)
    true[a.paired >= 0] = a.category[a.paired[a.paired >= 0]]
    objects = ~a.ignore
    reached = np.maximum(a.found, a.touched)
    return dict(
        classes=[c["name"] for c in run.annotations["categories"]],
        result=coco.evaluate(run.annotations, run.detections),
        precision={k: [_short(p) for p in v] for k, v in curves.items()},
        precision_of={k: [_short(p) for p in v] for k, v in per_class.items()},
        gains={k: _short(v) for k, v in errors.gains(a, classes).items()},
        # [kind, score, how many]; missed are objects less those reached.
        kinds=_histogram(a.kind, bins),
        reached=_histogram(score_bins(reached[objects & (reached >= 0)])),
        # [true, predicted, score, how many], class C is background.
        confusion=_histogram(true[counted], a.predicted[counted], bins[counted]),
        objects=np.bincount(a.category[objects], minlength=classes).tolist(),
    )


def score_bins(scores: Float[np.ndarray, " n"]) -> np.ndarray:
    """The highest threshold k / 100 that each score reaches, as k.

    >>> score_bins(np.array([0.0, 0.5, 0.4999, 0.29, 1.0])).tolist()
    [0, 50, 49, 29, 100]
    """
    return np.clip(np.floor(scores * BINS + 1e-6), 0, BINS).astype(int)


def _histogram(*columns: np.ndarray) -> list[list[int]]:
    """Distinct rows and how often each occurs."""
    rows, number = np.unique(np.column_stack(columns), axis=0, return_counts=True)
    return np.column_stack([rows, number]).astype(int).tolist()


def image_set(annotations: dict, images: Mapping[Any, str]) -> dict[str, Any]:
    """Images of the gallery with their objects `[class, x, y, w, h, ignored]`."""
    entries = {image["id"]: image for image in annotations["images"]}
    position = {c["id"]: n for n, c in enumerate(annotations["categories"])}
    truth: dict[Any, list] = {i: [] for i in images}
    for a in annotations["annotations"]:
        if a["image_id"] in truth:
            ignored = int(bool(a.get("iscrowd", 0) or a.get("ignore", 0)))
            box = [round(float(v), 1) for v in a["bbox"]]
            truth[a["image_id"]].append([position[a["category_id"]], *box, ignored])
    return dict(
        classes=[c["name"] for c in annotations["categories"]],
        colors=["#" + bytes(draw.color(n + 1)).hex() for n in range(len(position))],
        images=[
            dict(
                name=str(entries[i].get("file_name", i)),
                width=entries[i].get("width", 0),
                height=entries[i].get("height", 0),
                source=source,
                truth=truth[i],
            )
            for i, source in images.items()
        ],
    )


def gallery(
    run: Run, analysis: errors.Analysis, images: Mapping[Any, str]
) -> dict[str, Any]:
    """Detections `[class, score, x, y, w, h, kind]` and objects by image.

    Of an object `[found, touched]`: scores as in `errors.Analysis`, cut to 3 decimals.
    """
    assert run.annotations is not None and run.detections is not None
    a = analysis
    boxes: dict[Any, list] = {i: [] for i in images}
    for n in np.argsort(-a.score, kind="stable"):
        entry = run.detections[n]
        if entry["image_id"] in boxes:
            box = [round(float(v), 1) for v in entry["bbox"]]
            row = [int(a.predicted[n]), _cut(float(a.score[n])), *box, int(a.kind[n])]
            boxes[entry["image_id"]].append(row)
    objects: dict[Any, list] = {i: [] for i in images}
    reached = np.column_stack([a.found, a.touched]).tolist()
    for entry, scores in zip(run.annotations["annotations"], reached, strict=True):
        if entry["image_id"] in objects:
            objects[entry["image_id"]].append([_cut(score) for score in scores])
    return dict(detections=list(boxes.values()), truth=list(objects.values()))


def _cut(score: float) -> float:
    """Never above the score, so that a threshold means the same everywhere."""
    return math.floor(score * 1000 + 1e-5) / 1000


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else repr(value)


def _json(data: Any) -> str:
    """JSON that cannot end the script it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
