"""One HTML page about runs, for a browser without network.

python scripts/report.py runs/a runs/b --output=report.html
python scripts/report.py runs/demo --config.data.root=DIR --images=200

Reads what a run leaves behind (metrics.jsonl, config.json and an evaluation's
annotations_SPLIT.json and detections_SPLIT.json, of one split for all runs) and shows
curves, configurations, COCO metrics, precision over recall, the confusion matrix and
kinds of error, and a gallery of the evaluation's images with a slider for the score.
The images come from the run's data (`--config.data.root=DIR` where it has moved,
`--images=0` for none). The last line on stdout is one JSON object.
"""

import concurrent.futures
import json
import logging
import os
import pathlib
import time
from typing import Any

from absl import app, flags

from frcnn_jax.data import images
from frcnn_jax.data.example import decode
from frcnn_jax.data.source import image_ids
from frcnn_jax.evaluation import draw, files, report, results
from frcnn_jax.training import cli, metrics, propose, troubles
from frcnn_jax.training import config as configs

log = logging.getLogger("frcnn_jax.report")
OUTPUT = flags.DEFINE_string("output", "report.html", "The HTML file to write.")
IMAGES = flags.DEFINE_integer(
    "images",
    500,
    "The number of images in the gallery, from the first of the split.",
    lower_bound=0,
)
SIDE = flags.DEFINE_integer(
    "side", 320, "Pixels of the longer side of a gallery image.", lower_bound=16
)
TITLE = flags.DEFINE_string(
    "title", "", "The title of the page; default the names of the runs."
)
SPLIT = flags.DEFINE_string(
    "split", "", "Whose results; default the split that was evaluated last."
)
SET = cli.define_changes()


def read_run(folder: pathlib.Path, name: str, split: str) -> tuple[report.Run, Any]:
    """What lies in a run's folder, its results of one split, and its configuration."""
    if not (folder / "metrics.jsonl").exists():
        raise app.UsageError(
            f"{folder} has no metrics.jsonl: expected the --workdir of a run"
        )
    rows = metrics.read(folder / "metrics.jsonl")
    config = configs.from_json(json.loads((folder / "config.json").read_text()))
    configs.change(config, SET.value)
    config: Any = config
    run = report.Run(name=name, rows=rows, config=configs.leaves(config.to_dict()))
    there = results.found(folder)
    if split not in there:
        log.warning("%s has not been evaluated yet: curves only", folder)
        return run, config
    annotations = files.read_annotations(there[split].annotations)
    detections = files.read_detections(there[split].detections, annotations)
    about = results.about(annotations)
    shown = about.get("split", config.data.eval_split)
    if "split" not in about:
        log.warning(
            "%s was evaluated by an older version, which did not write down the split: "
            "it is taken for %r",
            *(folder, shown),
        )
    steps = [row["step"] for row in rows if row["group"] == "eval"]
    step = about.get("step", steps[-1] if steps else None)
    return run._replace(
        annotations=annotations, detections=detections, step=step, split=shown
    ), config


def choose_split(folders: list[pathlib.Path]) -> str:
    """The split that all evaluated runs have results of: --split, or the newest."""
    there = {folder: results.found(folder) for folder in folders}
    there = {folder: splits for folder, splits in there.items() if splits}
    wanted = results.file_name(SPLIT.value) if SPLIT.value else None
    for split in [wanted] if wanted else list(next(iter(there.values()), {})):
        if there and all(split in splits for splits in there.values()):
            return split
    if not there:
        return ""
    said = "; ".join(
        f"{folder}: {', '.join(s or 'one without a name' for s in splits)}"
        for folder, splits in there.items()
    )
    raise app.UsageError(
        f"the runs have no results of {SPLIT.value or 'the same split'}: {said}. "
        "Evaluate them on one, with scripts/evaluate.py --checkpoint=RUN --split=NAME"
    )


def read_pictures(run: report.Run, config: Any, failed: set) -> dict[Any, str]:
    """The gallery's images of a run by their ids; what fails is named."""
    if not IMAGES.value or run.annotations is None:
        return {}
    try:
        configs.check_code(config, SET.value)
        source = propose.source_of(config.data.to_dict(), run.split)
    except (OSError, ValueError) as error:
        log.warning("%s: no gallery, its data cannot be read: %s", run.name, error)
        return {}
    ids = image_ids(source)
    known = {image["id"] for image in run.annotations["images"]}
    chosen = [i for i in range(len(ids)) if ids[i] in known][: IMAGES.value]

    def encode(i: int) -> str | None:
        try:
            image = decode(source[i], **images.reading(**config.data))
            return report.data_uri(image, side=SIDE.value)
        except draw.FAILURES as error:
            log.error("%s: not in the gallery: %s", run.name, error)
            return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        pictures = list(pool.map(encode, chosen))
    failed.update(ids[i] for i, p in zip(chosen, pictures, strict=True) if not p)
    return {ids[i]: p for i, p in zip(chosen, pictures, strict=True) if p}


def short_names(folders: list[pathlib.Path]) -> list[str]:
    """The folders' names, with their parents' where these are the same."""
    parts = [folder.resolve().parts for folder in folders]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-n:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise app.UsageError(f"a run is named twice among {[str(f) for f in folders]}")


def main(argv):
    if not argv[1:]:
        raise app.UsageError("name the folders of one or more runs")
    metrics.log_to_stderr()
    output = troubles.prepare_file(OUTPUT.value)
    start = time.perf_counter()
    folders = [pathlib.Path(name) for name in argv[1:]]
    split, failed = choose_split(folders), set()
    runs, pictures, read = [], [], {}
    for folder, name in zip(folders, short_names(folders), strict=True):
        run, config = read_run(folder, name, split)
        runs.append(run)
        key = config.data.to_json() if run.annotations else name
        if key not in read:  # runs on the same data show the same images
            read[key] = read_pictures(run, config, failed)
        known = {image["id"] for image in (run.annotations or {"images": []})["images"]}
        pictures.append({i: p for i, p in read[key].items() if i in known})
    page = report.render(runs, pictures, title=TITLE.value)
    output.write_text(page, encoding="utf-8")
    seconds = time.perf_counter() - start
    size = output.stat().st_size
    shown = len(set().union(*pictures))
    of = f" of {runs[0].split}" if runs[0].split else ""
    print(f"{len(runs)} runs, {shown} images{of}, {size / 1e6:.1f} MB, {seconds:.1f} s")
    splits = sorted({run.split for run in runs if run.split})
    about = dict(output=str(output), runs=len(runs), images=shown, bytes=size)
    print(json.dumps(dict(about, splits=splits)))
    if failed:
        raise troubles.Partly(f"{len(failed)} images are not in the gallery")


if __name__ == "__main__":
    cli.run(main, takes="runs")
