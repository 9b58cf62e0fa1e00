"""Backbones as the peers' weights have them."""

from typing import Any

# The stem and the first stage, what peers call freeze_at=2 or three trainable layers.
RESNET_FROZEN = ("backbone/conv1", "backbone/bn1", "backbone/layer1")


def frozen_resnet(depth: int, **fields: Any) -> dict[str, Any]:
    """The group `model.backbone`: a ResNet whose norms keep the loaded values."""
    return dict(
        name="resnet",
        depth=depth,
        norm="frozen",
        pretrained="",
        remat=False,
        **fields,
    )


def msra_resnet(depth: int, **fields: Any) -> dict[str, Any]:
    """The group `model`, in part: Detectron2's ResNet of Caffe's weights, std 1."""
    return dict(  # models.build_detector
        backbone=frozen_resnet(depth, stride_in_1x1=True, **fields),
        dtype="float32",
        pixel_std=(1.0, 1.0, 1.0),
    )


def resnext101() -> dict[str, Any]:
    """The group `model`, in part: Detectron2's ResNeXt-101 32x8d, stride in its 3x3."""
    return dict(  # models.build_detector
        backbone=frozen_resnet(101, groups=32, group_width=8),
        dtype="float32",
        pixel_std=(58.395, 57.12, 57.375),
    )


def keras_resnet50() -> dict[str, Any]:
    """The group `model`, in part: ResNet-50 with the conventions of Keras' weights."""
    return dict(  # models.build_detector
        backbone=frozen_resnet(50, stride_in_1x1=True, norm_eps=1e-3),
        dtype="float32",
        pixel_mean=(123.68, 116.779, 103.939),
        pixel_std=(1.0, 1.0, 1.0),
    )


def imagenet_resnet50(weights: str) -> dict[str, Any]:
    """The group `model`, in part: ResNet-50 for weights of "keras" or of "timm".

    torchvision's weights have the conventions of timm's.
    """
    if weights == "timm":
        return dict(backbone=frozen_resnet(50), dtype="float32")
    if weights != "keras":
        raise ValueError(f"config argument weights={weights}: expected keras or timm")
    return keras_resnet50()


def convnext(size: str, *, runlocal: bool) -> dict[str, Any]:
    """The group `model.backbone`: ConvNeXt of `size` "t", "s" or "b" (a narrow one)."""
    sizes = {
        "t": ((3, 3, 9, 3), 96, 0.4),
        "s": ((3, 3, 27, 3), 96, 0.6),
        "b": ((3, 3, 27, 3), 128, 0.7),
    }
    narrow = ((1, 1, 3, 1), 32) if runlocal else None
    return _of_four_stages("convnext", size, sizes, narrow)


def swin(size: str, *, runlocal: bool) -> dict[str, Any]:
    """The group `model.backbone`: Swin of `size` "t", "s" or "b" (a narrow one)."""
    sizes = {
        "t": ((2, 2, 6, 2), 96, 0.2),
        "s": ((2, 2, 18, 2), 96, 0.2),
        "b": ((2, 2, 18, 2), 128, 0.3),
    }
    narrow = ((2, 1, 2, 1), 32) if runlocal else None
    return _of_four_stages("swin", size, sizes, narrow)


def _of_four_stages(name, size, sizes, narrow) -> dict[str, Any]:
    """Depths, width and stochastic depth of `size`; of `narrow`, the first two."""
    if size not in sizes:
        raise ValueError(f"config argument size={size}: expected t, s or b")
    depths, width, stochastic_depth = sizes[size]
    if narrow is not None:
        depths, width = narrow
    return dict(
        name=name,
        depths=depths,
        width=width,
        stochastic_depth=stochastic_depth,
        remat=False,
        pretrained="",
    )


def vit(size: str, *, runlocal: bool) -> dict[str, Any]:
    """The group `model.backbone`: ViTDet's ViT of `size` "s" or "b" (a narrow one)."""
    widths = {"s": (384, 6), "b": (768, 12)}
    if size not in widths:
        raise ValueError(f"config argument size={size}: expected s or b")
    width, heads = (64, 2) if runlocal else widths[size]
    return dict(
        name="vit",
        depth=4 if runlocal else 12,
        width=width,
        heads=heads,
        window=5 if runlocal else 14,
        global_blocks=(1, 3) if runlocal else (2, 5, 8, 11),
        positions=14,
        relative=16 if runlocal else 64,
        stochastic_depth=0.1,
        norm_eps=1e-6,
        remat=not runlocal,
        pretrained="",
    )


def dinov2(size: str, *, runlocal: bool) -> dict[str, Any]:
    """The group `model`: one level of stride 14 on DINOv2's ViT, `size` "s" or "b"."""
    backbone = vit(size, runlocal=runlocal)
    backbone.update(
        patch=14,
        window=0,
        positions=37,
        relative=0,
        class_token=True,
        layer_scale=1e-5,
        out_norm=True,
        stochastic_depth=0.0,
        remat=False,
    )
    anchors = dict(one_level_anchors(), strides=(14,))
    return dict(  # models.build_detector
        backbone=backbone,
        dtype="float32",
        anchors=anchors,
        rpn=dict(channels=64 if runlocal else 256),
        roi_align=dict(strides=(14,), sampling_ratio=0),
        box_head=dict(widths=(64, 64) if runlocal else (1024, 1024)),
    )


def vit_layers(depth: int) -> tuple[tuple[str, ...], ...]:
    """The layers of a ViT: patches and positions, then each block (Detectron2's)."""
    blocks = [(f"backbone/block{i}",) for i in range(depth)]
    return (("backbone/embed", "backbone/positions"), *blocks)


def convnext_layers(depths: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    """The layers of a ConvNeXt by MMDetection's count: of stage 3 three blocks each."""
    third = [
        tuple(f"backbone/stage3/block{i}" for i in range(at, min(at + 3, depths[2])))
        for at in range(0, depths[2], 3)
    ]
    third[0] += ("backbone/stage3/down_norm", "backbone/stage3/down")
    return (
        ("backbone/stem", "backbone/stem_norm"),
        ("backbone/stage1",),
        ("backbone/stage2",),
        *third,
        ("backbone/stage4",),
    )


def one_level_anchors() -> dict[str, Any]:
    """The group `anchors`: five sizes by three ratios on stride 16, Detectron2's."""
    sizes = (32, 64, 128, 256, 512)
    return dict(strides=(16,), sizes=(sizes,), rounding="detectron2")
