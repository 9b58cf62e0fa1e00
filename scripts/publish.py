r"""A run as a folder for others: arrays, configuration, classes, a card, a report.

python scripts/publish.py runs/bccd --output=bccd-r50-fpn --licence=mit
python scripts/publish.py runs/bccd --output=bccd-r50-fpn --push=OWNER/bccd-r50-fpn

Leaves in `--output`

    model.safetensors   the best checkpoint's arrays
    frcnn_jax.json      configuration, classes and their ids, metrics, checksum
    README.md           the card: data, recipe, command, metrics by class
    report.html         the page of scripts/report.py, unless --noreport; it shows the
                        whole configuration, your paths too

`load(FOLDER)` reads it, and `load("hf:OWNER/NAME")` once it is on the hub, as do the
scripts that take a checkpoint. `--push` uploads it (huggingface_hub; log in with
`hf auth login`), `--private` to a private repository. Metrics by class need the results
of an evaluation in the run's folder (scripts/evaluate.py). The arguments may be any
detector that `load` takes. The last line on stdout is one JSON object.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

from absl import app, flags

from frcnn_jax.evaluation import coco, files, results
from frcnn_jax.training import checkpoint, cli, published, trained, troubles
from frcnn_jax.training import config as configs
from frcnn_jax.training.metrics import log_to_stderr

OUTPUT = flags.DEFINE_string("output", None, "The folder to make.", required=True)
TITLE = flags.DEFINE_string("title", "", "The card's title; default the folder's name.")
LICENCE = flags.DEFINE_string(
    "licence", "", "The licence of the weights, as the hub calls it: mit, apache-2.0."
)
COMMAND = flags.DEFINE_string(
    "command", "", "The command that trained it, for the card."
)
REPORT = flags.DEFINE_bool("report", True, "Whether to make report.html.")
PUSH = flags.DEFINE_string("push", "", "OWNER/NAME on the Hugging Face hub.")
PRIVATE = flags.DEFINE_bool("private", False, "Whether --push makes it private.")

RECIPE = (
    *("batch_size", "total_steps", "optimizer.name", "optimizer.learning_rate"),
    *("optimizer.schedule", "optimizer.weight_decay", "init_from", "frozen"),
    *("model.backbone.pretrained", "data.short_side", "data.max_side", "data.flip"),
)


def evaluated(folder: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """The split that a run was last evaluated on, and its metrics; none if never."""
    for split, where in results.found(folder).items():
        annotations = files.read_annotations(where.annotations)
        detections = files.read_detections(where.detections, annotations)
        name = results.about(annotations).get("split", split)
        return str(name), coco.evaluate(annotations, detections)
    return "", {}


def card(
    meta: checkpoint.Meta, split: str, found: dict[str, Any], names: list[str]
) -> str:
    """The text of README.md."""
    title = TITLE.value or pathlib.Path(OUTPUT.value).resolve().name
    c = configs.leaves(meta.config.to_dict())
    head = ["---", "library_name: frcnn_jax", "pipeline_tag: object-detection"]
    head += [f"license: {LICENCE.value}"] * bool(LICENCE.value)
    head += ["tags: [object-detection, faster-rcnn, jax, flax]", "---"]
    lines = [*head, f"# {title}", "", "Faster R-CNN of frcnn_jax (JAX and Flax).", ""]
    where = f"hf:{PUSH.value}" if PUSH.value else title
    lines += [
        "```python",
        "from frcnn_jax.detector import load",
        f'detections = load("{where}")(["photo.jpg"])',
        "```",
        "",
        f"## Classes\n\n{', '.join(meta.classes)}",
        "",
        *_table("Data", [k for k in c if k.startswith("data.") and _said(c[k])], c),
        *_table("Recipe", [k for k in RECIPE if _said(c.get(k))], c),
        f"Trained for {meta.step} steps; every value is in `{published.ABOUT}`.",
        "",
    ]
    if COMMAND.value:
        lines += ["```", COMMAND.value, "```", ""]
    lines += _metrics(split, found, meta.metrics)
    lines += ["## Files", "", *(f"- `{name}`" for name in names), ""]
    return "\n".join(lines)


def _said(value: Any) -> bool:
    return value not in (None, "", (), False)


def _table(title: str, names: list[str], leaves: dict[str, Any]) -> list[str]:
    rows = [f"| `{name}` | {_shown(leaves[name])} |" for name in names]
    return [f"## {title}", "", "| | |", "| --- | --- |", *rows, ""]


def _shown(value: Any) -> str:
    """A value; of a path its last part, which says nothing of whose machine it was."""
    text = str(value)
    return pathlib.PurePath(text).name if text.startswith(("/", "~")) else text


def _metrics(split: str, found: dict[str, Any], of_run: dict[str, float]) -> list[str]:
    if not found:
        rows = [f"| {k} | {v:.4f} |" for k, v in of_run.items() if k.startswith("AP")]
        said = "by the evaluations of its training" if rows else "it was not evaluated"
        return ["## Metrics", "", f"{said}:", "", "| | |", "| --- | --- |", *rows, ""]
    cells = {k: v for k, v in found.items() if isinstance(v, float)}
    lines = ["## Metrics", "", f"COCO's, on `{split}`.", ""]
    lines += ["| " + " | ".join(cells) + " |", "| --- " * len(cells) + "|"]
    lines += ["| " + " | ".join(f"{v:.3f}" for v in cells.values()) + " |", ""]
    lines += ["| class | AP | AP50 |", "| --- | --- | --- |"]
    for name, values in found["per_class"].items():
        shown = [values.get(k) for k in ("AP", "AP50")]
        text = ["-" if v is None else f"{v:.3f}" for v in shown]
        lines.append(f"| {name} | {' | '.join(text)} |")
    return [*lines, ""]


def make_report(run: pathlib.Path, output: pathlib.Path) -> bool:
    """The page of scripts/report.py, in a process of its own; whether there is one."""
    if not REPORT.value or not (run / "metrics.jsonl").is_file():
        return False
    script = pathlib.Path(__file__).with_name("report.py")
    done = subprocess.run(
        [sys.executable, str(script), str(run), f"--output={output / 'report.html'}"],
        capture_output=True,
        text=True,
    )
    if done.returncode not in (troubles.DONE, troubles.PARTLY):
        raise ValueError(
            f"the report of {run} was not made ({done.stderr.strip()[-300:]}): "
            "--noreport leaves it out"
        )
    return True


def push(folder: pathlib.Path) -> str:
    """Uploads the folder, and returns where it is."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    api.create_repo(PUSH.value, private=PRIVATE.value, exist_ok=True)
    done = api.upload_folder(
        repo_id=PUSH.value,
        folder_path=folder,
        commit_message="Published by frcnn_jax",
        allow_patterns=[published.ARRAYS, published.ABOUT, "README.md", "report.html"],
    )
    return str(done)


