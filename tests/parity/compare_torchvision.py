r"""Ours against torchvision's detectors: same weights, same tensors, layer by layer.

One deep thing: weights that keep a detector busy, both sides, and what differs.

    make peer
    python tests/parity/compare_torchvision.py --model=r50_fpn --seeds=0:100
    python tests/parity/compare_torchvision.py --model=r50_fpn --training --steps=20
    python tests/parity/compare_torchvision.py --model=r50_fpn --training --float64
    python tests/parity/compare_torchvision.py --model=r50_fpn --wider=1.25

Each seed makes random weights under which the detectors have something to do: scores
and deltas are spread, so that NMS suppresses within levels and classes. The weights go
to torchvision's process as a state dict, and both sides get the same normalised
tensor, padded to a multiple of 32. Detections agree when count and labels are the same,
boxes within 0.01 pixels and scores within 1e-4; every seed where they do not is listed
with what explains it.

`--training` compares losses over SGD steps and the gradients of the first, on the
peer's samples; `--float64` computes both sides' networks in double precision, where no
ReLU changes sign by rounding. With `--wider` ours has a larger static canvas, with
noise beyond the padding to 32, and torchvision still has the image alone;
`compare_canvases.py` compares ours with itself on several canvases. The last line on
stdout is one JSON object.
"""

import functools
import importlib
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from frcnn_jax import losses, models, proposals
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops import matching
from frcnn_jax.training import cli
from frcnn_jax.weights import torchvision
from frcnn_jax.weights.files import write_npz

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from tests.parity.detections import (  # noqa: E402
    differing,
    features_apart,
    nearest_decision,
    ours_as_dict,
    picked,
    relative,
)
from tests.parity.random_weights import (  # noqa: E402
    on_canvas,
    random_image,
    random_weights,
)

EXPERIMENTS = {  # the peer's name: our experiment and its argument
    "r50_fpn": ("coco_r50_fpn_v1", ""),
    "r50_fpn_v2": ("coco_r50_fpn_v2", ""),
    "mobilenet_v3": ("coco_mobilenet_v3", ""),
    "mobilenet_v3_low": ("coco_mobilenet_v3", "low"),
    "convnext_t": ("coco_r50_fpn_v1", ""),  # with another backbone
    "swin_t": ("coco_r50_fpn_v1", ""),
}
BACKBONES = {
    "convnext_t": dict(name="convnext", out_norm=False),
    "swin_t": dict(name="swin", out_norm=False),
}
CLASSES = 90
# The last layers, and the deviation of their outputs that gives NMS something to do.
LOGITS, DELTAS = "rpn.head.cls_logits", "rpn.head.bbox_pred"
SCORES, BOXES = (f"roi_heads.box_predictor.{x}" for x in ("cls_score", "bbox_pred"))
DEVIATION = {LOGITS: 2.0, DELTAS: 0.2, SCORES: 2.5, BOXES: 1.0}

MODEL = flags.DEFINE_enum("model", "r50_fpn", list(EXPERIMENTS), "The detector.")
SEEDS = flags.DEFINE_string("seeds", "0:3", "FIRST:END.")
SIZES = flags.DEFINE_list(
    "sizes",
    ["300x400", "410x290", "224x480"],
    "HxW before padding, one a seed in turn.",
)
PEER = flags.DEFINE_string(
    "peer", str(ROOT / ".venv-peer/bin/python"), "A Python with torch and torchvision."
)
GOLDEN = flags.DEFINE_string("golden", None, "Keep the last seed's answer here.")
TRAINING = flags.DEFINE_bool("training", False, "Compare losses and gradients instead.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps of SGD to compare.")
RATE = flags.DEFINE_float("rate", 1e-5, "Their learning rate.")
FLOAT64 = flags.DEFINE_bool("float64", False, "Both networks in double precision.")
WIDER = flags.DEFINE_float(
    "wider",
    1.0,
    "Our canvas over the padded image: 1.25 is a quarter more.",
)


# -- What both sides are given ---------------------------------------------------------


