r"""Ours and torchvision's R50-FPN trained side by side: same set, weights and recipe.

    make peer
    python tests/parity/compare_training.py \
        --config=experiments/bccd_r50_fpn.py:runlocal \
        --workdir=runs/side_by_side --config.data.root=BCCD_FOLDER \
        --config.model.backbone.pretrained=resnet50_imagenet_keras_fp16.npz \
        --config.total_steps=560

Everything that both sides share is written to WORKDIR/shared first: the images of both
splits as they were read, one set of initial weights (heads included), and the recipe:
steps, batch, rates, decay, frozen layers, sizes, mirroring, samples, proposals. Then
each trains in its own environment, ours in WORKDIR/ours, torchvision in
WORKDIR/torchvision, and COCO metrics of both are computed by the same code. Called
again it goes on where it was cut off, on either side; `--only` runs one of them.

What stays each side's own: anchors (torchvision rounds them), RoIAlign (ours is
aligned), resizing (bytes here, floats there) and the order of examples. The last line
on stdout is one JSON object.
"""

import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

import jax
import optax
from absl import flags

from frcnn_jax import models, weights
from frcnn_jax.data.images import canvases
from frcnn_jax.data.source import Source
from frcnn_jax.data.sources import coco
from frcnn_jax.evaluation import coco as metrics
from frcnn_jax.evaluation import files
from frcnn_jax.training import checkpoint, cli
from frcnn_jax.training import config as configs
from frcnn_jax.training.evaluate import build_data
from frcnn_jax.training.loop import train_and_evaluate
from frcnn_jax.training.metrics import log_to_stderr
from frcnn_jax.training.state import init_variables, initial_state
from frcnn_jax.weights import torchvision
from frcnn_jax.weights.files import write_npz

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

CONFIG = cli.define_config("An FPN experiment.")
WORKDIR = flags.DEFINE_string("workdir", None, "A folder.", required=True)
PEER = flags.DEFINE_string(
    "peer", str(ROOT / ".venv-peer/bin/python"), "A Python with torch and torchvision."
)
ONLY = flags.DEFINE_enum(
    "only", "both", ["both", "ours", "torchvision"], "Which side to train."
)


def share(c: dict[str, Any], folder: pathlib.Path) -> None:
    """Write data, recipe and initial weights once; later calls find them.

    ValueError where a later call has another configuration: each side would train by
    its own.
    """
    if (folder / "recipe.json").exists():
        kept = json.loads((folder / "recipe.json").read_text())
        del kept["initial"], kept["folder"]
        configs.check_resumed(configs.from_json(kept), CONFIG.value)
        return
    folder.mkdir(parents=True, exist_ok=True)
    data = build_data(c)
    for name, source in (("train", data.train), ("eval", data.eval)):
        found = coco.to_coco(source)
        for image, path in zip(found["images"], paths(source), strict=True):
            image["path"] = path
        (folder / f"{name}.json").write_text(json.dumps(found))
    model = models.build_detector(num_classes=len(data.train.classes), **c["model"])
    key, shape = jax.random.key(c["seed"]), (*canvases(c["data"]["canvas"])[0], 3)
    variables = init_variables(key, shape, model=model)
    if file := c["model"]["backbone"].get("pretrained"):
        variables = weights.load_backbone(file, variables)
    write_npz(folder / "initial.npz", torchvision.export_detector(variables))
    state = initial_state(
        key, shape, model=model, optimizer=optax.identity(), variables=variables
    )
    with checkpoint.manager(folder / "initial") as writer:
        checkpoint.save(
            writer,
            state,
            config=CONFIG.value,
            classes=data.train.classes,
            category_ids=data.train.category_ids,
        )
    recipe = dict(c, initial=str(folder / "initial.npz"), folder=str(folder))
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2))


def paths(source: Source) -> list[str]:
    """The image files; ValueError for a source that has none."""
    found = []
    for example in source.examples:
        if not isinstance(example.image, str):
            raise ValueError("the data must be image files, as of a VOC or COCO folder")
        found.append(str(pathlib.Path(example.image).absolute()))
    return found


def train_ours(folder: pathlib.Path, workdir: pathlib.Path) -> None:
    """Train from the shared weights; both sides have the same ones then."""
    CONFIG.value.init_from = str(folder / "initial")
    CONFIG.value.model.backbone.pretrained = ""
    train_and_evaluate(CONFIG.value, workdir)


def train_peer(folder: pathlib.Path, workdir: pathlib.Path) -> None:
    script = str(ROOT / "tests/parity/peer_training.py")
    recipe = str(folder / "recipe.json")
    subprocess.run([PEER.value, script, recipe, str(workdir)], check=True)


def seconds_of(workdir: pathlib.Path, batch_size: int) -> float | None:
    """Median seconds of a step of our run, from what it logged; None if too short."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    speeds = [r["images_per_second"] for r in rows if r.get("images_per_second")]
    return batch_size / statistics.median(speeds) if speeds else None


def main(_):
    log_to_stderr()
    c = configs.check(CONFIG.value)
    workdir = pathlib.Path(WORKDIR.value).absolute()
    folder = workdir / "shared"
    share(c, folder)
    annotations = json.loads((folder / "eval.json").read_text())
    result: dict[str, Any] = {}
    for name, train in (("ours", train_ours), ("torchvision", train_peer)):
        if ONLY.value not in ("both", name):
            continue
        train(folder, workdir / name)
        detections = files.read_detections(
            next((workdir / name).glob("detections*.json")), annotations
        )
        scores = metrics.evaluate(annotations, detections)
        print(f"{name}\n{metrics.format_table(scores)}")
        result[name] = {k: v for k, v in scores.items() if isinstance(v, float)}
    if "torchvision" in result:
        times = json.loads((workdir / "torchvision" / "times.json").read_text())
        result["torchvision"]["seconds_a_step"] = times["seconds_a_step"]
    if "ours" in result:
        result["ours"]["seconds_a_step"] = seconds_of(workdir / "ours", c["batch_size"])
    if len(result) == 2:
        gap = result["ours"]["AP"] - result["torchvision"]["AP"]
        print(f"AP of ours - AP of torchvision: {gap:+.3f}")
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
