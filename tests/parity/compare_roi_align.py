"""How far a fixed number of samples is from RoIAlign's adaptive rule, on real features.

    make peer
    python tests/parity/compare_roi_align.py --root=COCO --split=val2017 \\
        --weights=resnet50_imagenet_keras_fp16.npz

Detectron2 takes ceil(side / output) samples along each side of a RoI's cell, a number
that depends on the RoI; a fixed number is the same for all. Features are those of
ResNet-50 with ImageNet weights (Keras' names) on the photographs, RoIs their annotated
boxes and shifted copies, the levels as in an FPN. The figure is the root mean square of
the difference over that of the adaptive result. torchvision computes both sides
(`sampling_ratio=-1, aligned=True`); ours equals it in both. The last line on
stdout is one JSON object.
"""

import json
import pathlib
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from frcnn_jax import models, weights
from frcnn_jax.data import images
from frcnn_jax.data.sources import coco
from frcnn_jax.ops import roi_align
from frcnn_jax.training import cli
from frcnn_jax.weights import keras as pretrained

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))
from tests.parity import compare_torchvision

ROOT = flags.DEFINE_string("root", None, "A COCO folder.", required=True)
SPLIT = flags.DEFINE_string("split", "val2017", "Its split.")
WEIGHTS = flags.DEFINE_string("weights", None, "ResNet-50, Keras.", required=True)
COUNT = flags.DEFINE_integer("images", 4, "How many photographs.")

RATIOS = (1, 2, 3, 4)
SETTINGS = {"FPN 7x7": ((4, 8, 16, 32), 7), "C4 14x14": ((16,), 14)}


def rois_of(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Boxes and seven copies of each, shifted and scaled by a tenth of their sides."""
    copies = np.repeat(boxes, 8, axis=0)
    sides = np.tile(copies[:, 2:] - copies[:, :2], 2)
    moved = copies + rng.normal(0, 0.1, copies.shape) * sides
    moved = np.concatenate([boxes, moved])
    return moved[(moved[:, 2:] - moved[:, :2] > 1).all(1)].astype(np.float32)


def features_and_rois():
    """Of each photograph: `{stride: [h, w, c]}`, and RoIs in network pixels."""
    keras: dict[str, Any] = {**pretrained.KERAS_RESNET50}
    model = models.build_backbone(**keras)
    canvas = (800, 1344)
    shape = jax.ShapeDtypeStruct((1, *canvas, 3), jnp.float32)
    empty = jax.eval_shape(model.init, jax.random.key(0), shape)
    nested = {kind: {"backbone": tree} for kind, tree in empty.items()}
    loaded = weights.load_backbone(WEIGHTS.value, nested)
    loaded = {kind: tree["backbone"] for kind, tree in loaded.items()}
    apply, rng = jax.jit(model.apply), np.random.default_rng(0)
    mean = np.array(pretrained.KERAS_PIXELS["pixel_mean"], np.float32)
    source = coco.load(split=SPLIT.value, root=ROOT.value)
    lying = [e for e in source.examples if e.size and e.size[1] > e.size[0]]
    for example in lying[: COUNT.value]:
        pixels = images.load_image(str(example.image))
        placed, size = images.prepare(pixels, 800, 1333, canvas)
        scale = np.tile(np.array(size)[::-1] / pixels.shape[1::-1], 2)
        image = np.where(placed.any(-1, keepdims=True), placed - mean, 0)
        maps = apply(loaded, image[None])
        yield (
            {stride: np.asarray(m[0]) for stride, m in maps.items()},
            rois_of(example.boxes * scale, rng),
        )


def main(_):
    squares = {name: np.zeros(len(RATIOS) + 1) for name in SETTINGS}
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        peer = compare_torchvision.Peer(
            compare_torchvision.PEER.value, pathlib.Path(folder)
        )
        for maps, rois in features_and_rois():
            count += len(rois)
            for name, (strides, output) in SETTINGS.items():
                levels = np.zeros(len(rois), int)
                if len(strides) > 1:
                    levels = np.asarray(
                        roi_align.roi_levels(jnp.asarray(rois), strides)
                    )
                for i, stride in enumerate(strides):
                    if not (levels == i).any():
                        continue
                    answer = peer(
                        rois=rois[levels == i],
                        features=maps[stride],
                        stride=stride,
                        output=output,
                        ratios=np.array((-1, *RATIOS)),
                    )
                    exact = answer["-1"].astype(np.float64)
                    squares[name][0] += (exact**2).sum() / exact.shape[-1]
                    for k, ratio in enumerate(RATIOS, start=1):
                        off = answer[str(ratio)] - exact
                        squares[name][k] += (off**2).sum() / exact.shape[-1]
        peer.close()
    result = {
        name: {
            str(ratio): float(np.sqrt(found[k] / found[0]))
            for k, ratio in enumerate(RATIOS, start=1)
        }
        for name, found in squares.items()
    }
    print(f"{'':12}" + "".join(f"{f'{r}x{r}':>10}" for r in RATIOS))
    for name, row in result.items():
        print(f"{name:12}" + "".join(f"{row[str(r)]:10.4f}" for r in RATIOS))
    print(json.dumps(dict(rois=count, **result)))


if __name__ == "__main__":
    cli.run(main)