def main(argv):
    if len(argv) != 2:
        raise app.UsageError("name one run, or another detector that `load` takes")
    log_to_stderr()
    output = troubles.prepare_folder(OUTPUT.value)
    _, variables, meta, where = trained.load(argv[1])
    run = where.parents[1] if where.parent.name == "checkpoints" else where
    if any(output.iterdir()) and not published.is_published(output):
        raise app.UsageError(f"--output={output} is a folder with other files")
    split, found = evaluated(run) if run.is_dir() else ("", {})
    metrics = {k: v for k, v in found.items() if isinstance(v, float)}
    meta = meta._replace(metrics=metrics or meta.metrics)
    about = published.write(output, variables, meta, split=split)
    names = [published.ARRAYS, published.ABOUT, "README.md"]
    names += ["report.html"] * make_report(run, output)
    text = card(meta, split, found, names)
    card_file = output / published.CARD
    card_file.write_bytes(text.encode("utf-8", "backslashreplace"))
    size = (output / published.ARRAYS).stat().st_size
    print(f"{output}: {size / 1e6:.1f} MB, {', '.join(names)}")
    result = dict(output=str(output), bytes=size, sha256=about["sha256"], files=names)
    if PUSH.value:
        result["url"] = push(output)
        print(result["url"])
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main, takes="a run")
