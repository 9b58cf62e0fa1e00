"""Backbones against the frameworks that their weights come from, map by map.

`tests/goldens/make_backbone_goldens.py` ran torchvision and timm; the weights are made
again here, written as a file, and read as a user's file would be.
"""

import json
import math
import pathlib

import jax
import numpy as np
import pytest

from frcnn_jax import models, weights
from frcnn_jax.models.vit import DINOV2
from frcnn_jax.weights import files as weight_files
from tests.parity.random_weights import random_image, random_weights

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def resnet(depth, **fields):
    return dict(name="resnet", depth=depth, **fields)


def convnext(**fields):
    return dict(name="convnext", out_norm=False, **fields)


def swin(**fields):
    return dict(name="swin", out_norm=False, **fields)


def vit(**fields):
    return dict(name="vit", norm_eps=1e-5, **fields)


def dinov2(**fields):
    return dict(name="vit", **DINOV2, **fields)


MOBILENET = dict(name="mobilenet", out_strides=(2, 4, 8, 16, 32, 33))
FAST = {  # the golden's name: the group `backbone` that its weights need
    "resnet18": resnet(18),
    "mobilenet_v3_large": dict(MOBILENET, norm_eps=1e-3),
    "convnext_narrow": convnext(depths=(1, 1, 2, 1), width=32),
    "timm_convnext_narrow": convnext(depths=(1, 1, 2, 1), width=32),
    "swin_narrow": swin(depths=(2, 2, 2, 1), width=32),
    "timm_swin_narrow": swin(depths=(2, 1, 1, 1), width=32),
    "samvit_narrow": vit(
        **dict(depth=3, width=64, heads=2, window=3, global_blocks=(1,)),
        **dict(positions=4, relative=4),
    ),
    "dinov2_narrow": dinov2(depth=2, width=64, heads=2) | dict(positions=6),
}
SLOW = {
    "convnext_tiny": convnext(),
    "convnext_small": convnext(depths=(3, 3, 27, 3)),
    "convnext_base": convnext(depths=(3, 3, 27, 3), width=128),
    "timm_convnext_tiny": convnext(),
    "swin_t": swin(),
    "swin_s": swin(depths=(2, 2, 18, 2)),
    "samvit_base": vit(positions=64),
    "dinov2_small": dinov2(width=384, heads=6),
    "dinov2_base": dinov2(),
    "swin_b": swin(depths=(2, 2, 18, 2), width=128),
    "timm_resnet18": resnet(18),
    "timm_mobilenetv3_large_100": dict(MOBILENET, out_strides=(4, 8, 16, 32, 33)),
    "resnet34": resnet(34),
    "resnet50": resnet(50),
    "resnet101": resnet(101),
    "resnet152": resnet(152),
    "resnext50_32x4d": resnet(50, groups=32, group_width=4),
    "vgg16": dict(name="vgg"),
}


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_maps_are_those_of_the_framework(name, tmp_path):
    with np.load(GOLDENS / "backbones.npz") as file:
        golden = {
            key.removeprefix(f"{name}/"): file[key]
            for key in file.files
            if key.startswith(f"{name}/")
        }
    shapes = json.loads(golden.pop("names").tobytes())
    h, w = golden.pop("size", (64, 64))
    golden.pop("versions", None)
    file = tmp_path / "weights.safetensors"
    weight_files.write_safetensors(file, random_weights(shapes, 0))
    backbone = models.build_backbone(**(FAST | SLOW)[name])
    image = random_image(0, (h, w))[:, :h, :w]
    variables = jax.eval_shape(backbone.init, jax.random.key(0), image)
    count = sum(math.prod(shape) for shape in shapes.values())
    assert count == sum(x.size for x in jax.tree.leaves(variables))
    nested = {kind: {"backbone": tree} for kind, tree in variables.items()}
    loaded = weights.load_backbone(file, nested)
    loaded = {kind: tree["backbone"] for kind, tree in loaded.items()}
    maps = jax.jit(backbone.apply)(loaded, image)
    assert len(golden) == len(maps)
    for i, stride in enumerate(sorted(maps)):
        ours, theirs = np.asarray(maps[stride])[..., ::16], golden[str(i)]
        assert ours.shape == theirs.shape
        # Not degenerate: neither dead nor all alive, and not constant.
        assert theirs.std() > 1e-2 and (name == "vgg16" or 0.02 < (theirs > 0).mean())
        scale = np.sqrt((theirs**2).mean())
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=2e-4)