def build(name: str, dtype: str = "float32") -> tuple[Any, dict[str, Any]]:
    """Our model of the experiment, and its configuration."""
    module, arg = EXPERIMENTS[name]
    experiment = importlib.import_module(f"experiments.{module}")
    config = experiment.get_config(arg).to_dict()
    if name in BACKBONES:
        config["model"]["backbone"] = BACKBONES[name]
    options = {**config["model"], "dtype": dtype}
    return models.build_detector(num_classes=CLASSES, **options), config


@functools.cache
def variables_of(name: str) -> dict[str, Any]:
    """The shapes of our model's variables."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return jax.eval_shape(build(name)[0].init, jax.random.key(0), image)


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the state dict that torchvision's model has."""
    zeros = jax.tree.map(
        lambda x: np.broadcast_to(np.float32(0), x.shape), variables_of(name)
    )
    return {k: v.shape for k, v in torchvision.export_detector(zeros).items()}


Spread = dict[str, tuple[np.ndarray, np.ndarray]]


def spread(weights: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> Spread:
    """Factors of rows and biases, by layer, that give outputs a useful deviation.

    `outputs` are what the layers `[..., c]` give under `weights`; means become 0.
    """
    found = {}
    for layer, output in outputs.items():
        x = output.reshape(-1, output.shape[-1]).astype(np.float64)
        scale, bias = DEVIATION[layer] / np.maximum(x.std(0), 1e-6), x.mean(0)
        if len(scale) < len(weights[f"{layer}.bias"]):  # no box of the background here
            scale, bias = (np.concatenate([np.zeros(4), a]) for a in (scale, bias))
        bias = (weights[f"{layer}.bias"] - bias) * scale
        found[layer] = (scale.astype(np.float32), bias.astype(np.float32))
    return found


def with_spread(weights: dict[str, np.ndarray], found: Spread) -> dict[str, np.ndarray]:
    """The weights with the last layers scaled and their biases replaced."""
    changed = dict(weights)
    for layer, (scale, bias) in found.items():
        weight = weights[f"{layer}.weight"]
        rows = scale.reshape(-1, *[1] * (weight.ndim - 1))
        changed |= {f"{layer}.weight": weight * rows, f"{layer}.bias": bias}
    return changed


# -- Our side --------------------------------------------------------------------------


@functools.cache
def compiled(name: str):
    """`features, rpn`, `detect` and `postprocess` of our model, jitted."""
    model, config = build(name)

    def rpn(variables, images, size):
        extent = model.extent(size[None])
        out = model.apply(variables, images, extent, method="rpn")
        props = proposals.select_proposals(
            *(out.anchors[0], out.logits[0], out.deltas[0], size, out.inside[0]),
            level_sizes=out.level_sizes,
            **config["proposals"]["eval"],
        )
        return out._replace(level_sizes=()), props

    def detect(variables, features, rois, size):
        extent = model.extent(size[None])
        arguments = features, rois[None], None, extent
        return model.apply(variables, *arguments, method="detect")

    def post(rois, valid, logits, deltas, size):
        return proposals.postprocess(
            *(rois, valid, logits, deltas, size), **config["postprocess"]
        )

    return model, config, jax.jit(rpn), jax.jit(detect), jax.jit(post)


def load(name: str, file: pathlib.Path) -> dict[str, Any]:
    """Our variables from a state dict."""
    return torchvision.load_detector(file, variables_of(name))[0]


def calibrated(
    name: str, seed: int, size: tuple[int, int], file: pathlib.Path
) -> Spread:
    """Write the weights of a seed as a state dict, spread on its image of `size`."""
    _, _, rpn, detect, _ = compiled(name)
    weights = random_weights(shapes_of(name), seed)
    image = random_image(seed, size)
    k = weights[f"{LOGITS}.bias"].size
    write_npz(file, weights)
    out, _ = rpn(load(name, file), image, jnp.array(size))
    logits, deltas = (np.asarray(x) for x in (out.logits, out.deltas))
    outputs = {LOGITS: logits.reshape(-1, k), DELTAS: deltas.reshape(-1, 4 * k)}
    first = spread(weights, outputs)
    write_npz(file, with_spread(weights, first))
    variables = load(name, file)  # the proposals follow from what the RPN says now
    out, props = rpn(variables, image, jnp.array(size))
    found = detect(variables, out.features, props.boxes, jnp.array(size))
    logits, deltas = (np.asarray(x)[0][np.asarray(props.valid)] for x in found)
    outputs = {SCORES: logits, BOXES: deltas.reshape(-1, 4 * CLASSES)}
    both = first | spread(weights, outputs)
    write_npz(file, with_spread(weights, both))
    return both


# -- The peer --------------------------------------------------------------------------


class Peer:
    """torchvision in a process of its own; requests and answers are .npz files."""

    def __init__(self, python: str, folder: pathlib.Path):
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            [python, str(ROOT / "tests/parity/peer_torchvision.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, **request: Any) -> dict[str, np.ndarray]:
        """The answer to a request, as arrays by name."""
        assert self.process.stdin is not None and self.process.stdout is not None
        path = self.folder / "request.npz"
        write_npz(path, request)
        print(path, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise RuntimeError("torchvision's process ended; its error is above")
        with np.load(answer) as file:
            return {name: file[name] for name in file.files}

    def close(self) -> None:
        """End the process, and close both its pipes."""
        self.process.communicate()


# -- Detections ------------------------------------------------------------------------


def compare_seed(
    name: str, seed: int, size: tuple[int, int], peer: Peer
) -> dict[str, Any]:
    """Deviations of all layers and the detections that differ, for one seed."""
    _, config, rpn, detect, post = compiled(name)
    weights = peer.folder / "weights.npz"
    found = calibrated(name, seed, size, weights)
    image = random_image(seed, size)
    theirs = peer(
        model=name,
        weights=str(weights),
        images=image.transpose(0, 3, 1, 2),
        sizes=np.array([size]),
    )
    if GOLDEN.value:
        write_golden(seed, size, found, theirs)
    variables, hw = load(name, weights), jnp.array(size)
    out, props = rpn(variables, on_canvas(image, seed, WIDER.value), hw)
    within = np.asarray(out.inside[0])
    row: dict[str, Any] = dict(seed=seed, size=size)
    row["anchors"] = relative(out.anchors[0][within], theirs["anchors"])
    row["features"] = features_apart(out.features, theirs)
    row["rpn_logits"] = relative(out.logits[:, within], theirs["rpn_logits"])
    row["rpn_deltas"] = relative(out.deltas[:, within], theirs["rpn_deltas"])
    # The second stage on the peer's proposals, so that its rows are the same.
    n, slots = len(theirs["proposals"]), len(props.boxes)
    rois = np.zeros((slots, 4), np.float32)
    rois[:n] = theirs["proposals"]
    logits, deltas = detect(variables, out.features, jnp.asarray(rois), hw)
    row["class_logits"] = relative(logits[0, :n], theirs["class_logits"])
    row["class_deltas"] = relative(deltas[0, :n], theirs["class_deltas"][:, 1:])
    logits, deltas = detect(variables, out.features, props.boxes, hw)
    ours = ours_as_dict(post(props.boxes, props.valid, logits[0], deltas[0], hw))
    row["proposals"], row["detections"] = n, len(theirs["boxes"])
    row["candidates"] = int((_softmax(theirs["class_logits"])[:, 1:] > 0.05).sum())
    row["differing"] = differing(ours, picked(theirs))
    if row["differing"]:
        row["differing_exact_nms"] = differing(ours, picked(theirs, "exact/"))
        same = detect(variables, out.features, jnp.asarray(rois), hw)
        valid = jnp.arange(slots) < n
        given = ours_as_dict(post(jnp.asarray(rois), valid, same[0][0], same[1][0], hw))
        row["differing_same_proposals"] = differing(given, picked(theirs))
        row["gaps"] = nearest_decision(ours, picked(theirs), config)
    return row


def write_golden(
    seed: int, size: tuple[int, int], found: Spread, answer: dict[str, np.ndarray]
) -> None:
    """What tests/test_torchvision_golden.py needs to repeat this without torch."""
    arrays: dict[str, Any] = dict(seed=seed, size=size, versions=answer["versions"])
    for layer, (scale, bias) in found.items():
        arrays |= {f"scale/{layer}": scale, f"bias/{layer}": bias}
    arrays |= {k: v[:, ::7, ::7, ::16] for k, v in answer.items() if "features" in k}
    arrays |= {k: answer[k][:, ::97] for k in ("rpn_logits", "rpn_deltas")}
    arrays |= {k: answer[k][::50] for k in ("class_logits", "class_deltas")}
    arrays |= {k: answer[k] for k in ("proposals", "boxes", "labels", "scores")}
    np.savez_compressed(str(GOLDEN.value), **arrays)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def image_sizes() -> list[tuple[int, int]]:
    """--sizes as (h, w)."""
    pairs = (text.split("x") for text in SIZES.value)
    return [(int(h), int(w)) for h, w in pairs]


def compare_detections(peer: Peer) -> dict[str, Any]:
    first, end = map(int, SEEDS.value.split(":"))
    sizes = image_sizes()
    rows = []
    for seed in range(first, end):
        row = compare_seed(MODEL.value, seed, sizes[seed % len(sizes)], peer)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    layers = (
        *("anchors", "features", "rpn_logits", "rpn_deltas"),
        *("class_logits", "class_deltas"),
    )
    summary: dict[str, Any] = dict(
        model=MODEL.value, seeds=len(rows), sizes=SIZES.value, wider=WIDER.value
    )
    summary |= {layer: max(row[layer] for row in rows) for layer in layers}
    for count in ("proposals", "candidates", "detections"):
        summary[count] = [f(row[count] for row in rows) for f in (min, max)]
    summary["equal"] = sum(not row["differing"] for row in rows)
    summary["exceptions"] = [row for row in rows if row["differing"]]
    return summary


# -- Training --------------------------------------------------------------------------


def training_batch(seed: int, sizes: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Images on one canvas and a few objects each."""
    rng = np.random.default_rng(seed)
    images = [random_image(seed + i, size) for i, size in enumerate(sizes)]
    h, w = (max(image.shape[axis] for image in images) for axis in (1, 2))
    canvas = np.zeros((len(images), h, w, 3), np.float32)
    boxes = np.zeros((len(images), 4, 4), np.float32)
    for i, (image, size) in enumerate(zip(images, sizes, strict=True)):
        canvas[i, : image.shape[1], : image.shape[2]] = image[0]
        corner = rng.uniform(0, 0.5, (4, 2)) * size[::-1]
        side = rng.uniform(0.1, 0.5, (4, 2)) * size[::-1]
        boxes[i] = np.concatenate([corner, corner + side], 1)
    labels = rng.integers(1, CLASSES + 1, (len(images), 4))
    return dict(images=canvas, sizes=np.array(sizes), boxes=boxes, labels=labels)


def our_losses(model: Any, variables: Any, batch: Any, sampled: Any) -> jax.Array:
    """The four losses for the peer's anchor labels, RoIs and RoI labels."""
    gt_valid = jnp.ones(batch["boxes"].shape[1], bool)

    def targets(boxes, gt_boxes, stds):
        matches = matching.match(
            *(boxes, gt_boxes, gt_valid), fg_iou=0.5, bg_iou=0.5, force_best=False
        )
        return box_ops.encode(gt_boxes[matches.gt_index], boxes, stds=stds)

    out = model.apply(variables, batch["images"], method="rpn")
    logits, deltas = model.apply(
        variables, out.features, sampled["rois"], method="detect"
    )
    anchor_deltas = jax.vmap(lambda g: targets(out.anchors[0], g, (1.0,) * 4))
    roi_deltas = jax.vmap(lambda r, g: targets(r, g, (0.1, 0.1, 0.2, 0.2)))
    rpn = losses.rpn_loss(
        *(out.logits, out.deltas, sampled["anchor_labels"]),
        anchor_deltas(batch["boxes"]),
        normalizer=(sampled["anchor_labels"] >= 0).sum(),
        beta=1 / 9,
    )
    roi = losses.detector_loss(
        *(logits, deltas, sampled["roi_labels"]),
        roi_deltas(sampled["rois"], batch["boxes"]),
        normalizer=(sampled["roi_labels"] >= 0).sum(),
        beta=1 / 9,
    )
    return jnp.stack([*rpn, *roi])


def compare_training(peer: Peer) -> dict[str, Any]:
    """Losses over the steps, and every gradient of the first, for one seed."""
    seed = int(SEEDS.value.split(":")[0])
    sizes = image_sizes()[:2]
    dtype = "float64" if FLOAT64.value else "float32"
    model, _ = build(MODEL.value, dtype)
    file = peer.folder / "weights.npz"
    calibrated(MODEL.value, seed, sizes[0], file)
    batch = training_batch(seed, sizes)
    theirs = peer(
        **dict(batch, images=batch["images"].transpose(0, 3, 1, 2)),
        **dict(
            model=MODEL.value, weights=str(file), steps=STEPS.value, rate=RATE.value
        ),
        dtype=dtype,
    )
    variables = load(MODEL.value, file)
    if FLOAT64.value:  # not before the proposals are made, whose indices are int32
        jax.config.update("jax_enable_x64", True)
        variables = jax.tree.map(lambda x: x.astype(np.float64), variables)
        batch = {
            k: v.astype(np.float64) if k == "images" else v for k, v in batch.items()
        }
    params, state = variables.pop("params"), variables

    @jax.jit
    def step(params, momentum, sampled):
        def total(params):
            terms = our_losses(model, {"params": params, **state}, batch, sampled)
            return terms.sum(), terms

        gradient, terms = jax.grad(total, has_aux=True)(params)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        params = jax.tree.map(lambda p, m: p - RATE.value * m, params, momentum)
        return params, momentum, gradient, terms

    momentum = jax.tree.map(jnp.zeros_like, params)
    worst, first, rows = 0.0, [], []
    for i in range(STEPS.value):
        names = ("anchor_labels", "rois", "roi_labels")
        sampled = {
            n: jnp.asarray(
                theirs[f"{n}/{i}"].astype(np.float32 if n == "rois" else int)
            )
            for n in names
        }
        params, momentum, gradient, terms = step(params, momentum, sampled)
        there = theirs[f"losses/{i}"]
        deviation = np.abs(np.asarray(terms, np.float64) - there) / np.abs(there)
        print(i, *there, "deviation", *deviation, file=sys.stderr, flush=True)
        worst = max(worst, float(deviation.max()))
        if i == 0:
            first = deviation.tolist()
            rows = compare_gradients(gradient, state, theirs)
    return dict(
        model=MODEL.value,
        seed=seed,
        float64=FLOAT64.value,
        rate=RATE.value,
        losses=theirs["losses/0"].tolist(),
        losses_last=theirs[f"losses/{STEPS.value - 1}"].tolist(),
        losses_deviation=first,
        losses_deviation_all_steps=worst,
        steps=STEPS.value,
        gradients=len(rows),
        gradients_above_1e_3=sum(deviation > 1e-3 for deviation, _ in rows),
        gradient_deviation=max(rows)[0],
        gradient_worst=max(rows)[1],
    )


def compare_gradients(
    gradient: Any, state: Any, theirs: dict[str, np.ndarray]
) -> list[tuple[float, str]]:
    """||ours - theirs|| / ||theirs|| of every parameter that torchvision trains."""
    ours = torchvision.export_detector({"params": gradient, **state})
    rows = []
    for name in (n for n in theirs if n.startswith("gradient/")):
        there = theirs[name].astype(np.float64)
        here = ours[name.removeprefix("gradient/")].astype(np.float64)
        rows.append(
            (
                float(np.linalg.norm(here - there) / np.linalg.norm(there)),
                name.removeprefix("gradient/"),
            )
        )
    for deviation, name in sorted(rows):
        print(f"{deviation:.2e} {name}", file=sys.stderr)
    return rows


def main(_):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        peer = Peer(PEER.value, folder)
        compare = compare_training if TRAINING.value else compare_detections
        summary = compare(peer)
        peer.close()
    print(json.dumps(summary))


if __name__ == "__main__":
    cli.run(main)
