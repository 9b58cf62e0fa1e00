"""Weights of other frameworks -> our parameters, every array accounted for.

`load_backbone(file, variables)` recognises the file by its ending. Known files:

| file | config that it needs | source |
| --- | --- | --- |
| `.npz`, ResNet-50 of Keras | `KERAS_RESNET50`, `KERAS_PIXELS` of `keras` | Keras |
| `.pth`, `.pt`, `.safetensors`, ResNet | the defaults | torchvision, timm |
| the same, ResNeXt 32x8d | `groups=32`, `group_width=8` | torchvision, timm |
| `.pkl`, ResNet | `stride_in_1x1=True`, `pixel_std` of ones | Detectron2 (MSRA) |
| `.pkl`, ResNeXt-101 | `groups=32`, `group_width=8` | Detectron2 (FAIR) |
| `.pth`, `.safetensors`, MobileNetV3-Large | `norm_eps=1e-3` | torchvision |
| the same | the defaults | timm (`mobilenetv3_large_100`) |
| the same, ConvNeXt and Swin | the defaults | torchvision, timm |
| the same, plain ViT | see `vit` and `models.vit` | timm |
| the same or `.npz`, VGG-16 | see `vgg` | torchvision, timm, Caffe |

In place of a file, the name of a hub: `hf:timm/resnet50.a1_in1k` (`hub`).
Whole detectors are read by `torchvision.load_detector`.

A wrong `norm_eps`, `stride_in_1x1` or pixel mean changes no shape, so the readers do
not notice it: `families` says what a file needs, and training compares it.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from frcnn_jax.extras import need

need("train", "safetensors")

from frcnn_jax.weights import hub, keras, torchvision, vgg, vit  # noqa: E402

__all__ = ["load_backbone"]


def load_backbone(
    path: str | pathlib.Path, variables: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `variables` (of a detector) with the backbone's arrays read from `path`.

    `path` is a file, or the name of a hub. Arrays of a stage that the backbone leaves
    to the box head (`layer4` of C4) go there. Raises FileNotFoundError for a missing
    file; ValueError for a file of no known kind and, naming the arrays, for one that
    does not fill every array of the backbone, fills one with another shape, or holds
    arrays with no place in the model.
    """
    if str(path).startswith(hub.PREFIX):
        path = hub.fetch(str(path))
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"backbone.pretrained={str(path)!r}: no such file; give the path of a "
            "weight file, a name like hf:timm/resnet50.a1_in1k, or '' to start from "
            "random weights"
        )
    if "conv1_1" in variables["params"]["backbone"]:
        return vgg.load_backbone(path, variables)
    if "block0" in variables["params"]["backbone"] and path.suffix != ".npz":
        return vit.load_backbone(path, variables)
    if path.suffix != ".npz":
        return torchvision.load_backbone(path, variables)
    return keras.load_backbone(path, variables)
