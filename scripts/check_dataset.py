r"""Checks an experiment's data before training: counts, faults, sizes, anchors.

python scripts/check_dataset.py --config=experiments/bccd_r50_fpn.py:runlocal \
    --config.data.root=DIR --output=runs/check
python scripts/check_dataset.py --config=experiments/shapes_demo.py --nodecode

Both splits are read and every image decoded. Leaves `check.json` and `sheet.jpg`, a
sheet of pictures with their boxes, those with problems first, in `--output`. The last
line on stdout is one JSON object. Exit code: 0 nothing wrong, 1 problems were found
(named in the table), 2 the data cannot be loaded at all.
"""

import inspect
import json
import pathlib
import re
import sys
from typing import NoReturn

import cv2
import numpy as np
from absl import flags

from frcnn_jax import models
from frcnn_jax.data import check, images, pipeline
from frcnn_jax.data.example import decode
from frcnn_jax.data.source import Source
from frcnn_jax.evaluation import draw
from frcnn_jax.training import cli
from frcnn_jax.training import config as configs
from frcnn_jax.training.metrics import log_to_stderr

CONFIG = cli.define_config(
    "The experiment, e.g. experiments/bccd_r50_fpn.py.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "A folder for check.json and sheet.jpg.")
DECODE = flags.DEFINE_bool("decode", True, "Decode every image.")
PICTURES = flags.DEFINE_integer("pictures", 16, "The number of pictures on the sheet.")


def main(_):
    log_to_stderr()
    try:
        c = configs.resolve(CONFIG.value).to_dict()
    except (OSError, ValueError) as error:
        cannot_load(error)
    data = c["data"]
    known = inspect.signature(pipeline.build).parameters
    source_kwargs = {k: v for k, v in data.items() if k not in known}
    shape = {
        k: data[k]
        for k in ("short_side", "max_side", "canvas", "max_boxes", "on_overflow")
        if k in data
    }
    splits = dict.fromkeys((data["train_split"], data["eval_split"]))
    try:
        sources = {
            split: pipeline.load_source(data["name"], split=split, **source_kwargs)
            for split in splits
        }
    except (OSError, ValueError) as error:
        cannot_load(error)
    found = {}
    for split, source in sources.items():
        found[split] = check.check(
            source,
            anchors=anchors(c["model"], len(source.classes)),
            decode_images=DECODE.value,
            **shape,
        )
        print(check.table(found[split], title=f"{data['name']} {split}") + "\n")
    if shared := same_files(*sources.values()):
        first, last = found[data["train_split"]], found[data["eval_split"]]
        line = f"{len(shared)} files are in both splits: {', '.join(shared[:3])}"
        first["problems"].append(line)
        last["problems"].append(line)
        print(f"  {line}\n")
    problems = sum(len(f["problems"]) for f in found.values())
    if OUTPUT.value:
        output = pathlib.Path(OUTPUT.value)
        output.mkdir(parents=True, exist_ok=True)
        (output / "check.json").write_text(json.dumps(found, indent=2) + "\n")
        split = data["train_split"]
        picture = sheet(sources[split], found[split]["problems"], PICTURES.value)
        images.save_image(output / "sheet.jpg", picture)
        print(f"{output / 'check.json'}, {output / 'sheet.jpg'}")
    print(json.dumps(dict(problems=problems, splits=found)))
    sys.exit(1 if problems else 0)


def cannot_load(error: Exception) -> NoReturn:
    """Says why and ends."""
    print(f"cannot load the data: {error}")
    print(json.dumps(dict(problems=1, error=str(error))))
    sys.exit(2)


def anchors(model: dict, num_classes: int) -> list[tuple[int, np.ndarray]] | None:
    """Stride and boxes at the first cell of each level; None where a model has none."""
    place = getattr(
        models.build_detector(num_classes=num_classes, **model), "anchors", None
    )
    if place is None:
        return None
    options = inspect.signature(place).parameters
    strides = options["strides"].default
    levels = (options["levels"].default if "levels" in options else ()) or strides
    boxes = np.asarray(place(dict.fromkeys(levels, (1, 1))), np.float64)
    return list(zip(strides, np.split(boxes, len(strides)), strict=True))


def same_files(first: Source, second: Source | None = None) -> list[str]:
    """Files that both splits name."""
    paths = [
        {e.image for e in source or () if isinstance(e.image, str)}
        for source in (first, second)
    ]
    return sorted(paths[0] & paths[1])


def sheet(source: Source, problems: list[str], count: int) -> np.ndarray:
    """Pictures with their boxes: those that a problem names first, then some others."""
    words = {w for line in problems for w in re.split(r"[\s:,]+|/", line) if w}
    stems = {pathlib.PurePath(w).stem for w in words}

    def named(i):
        image = source[i].image
        name = image if isinstance(image, str) else str(source[i].image_id)
        return pathlib.PurePath(name).stem in stems

    bad = [i for i in range(len(source)) if problems and named(i)]
    rng = np.random.default_rng(0)
    others = [i for i in rng.permutation(len(source)).tolist() if i not in set(bad)]
    tiles = []
    for i in [*bad, *others]:
        if len(tiles) == count:
            break
        try:
            tiles.append(tile(source, i))
        except (OSError, ValueError):  # named in the table already
            continue
    if not tiles:
        return np.zeros((60, 60, 3), np.uint8)
    columns = min(4, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return np.vstack(rows)


def tile(source: Source, i: int, side: int = 360) -> np.ndarray:
    """One example with its boxes on a square; what is ignored is dashed."""
    e = source[i]
    image = decode(e)
    scale = side / max(image.shape[:2])
    h, w = (max(1, round(s * scale)) for s in image.shape[:2])
    picture = draw.draw(
        cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA),
        e.boxes[~e.ignore] * np.float32(scale),
        e.classes[~e.ignore],
        names=source.classes,
        truth=e.boxes[e.ignore] * np.float32(scale),
        truth_classes=e.classes[e.ignore],
    )
    return images.place(picture, (side, side))


if __name__ == "__main__":
    cli.run(main)
