"""timm's names of MobileNetV3-Large -> torchvision's.

`blocks.STAGE.BLOCK.conv_pw` is `features.N.block.K.0`: blocks are counted through, and
a block's parts in their order. timm's plain ResNets and ResNeXts have torchvision's
names already; those with another stem (resnet50d) are other networks. VGG-16 differs in
fc6 and fc7 alone (`vgg`).
"""

import re
from collections.abc import Mapping

import numpy as np

STAGES = (1, 2, 3, 4, 2, 3, 1)  # blocks of each; the last is one convolution
# Parts of a block in their order, and the norms that follow.
PARTS = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("se", ""), ("conv_pwl", "bn3"))
FIRST = (("conv_dw", "bn1"), ("conv_pw", "bn2"))  # of the block that does not expand


def recognises(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of timm's MobileNetV3."""
    return {"conv_stem.weight", "blocks.0.0.conv_dw.weight"} <= set(arrays)


def to_torchvision(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Return arrays by torchvision's names, what they were, and what is left out.

    A name that is not known stays, so that the model misses its place.
    """
    found, origin, ignored = {}, {}, []
    for name, array in arrays.items():
        if name.startswith(("conv_head.", "classifier.")):
            ignored.append(name)
            continue
        known = rename(name, arrays)
        found[known], origin[known] = array, name
    return found, origin, ignored


def rename(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """One name; `arrays` tell which parts a block has.

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
