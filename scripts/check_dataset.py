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
from typing import Any, NoReturn

import cv2
import numpy as np
from absl import flags

from frcnn_jax.data import anchor_fit, check, images, pipeline
from frcnn_jax.data.example import decode
from frcnn_jax.data.facts import facts_of
from frcnn_jax.data.source import Source
from frcnn_jax.data.validate import check_trainable
from frcnn_jax.evaluation import draw
from frcnn_jax.training import anchors, cli, recipe, troubles
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
    if OUTPUT.value:
        troubles.prepare_folder(OUTPUT.value)
    try:
        c, sources = load(CONFIG.value)
    except (OSError, ValueError) as error:
        cannot_load(error)
    data = c["data"]
    levels = anchors.levels(c["model"], len(next(iter(sources.values())).classes))
    keys = inspect.signature(check.check).parameters
    shape = {k: v for k, v in data.items() if k in keys}
    found = {}
    for split, source in sources.items():
        found[split] = check.check(
            source, anchors=levels, decode_images=DECODE.value, advise=False, **shape
        )
        print(check.table(found[split], title=f"{data['name']} {split}") + "\n")
    if levels and (suggested := suggest(list(sources.values()), data, levels)):
        print("\n".join(["  anchors for all splits:", *check.advice(suggested), ""]))
    if len(sources) > 1 and (twice := check.same_pictures(*sources.values())):
        names = ", ".join(" = ".join(dict.fromkeys(pair)) for pair in twice[:3])
        line = f"{len(twice)} pictures are in both splits: {names}"
        for split in sources:
            found[split]["problems"].append(line)
        print(f"  {line}\n")
    try:
        train = data["train_split"]
        check_trainable(sources[train], train)
    except ValueError as error:
        found[train]["problems"].append(str(error))
        print(f"  {error}\n")
    if OUTPUT.value:
        output = pathlib.Path(OUTPUT.value)
        known, source = found[train]["problems"], sources[train]
        how = images.reading(**data)
        picture, left_out = sheet(source, known, PICTURES.value, **how)
        for line in left_out:
            print(f"  not on the sheet: {line}")
        known += [
            f"not on the sheet: {line}"
            for line in left_out
            if not any(line in problem for problem in known)
        ]
        (output / "check.json").write_text(json.dumps(found, indent=2) + "\n")
        images.save_image(output / "sheet.jpg", picture)
        print(f"{output / 'check.json'}, {output / 'sheet.jpg'}")
    problems = sum(len(f["problems"]) for f in found.values())
    print(json.dumps(dict(problems=problems, splits=found)))
    sys.exit(1 if problems else 0)


def load(config: Any) -> tuple[dict, dict[str, Source]]:
    """The configuration without open leaves, and its splits as training takes them."""
    config = configs.resolve(config)
    if config.get("minutes"):
        config.minutes = 0.0  # nothing is timed here
    config, both = recipe.complete(config)
    c = config.to_dict()
    train, evaluation = both or pipeline.splits_of(c["data"])
    sources = {c["data"]["train_split"]: train}
    if c["data"]["eval_split"]:
        sources[c["data"]["eval_split"]] = evaluation
    return c, sources


def suggest(sources: list[Source], data: dict, levels: Any) -> dict | None:
    """Anchors that suit the objects of all splits; None without any object."""
    seen = [
        anchors.as_seen(facts_of(s), configs.leaves(dict(data=data))) for s in sources
    ]
    boxes, sizes = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    return anchor_fit.suggest(boxes, sizes, levels) if len(boxes) else None


def cannot_load(error: Exception) -> NoReturn:
    """Says why and ends."""
    print(f"cannot load the data: {error}")
    print(json.dumps(dict(problems=1, error=str(error))))
    sys.exit(2)


def sheet(
    source: Source, problems: list[str], count: int, **how: Any
) -> tuple[np.ndarray, list[str]]:
    """Pictures with their boxes: those that a problem names first, then some others.

    And a line for each that could not be drawn.
    """
    words = {w for line in problems for w in re.split(r"[\s:,]+|/", line) if w}
    stems = {pathlib.PurePath(w).stem for w in words}

    def named(i):
        image = source[i].image
        name = image if isinstance(image, str) else str(source[i].image_id)
        return pathlib.PurePath(name).stem in stems

    bad = [i for i in range(len(source)) if problems and named(i)]
    rng = np.random.default_rng(0)
    others = [i for i in rng.permutation(len(source)).tolist() if i not in set(bad)]
    tiles, left_out = [], []
    for i in [*bad, *others]:
        if len(tiles) == count:
            break
        try:
            tiles.append(tile(source, i, **how))
        except draw.FAILURES as error:
            left_out.append(str(error))
    if not tiles:
        return np.zeros((60, 60, 3), np.uint8), left_out
    columns = min(4, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return np.vstack(rows), left_out


def tile(source: Source, i: int, side: int = 360, **how: Any) -> np.ndarray:
    """One example with its boxes on a square; what is ignored is dashed."""
    e = source[i]
    image = decode(e, **how)
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
