r"""Ours against Detectron2's detectors as mayaku computes them: same file, same tensor.

    make peer
    python tests/parity/compare_mayaku.py --model=r50_fpn --seeds=0:20
    python tests/parity/compare_mayaku.py --model=x101_fpn --seeds=0:20
    python tests/parity/compare_mayaku.py --model=r50_fpn --wider=1.25

Each seed makes a Detectron2 .pkl of random weights in the zoo's scheme, under which the
detector has something to do: scores and deltas are spread. Both sides read that file
and get the same normalised tensor, padded to a multiple of 32; with --wider ours has a
larger canvas, with noise around the image. Detections agree when their labels are the
same, boxes within 0.01 pixels and scores within 1e-4. The last line on stdout is one
JSON object.
"""

import functools
import json
import pathlib
import pickle
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from frcnn_jax import models, proposals
from frcnn_jax.training import cli
from frcnn_jax.training import config as configs
from frcnn_jax.weights import torchvision, zoo
from frcnn_jax.weights.files import write_npz

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from tests.parity.detections import (  # noqa: E402
    differing,
    features_apart,
    nearest_decision,
    ours_as_dict,
    picked,
)
from tests.parity.random_weights import (  # noqa: E402
    on_canvas,
    random_image,
    random_weights,
)
from tests.weights.test_detectron2 import zoo_shapes  # noqa: E402

NETWORKS = {  # name: depth, width, groups and stride_in_1x1 of the zoo's scheme
    "r50_fpn": (50, 64, 1, True),
    "r101_fpn": (101, 64, 1, True),
    "x101_fpn": (101, 256, 32, False),
}
RPN, ROI = "proposal_generator.rpn_head", "roi_heads.box_predictor"
DEVIATION = {
    f"{RPN}.objectness_logits": 2.0,
    f"{RPN}.anchor_deltas": 0.2,
    f"{ROI}.cls_score": 2.5,
    f"{ROI}.bbox_pred": 1.0,
}
MODEL = flags.DEFINE_enum("model", "r50_fpn", list(NETWORKS), "The detector.")
SEEDS = flags.DEFINE_string("seeds", "0:5", "FIRST:END.")
WIDER = flags.DEFINE_float(
    "wider", 1.0, "Our canvas over the padded image: 1.25 is a quarter more."
)
SIZES = flags.DEFINE_list(
    "sizes", ["300x400", "410x290", "224x480"], "HxW before padding, one a seed."
)
PEER = flags.DEFINE_string(
    "peer", str(ROOT / ".venv-peer/bin/python"), "A Python with mayaku."
)
CONFIG = """MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  PIXEL_MEAN: [103.53, 116.28, 123.675]
  PIXEL_STD: [1.0, 1.0, 1.0]
  BACKBONE: {{NAME: build_resnet_fpn_backbone}}
  RESNETS: {{DEPTH: {depth}, NUM_GROUPS: {groups}, WIDTH_PER_GROUP: {width},
    STRIDE_IN_1X1: {stride}}}
  ANCHOR_GENERATOR: {{SIZES: [[32], [64], [128], [256], [512]],
    ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}}
  RPN: {{IN_FEATURES: [p2, p3, p4, p5, p6]}}
  ROI_HEADS: {{IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 80}}
"""
CLASSES = 80


def settings(name: str) -> dict[str, Any]:
    """Our configuration of the detector."""
    return configs.from_json(zoo.settings(f"detectron2_{name}")).to_dict()


@functools.cache
def compiled(name: str):
    """Our model of the package's settings, its configuration, and its stages."""
    config = settings(name)
    model = models.build_detector(num_classes=CLASSES, **config["model"])

    @jax.jit
    def rpn(variables, images, size):
        extent = model.extent(size[None])
        out = model.apply(variables, images, extent, method="rpn")
        found = proposals.select_proposals(
            *(out.anchors[0], out.logits[0], out.deltas[0], size, out.inside[0]),
            level_sizes=out.level_sizes,
            **config["proposals"]["eval"],
        )
        return out._replace(level_sizes=()), found

    @jax.jit
    def detect(variables, features, rois, size):
        arguments = features, rois[None], None, model.extent(size[None])
        return model.apply(variables, *arguments, method="detect")

    @jax.jit
    def post(rois, valid, logits, deltas, size):
        return proposals.postprocess(
            *(rois, valid, logits, deltas, size), **config["postprocess"]
        )

    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return rpn, detect, post, shapes


def weights_of(name: str, seed: int) -> dict[str, np.ndarray]:
    """A zoo file's arrays; the last norm of a residual branch is small."""
    depth, width, groups, _ = NETWORKS[name]
    arrays = random_weights(zoo_shapes(depth, width, groups, "FPN"), seed)
    for key in arrays:
        if key.endswith("conv3.norm.weight"):
            arrays[key] *= 0.3
    return arrays


