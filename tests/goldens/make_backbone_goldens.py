"""Write tests/goldens/backbones.npz: what torchvision's and timm's classifiers compute.

    make peer
    .venv-peer/bin/python -m pip install timm   # for its MobileNetV3; without, kept out
    .venv-peer/bin/python tests/goldens/make_backbone_goldens.py

Of every network: names and shapes of its state dict as JSON, and its maps for random
weights and a random image of 64 pixels (`tests/parity/random_weights.py`, seed 0),
every 16th channel of them, rounded to float32.
"""
# pyright: reportMissingImports=false

import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch
import torchvision
from torchvision import models

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "parity"))
from random_weights import random_image, random_weights

try:
    import timm
except ImportError:
    timm: Any = None

GOLDEN = pathlib.Path(__file__).resolve().parent / "backbones.npz"
STAGES = ("layer1", "layer2", "layer3", "layer4")
NETWORKS = {  # name: (constructor, modules whose outputs are kept)
    **{
        name: (getattr(models, name), STAGES)
        for name in (
            *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            "resnext50_32x4d",
        )
    },
    "vgg16": (models.vgg16, ("features.29",)),
    "mobilenet_v3_large": (
        models.mobilenet_v3_large,
        ("features.0", "features.2", "features.4", "features.7", "features.13")
        + ("features.16",),
    ),
}
if timm is not None:
    NETWORKS["timm_mobilenetv3_large_100"] = (
        lambda: timm.create_model("mobilenetv3_large_100"),
        ("blocks.1.0", "blocks.2.0", "blocks.3.0", "blocks.5.0", "blocks.6"),
    )
    NETWORKS["timm_resnet18"] = (lambda: timm.create_model("resnet18"), STAGES)


@torch.no_grad()
def maps_of(make, modules):
    """Names of the state dict, and the outputs of the modules, NHWC."""
    model = make().eval()
    state = {
        name: value
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    backbone = {
        name: shape
        for name, shape in shapes.items()
        if not name.startswith(("fc.", "classifier.", "conv_head."))
    }
    weights = random_weights(backbone, 0)
    model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in weights.items()},
        strict=False,
    )
    found = {}

    def keep(name):
        def hook(module, inputs, output):
            found[name] = output.permute(0, 2, 3, 1).numpy()[..., ::16]

        return hook

    for name in modules:
        model.get_submodule(name).register_forward_hook(keep(name))
    model(torch.from_numpy(random_image(0, (64, 64)).transpose(0, 3, 1, 2).copy()))
    return backbone, [found[name] for name in modules]


def main():
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    if timm is not None:
        versions += f", timm {timm.__version__}"
    arrays: dict[str, Any] = {"versions": np.array(versions)}
    for name, (make, modules) in NETWORKS.items():
        shapes, maps = maps_of(make, modules)
        arrays[f"{name}/names"] = np.frombuffer(json.dumps(shapes).encode(), np.uint8)
        arrays |= {f"{name}/{i}": np.float32(x) for i, x in enumerate(maps)}
    np.savez_compressed(GOLDEN, **arrays)
    print(versions, GOLDEN.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
