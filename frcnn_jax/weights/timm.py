"""timm's names of MobileNetV3-Large, ConvNeXt and Swin -> torchvision's.

`blocks.STAGE.BLOCK.conv_pw` of MobileNetV3 is `features.N.block.K.0`: blocks are
counted through, and a block's parts in their order. `stages.S.blocks.K.conv_dw` of
ConvNeXt is `features.N.K.block.0`. Swin's stages are `layers`; older files of it have
the merging of cells at the end of a stage in place of the start. timm's plain ResNets
and ResNeXts have torchvision's names already; those with another stem (resnet50d) are
other networks. VGG-16 differs in fc6 and fc7 alone (`vgg`).
"""

import re
from collections.abc import Mapping

import numpy as np

STAGES = (1, 2, 3, 4, 2, 3, 1)  # blocks of each; the last is one convolution
# Parts of a block in their order, and the norms that follow.
PARTS = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("se", ""), ("conv_pwl", "bn3"))
FIRST = (("conv_dw", "bn1"), ("conv_pw", "bn2"))  # of the block that does not expand
CONVNEXT = {  # parts of a block
    "conv_dw": "block.0",
    "norm": "block.2",
    "mlp.fc1": "block.3",
    "mlp.fc2": "block.5",
    "gamma": "layer_scale",
}
SWIN = {"proj": "0", "norm": "2", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}
MARKS = {  # arrays that a network of timm's has under these names, and no other
    "mobilenet": {"conv_stem.weight", "blocks.0.0.conv_dw.weight"},
    "swin": {"patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"},
    "convnext": {"stem.0.weight", "stages.0.blocks.0.conv_dw.weight"},
}


def recognises(arrays: Mapping[str, np.ndarray]) -> str:
    """The network of timm that has these names, as in `MARKS`; or none, ""."""
    return next((n for n, mark in MARKS.items() if mark <= set(arrays)), "")


def to_torchvision(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Return arrays by torchvision's names, what they were, and what is left out.

    A name that is not known stays, so that the model misses its place.
    """
    network = recognises(arrays)
    found, origin, ignored = {}, {}, []
    for name, array in arrays.items():
        if name.startswith(("conv_head.", "classifier.", "head.")):
            ignored.append(name)
            continue
        if network == "convnext":
            known = rename_convnext(name)
        elif network == "swin":
            known = rename_swin(name, arrays)
        else:
            known = rename(name, arrays)
        if name.endswith(".gamma"):
            array = np.reshape(array, (-1, 1, 1))
        found[known], origin[known] = array, name
    return found, origin, ignored


def rename_convnext(name: str) -> str:
    """One name of ConvNeXt.

    >>> rename_convnext("stages.1.downsample.1.weight")
    'features.2.1.weight'
    >>> rename_convnext("stages.1.blocks.2.mlp.fc1.bias")
    'features.3.2.block.3.bias'
    """
    if match := re.fullmatch(r"stem\.(.+)", name):
        return f"features.0.{match[1]}"
    if match := re.fullmatch(r"stages\.(\d)\.downsample\.(.+)", name):
        return f"features.{2 * int(match[1])}.{match[2]}"
    match = re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.+?)(\.weight|\.bias)?", name)
    if match is None or match[3] not in CONVNEXT:
        return name
    block = f"features.{2 * int(match[1]) + 1}.{match[2]}"
    return f"{block}.{CONVNEXT[match[3]]}{match[4] or ''}"


def rename_swin(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """One name of Swin; `arrays` tell where a stage has its merging.

    >>> rename_swin("layers.1.downsample.reduction.weight", {})
    'features.2.reduction.weight'
    >>> rename_swin("layers.1.blocks.0.mlp.fc1.weight", {})
    'features.3.0.mlp.0.weight'
    """
    if match := re.fullmatch(r"patch_embed\.(proj|norm)\.(.+)", name):
        return f"features.0.{SWIN[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"layers\.(\d)\.downsample\.(.+)", name):
        at_end = "layers.0.downsample.norm.weight" in arrays
        return f"features.{2 * (int(match[1]) + at_end)}.{match[2]}"
    match = re.fullmatch(r"layers\.(\d)\.blocks\.(\d+)\.(.+)", name)
    if match is None:
        return name
    part = re.sub(r"^mlp\.fc\d", lambda m: SWIN[m[0]], match[3])
    return f"features.{2 * int(match[1]) + 1}.{match[2]}.{part}"


def swin_table(table: np.ndarray, offsets: int) -> np.ndarray:
    """A table of biases `[s * s, heads]` for windows with `offsets` = s' * s' rows.

    As timm resizes them (BEiT's rule): the s offsets stand at places that grow like a
    geometric series out to the new ones, and values between are interpolated linearly
    along each axis.

    >>> swin_table(np.ones((9, 1)), 25).shape
    (25, 1)
    """
    old, new = round(len(table) ** 0.5), round(offsets**0.5)
    if old == new or old * old != len(table) or new * new != offsets:
        return table
    places = _geometric(old, new)
    grid = np.asarray(table, np.float64).reshape((old, old, -1))
    at = np.arange(-(new // 2), new // 2 + 1)
    weights = np.stack([np.interp(at, places, row) for row in np.eye(old)], 1)
    grid = np.einsum("yp,pqh,xq->yxh", weights, grid, weights)
    return grid.reshape((offsets, -1)).astype(np.float32)


def _geometric(old: int, new: int) -> np.ndarray:
    """`old` places around 0, `1, 1 + q, 1 + q + q^2, ...`, the last near `new // 2`.

    q lies between 1.01 and 1.5, within 1e-6.
    """
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2
        if (1 - q ** (old // 2)) / (1 - q) > new // 2:
            right = q
        else:
            left = q
    half = np.cumsum(q ** np.arange(old // 2))
    return np.concatenate([-half[::-1], [0], half])


def rename(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """One name of MobileNetV3; `arrays` tell which parts a block has.

    >>> rename("blocks.1.0.conv_dw.weight", {"blocks.1.0.conv_pw.weight": np.zeros(1)})
    'features.2.block.1.0.weight'
    """
    name = re.sub(r"^conv_stem\.", "features.0.0.", name)
    name = re.sub(r"^bn1\.", "features.0.1.", name)
    match = re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)\.(.+)", name)
    if match is None:
        return name
    stage, block, part, kind = int(match[1]), int(match[2]), match[3], match[4]
    at = 1 + sum(STAGES[:stage]) + block
    if stage == len(STAGES) - 1:
        return f"features.{at}.{int(part == 'bn1')}.{kind}"
    parts = FIRST if stage == 0 else PARTS
    prefix = f"blocks.{stage}.{block}."
    there = [
        p for p in parts if p[0] != "se" or f"{prefix}se.conv_reduce.weight" in arrays
    ]
    for i, (conv, norm) in enumerate(there):
        if part == "se" == conv:
            kind = kind.replace("conv_reduce", "fc1").replace("conv_expand", "fc2")
            return f"features.{at}.block.{i}.{kind}"
        if part in (conv, norm):
            return f"features.{at}.block.{i}.{int(part == norm)}.{kind}"
    return name
