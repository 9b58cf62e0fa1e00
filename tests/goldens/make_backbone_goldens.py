"""Write tests/goldens/backbones.npz: what torchvision's and timm's classifiers compute.

    make peer
    .venv-peer/bin/python -m pip install timm   # for its MobileNetV3; without, kept out
    .venv-peer/bin/python tests/goldens/make_backbone_goldens.py [NETWORK ...]

With names of networks, those of the others stay as they are in the file. Of every
network: names and shapes of its state dict as JSON, and its maps for random weights and
a random image of 64 pixels (`tests/parity/random_weights.py`, seed 0), every 16th
channel of them, rounded to float32. ConvNeXt and Swin have odd sizes in place of 64
pixels; there a convolution whose stride is its size gets zeros at the bottom and right,
so that no cell is lost. So have the plain ViTs, without their classifier and neck.
"""
# pyright: reportMissingImports=false

import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch
import torchvision
from torch.nn import functional
from torchvision import models

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "parity"))
from random_weights import random_image, random_weights

try:
    import timm
    from timm.models.convnext import ConvNeXt
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_sam import VisionTransformerSAM
except ImportError:
    timm: Any = None

GOLDEN = pathlib.Path(__file__).resolve().parent / "backbones.npz"
ODD = (72, 100)  # maps of 18 x 25, 9 x 13, 5 x 7 and 3 x 4 cells
WHOLE = (56, 84)  # of 14 x 21, 7 x 11, 4 x 6 and 2 x 3
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
CONVNEXT = tuple(f"features.{i}" for i in (1, 3, 5, 7))
NETWORKS |= {
    f"convnext_{size}": (getattr(models, f"convnext_{size}"), CONVNEXT)
    for size in ("tiny", "small", "base")
}


def narrow_convnext():
    """One of few blocks and channels, for a test that is quick."""
    depths, widths = (1, 1, 2, 1), (32, 64, 128, 256, None)
    return models.convnext.ConvNeXt(
        [
            models.convnext.CNBlockConfig(widths[i], widths[i + 1], depth)
            for i, depth in enumerate(depths)
        ]
    )


def narrow_swin():
    """Windows that are shifted, cut and padded in its first two stages."""
    return models.swin_transformer.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=32,
        depths=[2, 2, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=[7, 7],
    )


NETWORKS["convnext_narrow"] = (narrow_convnext, CONVNEXT)
NETWORKS["swin_narrow"] = (narrow_swin, CONVNEXT)
NETWORKS |= {
    f"swin_{size}": (getattr(models, f"swin_{size}"), CONVNEXT) for size in "tsb"
}
if timm is not None:
    timm_stages = tuple(f"stages.{i}" for i in range(4))
    NETWORKS["timm_convnext_narrow"] = (
        lambda: ConvNeXt(depths=(1, 1, 2, 1), dims=(32, 64, 128, 256)),
        timm_stages,
    )
    NETWORKS["timm_convnext_tiny"] = (
        lambda: timm.create_model("convnext_tiny"),
        timm_stages,
    )
    # timm shifts a map before it pads it to whole windows, and by the size that the
    # network is built for; the authors and torchvision pad first. So its one shifted
    # block has whole windows here.
    NETWORKS["timm_swin_narrow"] = (
        lambda: SwinTransformer(
            img_size=WHOLE,
            embed_dim=32,
            depths=(2, 1, 1, 1),
            num_heads=(1, 2, 4, 8),
            always_partition=True,
            strict_img_size=False,
        ),
        tuple(f"layers.{i}" for i in range(4)),
    )
    NETWORKS["timm_mobilenetv3_large_100"] = (
        lambda: timm.create_model("mobilenetv3_large_100"),
        ("blocks.1.0", "blocks.2.0", "blocks.3.0", "blocks.5.0", "blocks.6"),
    )
    # Windows of 3 cells are padded at 72 x 100 pixels; the tables of the global block
    # and the absolute positions are of another size than the map, 5 x 7 cells.
    NETWORKS["samvit_narrow"] = (
        lambda: VisionTransformerSAM(
            img_size=64,
            embed_dim=64,
            depth=3,
            num_heads=2,
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        ),
        ("blocks.2",),
    )
    NETWORKS["samvit_base"] = (
        lambda: timm.create_model("samvit_base_patch16"),
        ("blocks.11",),
    )
    NETWORKS["dinov2_narrow"] = (
        lambda: VisionTransformer(
            img_size=84,
            patch_size=14,
            embed_dim=64,
            depth=2,
            num_heads=2,
            init_values=1e-5,
            dynamic_img_size=True,
        ),
        ("norm",),
    )
    NETWORKS |= {
        f"dinov2_{size}": (
            lambda size=size: timm.create_model(
                f"vit_{size}_patch14_dinov2", dynamic_img_size=True
            ),
            ("norm",),
        )
        for size in ("small", "base")
    }
    NETWORKS["timm_resnet18"] = (lambda: timm.create_model("resnet18"), STAGES)


