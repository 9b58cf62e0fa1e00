r"""Whether the named detectors have their published AP on COCO val2017 with this code.

python scripts/verify_zoo.py --coco=COCO detectron2/faster_rcnn_R_50_FPN_3x
python scripts/verify_zoo.py --coco=COCO          # all, a download for each
python scripts/verify_zoo.py --page=docs/zoo.md   # the page alone

`--coco` is a folder with `val2017/` and `annotations/`. Each name is downloaded,
evaluated, and compared: ours beside the published box AP in %, the minutes, and
"verified" where they are within 0.1. Results are added to `--results` after each, and
`--page` is written from them: a row without a result is "not verified". What fails is
named, and the exit code is then 1. The last line on stdout is one JSON object.
"""

import json
import logging
import pathlib
import tempfile
import time
from typing import Any

import jax
from absl import app, flags

from frcnn_jax import _version
from frcnn_jax.evaluation import coco
from frcnn_jax.training import cli, devices, evaluate, troubles
from frcnn_jax.training.metrics import log_to_stderr
from frcnn_jax.weights import zoo

log = logging.getLogger("frcnn_jax.verify_zoo")
COCO = flags.DEFINE_string("coco", "", "The folder of COCO 2017.")
RESULTS = flags.DEFINE_string("results", "docs/zoo.json", "Where results are kept.")
PAGE = flags.DEFINE_string("page", "", "A Markdown page to write from the results.")
BATCH = flags.DEFINE_integer("batch_size", 1, "Images of one batch.", lower_bound=1)
SPLIT = flags.DEFINE_string("split", "val2017", "The split to evaluate on.")
WITHIN = 0.1  # AP in %

HEAD = """# The named detectors

<!-- Written by `python scripts/verify_zoo.py --page=docs/zoo.md`. -->

`load(NAME)` downloads and reads each of these; of Mask and Keypoint R-CNN it is the box branch. AP is box AP on COCO val2017 in %, for keypoint detectors of the class person: as published, and as this code has measured it with the published file. "not verified" means that nobody has run it yet:

```
python scripts/verify_zoo.py --coco=COCO NAME ...
```

"""  # noqa: E501


def verify(entry: zoo.Entry) -> dict[str, Any]:
    """Ours and the published AP of a row, and how it was found."""
    start = time.perf_counter()
    changes = [f"data.root={COCO.value}", f"data.eval_split={SPLIT.value}"]
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate.evaluate_checkpoint(
            entry.name,
            folder,
            changes=[*changes, f"eval_batch_size={BATCH.value}"],
        )
    ours = 100 * coco.evaluate(found.annotations, found.detections)["AP"]
    return dict(
        ours=round(ours, 2),
        published=entry.ap,
        verdict="verified" if abs(ours - entry.ap) <= WITHIN + 1e-9 else "differs",
        minutes=round((time.perf_counter() - start) / 60, 1),
        images=len(found.annotations["images"]),
        split=SPLIT.value,
        device=jax.devices()[0].device_kind,
        version=_version.__version__,
    )


def read_results() -> dict[str, dict[str, Any]]:
    """What was found before."""
    path = pathlib.Path(RESULTS.value)
    return json.loads(path.read_text()) if path.is_file() else {}


def page(results: dict[str, dict[str, Any]]) -> str:
    """The text of docs/zoo.md."""
    lines = [
        "| name | published AP | ours | | MiB | digest | licence |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in zoo.TABLE:
        found = results.get(entry.name)
        ours, said = ("", "not verified") if not found else _cells(found)
        size = f"{entry.mib:.0f}" if entry.mib else ""
        lines.append(
            f"| [`{entry.name}`]({entry.url}) | {entry.ap} | {ours} | {said} | {size} "
            f"| `{entry.digest}` | {entry.licence} |"
        )
    return HEAD + "\n".join(lines) + "\n"


def _cells(found: dict[str, Any]) -> tuple[str, str]:
    said = f"{found['verdict']} ({found['device']}, {found['minutes']} min)"
    return f"{found['ours']:.2f}", said


def write_page(results: dict[str, dict[str, Any]]) -> None:
    if PAGE.value:
        pathlib.Path(PAGE.value).write_text(page(results), encoding="utf-8")


def main(argv):
    log_to_stderr()
    names = argv[1:] or [entry.name for entry in zoo.TABLE]
    if unknown := [name for name in names if zoo.find(name) is None]:
        near = zoo.similar(unknown[0])
        raise app.UsageError(
            f"{unknown[0]} is no name of the table; "
            + (f"did you mean {' or '.join(near)}? " if near else "")
            + "`python -m frcnn_jax.weights` lists them"
        )
    if PAGE.value:
        troubles.prepare_file(PAGE.value)
    if COCO.value:
        troubles.prepare_file(RESULTS.value)
    results = read_results()
    if not COCO.value:
        if not PAGE.value:
            raise app.UsageError("give --coco=DIR to evaluate, or --page alone")
        write_page(results)
        print(json.dumps({name: results.get(name) for name in names}))
        return
    devices.keep_compiled()
    failed = []
    for name in names:
        entry = zoo.find(name)
        assert entry is not None
        try:
            results[name] = verify(entry)
        except (OSError, ValueError, FloatingPointError) as error:
            if troubles.is_of_the_disk(error):
                raise
            log.error("%s: %s", name, error)
            failed.append(name)
            continue
        path = pathlib.Path(RESULTS.value)
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        found = results[name]
        print(
            f"{name}: ours {found['ours']:.2f}, published {found['published']}, "
            f"{found['minutes']} min, {found['verdict']}"
        )
    write_page(results)
    print(json.dumps({name: results.get(name) for name in names}))
    if failed:
        raise troubles.Partly(f"{len(failed)} of {len(names)} failed: {failed}")


if __name__ == "__main__":
    cli.run(main, takes="names")