def write_pkl(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "a seed"}))


def spread(weights: dict[str, np.ndarray], layer: str, output: np.ndarray) -> None:
    """Scale a last layer, in place, so that its outputs have mean 0 and deviate."""
    x = output.reshape(-1, output.shape[-1]).astype(np.float64)
    scale = DEVIATION[layer] / np.maximum(x.std(0), 1e-6)
    bias = (weights[f"{layer}.bias"] - x.mean(0)) * scale
    kernel = weights[f"{layer}.weight"]
    rows = scale.reshape(-1, *[1] * (kernel.ndim - 1))
    weights[f"{layer}.weight"] = np.float32(kernel * rows)
    weights[f"{layer}.bias"] = np.float32(bias)


def calibrated(name: str, seed: int, size: tuple[int, int], file: pathlib.Path) -> Any:
    """Write the file of a seed, spread on its image, and return our variables."""
    rpn, detect, _, shapes = compiled(name)
    weights, image = weights_of(name, seed), random_image(seed, size)
    hw = jnp.array(size)

    def load():
        write_pkl(file, weights)
        return torchvision.load_detector(file, shapes)[0]

    out, _ = rpn(load(), image, hw)
    logits, deltas = (np.asarray(x) for x in (out.logits, out.deltas))
    spread(weights, f"{RPN}.objectness_logits", logits.reshape(-1, 3))
    spread(weights, f"{RPN}.anchor_deltas", deltas.reshape(-1, 12))
    variables = load()
    out, props = rpn(variables, image, hw)
    logits, deltas = detect(variables, out.features, props.boxes, hw)
    valid = np.asarray(props.valid)
    logits, deltas = (np.asarray(x)[0][valid] for x in (logits, deltas))
    spread(weights, f"{ROI}.cls_score", np.roll(logits, -1, axis=-1))  # ours is first
    spread(weights, f"{ROI}.bbox_pred", deltas.reshape(-1, 4 * CLASSES))
    return load()


class Peer:
    """mayaku in a process of its own; requests and answers are .npz files."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [PEER.value, str(ROOT / "tests/parity/peer_mayaku.py")],
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
            raise RuntimeError("mayaku's process ended; its error is above")
        with np.load(answer) as file:
            return {name: file[name] for name in file.files}


def compare_seed(name: str, seed: int, size: tuple[int, int], peer: Peer) -> dict:
    """The features' deviation and the detections that differ, for one seed."""
    rpn, detect, post, _ = compiled(name)
    file = peer.folder / "weights.pkl"
    variables = calibrated(name, seed, size, file)
    image, hw = random_image(seed, size), jnp.array(size)
    theirs = peer(
        weights=str(file),
        config=str(peer.folder / "cfg.yaml"),
        images=image.transpose(0, 3, 1, 2),
        sizes=np.array([size]),
    )
    out, props = rpn(variables, on_canvas(image, seed, WIDER.value), hw)
    logits, deltas = detect(variables, out.features, props.boxes, hw)
    found = post(props.boxes, props.valid, logits[0], deltas[0], hw)
    row: dict[str, Any] = dict(seed=seed, size=size)
    row["features"] = features_apart(out.features, theirs)
    row["proposals"] = len(theirs["proposals"])
    row["detections"] = len(theirs["boxes"])
    ours, other = ours_as_dict(found), picked(theirs)
    row["differing"] = differing(ours, other)
    if row["differing"]:
        row["gaps"] = nearest_decision(ours, other, settings(name))
    return row


def main(_):
    first, end = map(int, SEEDS.value.split(":"))
    sizes = [tuple(map(int, text.split("x"))) for text in SIZES.value]
    depth, width, groups, stride = NETWORKS[MODEL.value]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        # Detectron2 counts the width of a group, the scheme of the file all of them.
        text = CONFIG.format(
            depth=depth, groups=groups, width=width // groups, stride=stride
        )
        (pathlib.Path(folder) / "cfg.yaml").write_text(text)
        peer = Peer(pathlib.Path(folder))
        for seed in range(first, end):
            row = compare_seed(MODEL.value, seed, sizes[seed % len(sizes)], peer)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
        peer.process.communicate()
    total = sum(row["detections"] for row in rows)
    apart = sum(row["differing"] for row in rows)
    summary = dict(
        model=MODEL.value,
        seeds=len(rows),
        wider=WIDER.value,
        features=max(row["features"] for row in rows),
        detections=total,
        differing=apart,
        equal=sum(not row["differing"] for row in rows),
    )
    print(
        f"{MODEL.value}: {total - apart} of {total} detections agree, "
        f"{summary['equal']} of {len(rows)} seeds in all"
    )
    print(json.dumps(summary))


if __name__ == "__main__":
    cli.run(main)