def pad(module, inputs):
    """Zeros at the bottom and right, until the stride divides both sides."""
    (x,), (s, _) = inputs, module.stride
    return functional.pad(x, (0, -x.shape[3] % s, 0, -x.shape[2] % s))


@torch.no_grad()
def maps_of(network, make, modules, size):
    """Names of the state dict, and the outputs of the modules, NHWC."""
    model = make().eval()
    if hasattr(model, "patch_embed"):
        model.patch_embed.dynamic_img_pad = True
    elif size != (64, 64):
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and module.stride[0] > 1:
                assert module.stride == module.kernel_size
                module.register_forward_pre_hook(pad)
    state = {
        name: value
        for name, value in model.state_dict().items()
        if not name.endswith(("num_batches_tracked", "relative_position_index"))
    }
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    backbone = {
        name: shape
        for name, shape in shapes.items()
        if not name.startswith(("fc.", "classifier.", "conv_head.", "head.", "neck."))
        and ("dinov2" in network or not name.startswith("norm."))
    }
    weights = random_weights(backbone, 0)
    model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in weights.items()},
        strict=False,
    )
    found = {}

    def keep(name):
        def hook(module, inputs, output):
            if "dinov2" in network:  # a class token, then the cells
                h, w = (-(-side // 14) for side in size)
                output = output[:, 1:].reshape(1, h, w, -1)
            channels_last = any(n in network for n in ("swin", "vit", "dinov2"))
            output = output if channels_last else output.permute(0, 2, 3, 1)
            found[name] = output.numpy()[..., ::16]

        return hook

    for name in modules:
        model.get_submodule(name).register_forward_hook(keep(name))
    image = random_image(0, size)[:, : size[0], : size[1]]
    model(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    return backbone, [found[name] for name in modules]


def main():
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    if timm is not None:
        versions += f", timm {timm.__version__}"
    chosen = sys.argv[1:] or list(NETWORKS)
    arrays: dict[str, Any] = {"versions": np.array(versions)}
    if sys.argv[1:]:
        with np.load(GOLDEN) as file:
            arrays = {k: file[k] for k in file.files if k.split("/")[0] not in chosen}
    for name in chosen:
        make, modules = NETWORKS[name]
        odd = any(n in name for n in ("convnext", "swin", "samvit", "dinov2"))
        size = ODD if odd else (64, 64)
        size = WHOLE if name == "timm_swin_narrow" else size
        shapes, maps = maps_of(name, make, modules, size)
        arrays[f"{name}/versions"] = np.array(versions)
        arrays[f"{name}/size"] = np.int32(size)
        arrays[f"{name}/names"] = np.frombuffer(json.dumps(shapes).encode(), np.uint8)
        arrays |= {f"{name}/{i}": np.float32(x) for i, x in enumerate(maps)}
    np.savez_compressed(GOLDEN, **arrays)
    print(versions, GOLDEN.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
