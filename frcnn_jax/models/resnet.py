"""ResNet (He et al. 2016, table 1) and its res5 as a box head.

The norms (`layers.norm`) are by default frozen batch norm.

ResNeXt (Xie et al. 2017) is the same with `groups`: 32x8d is `groups=32` of
`group_width=8` channels each. A wide ResNet has one group, twice as wide.

Parameters are named after the drawing, so that layers freeze by the start of their
path: `backbone/conv1`, `backbone/bn1`, `backbone/layer1/block0/conv1`, ...,
`backbone/layer4/block2/bn3`, with `shortcut` and `shortcut_bn` where a block projects.

| variant | `stride_in_1x1` | `norm_eps` | weights |
| --- | --- | --- | --- |
| "v1.5": stride 2 on the 3x3 of a bottleneck | False | 1e-5 | torchvision |
| original: stride 2 on its first 1x1 | True | 1e-5 (Caffe, MSRA), 1e-3 (Keras) | |
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from frcnn_jax import ranges
from frcnn_jax.models import layers
from frcnn_jax.models.box_head import box_predictors

# depth: (blocks of each stage, whether they are bottlenecks)
STAGES = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class Block(nn.Module):
    """y = relu(F(x) + shortcut(x)), F of two 3x3 or of 1x1, 3x3, 1x1 convolutions.

    `width` is that of the 3x3 convolutions, `out` of the block.
    """

    width: int
    out: int
    stride: int
    bottleneck: bool
    stride_in_1x1: bool
    norm: str
    norm_eps: float
    dtype: Any
    groups: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """Return the block's map, `ceil(h / stride)` high; `extent` in cells of `x`.

        Only 3x3 convolutions mix cells. Without bottlenecks `x` is zero beyond its
        extent, and so is the map.
        """
        out, whole = self.out, extent
        extent = layers.cells(whole, self.stride)

        def conv_norm(x, features, size, stride, conv, norm, groups=1, extent=extent):
            x = layers.Conv(
                features,
                size,
                stride,
                groups=groups,
                dilation=self.dilation if size == 3 else 1,
                use_bias=False,
                dtype=self.dtype,
                name=conv,
            )(x)
            norm = layers.norm(
                self.norm, name=norm, eps=self.norm_eps, dtype=self.dtype
            )
            return norm(x, extent)

        if self.bottleneck:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            middle = layers.cells(whole, first)
            y = conv_norm(x, self.width, 1, first, "conv1", "bn1", extent=middle)
            y = layers.relu(layers.inside(y, middle))
            y = conv_norm(y, self.width, 3, second, "conv2", "bn2", self.groups)
            y = layers.relu(y)
            y = conv_norm(y, out, 1, 1, "conv3", "bn3")
        else:
            y = conv_norm(x, out, 3, self.stride, "conv1", "bn1")
            y = layers.relu(layers.inside(y, extent))
            y = conv_norm(y, out, 3, 1, "conv2", "bn2")
        if self.stride > 1 or x.shape[-1] != out:
            x = conv_norm(x, out, 1, self.stride, "shortcut", "shortcut_bn")
        total = x + y
        if not self.bottleneck:  # the next block begins with a 3x3
            total = layers.inside(total, extent)
        return layers.relu(total)


class Stage(nn.Module):
    """Blocks of one width; the first takes the stride: conv2_x to conv5_x of table 1.

    `index` 1 to 4; stage 4 is the "res5" of other codes. `dilated`: its first block has
    stride 1, and its 3x3 convolutions have dilation 2. `remat`: the backward pass
    computes the inside of each block again instead of keeping it.
    """

    index: int
    depth: int
    stride_in_1x1: bool
    norm: str
    norm_eps: float
    groups: int
    group_width: int
    dtype: Any
    dilated: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """Return the stage's map; stage 1 keeps the resolution, the others halve it.

        `extent` in cells of `x`, which is zero beyond it where blocks begin with a 3x3.
        """
        blocks, bottleneck = STAGES[self.depth]
        halves = self.index > 1 and not self.dilated
        wider = 2 ** (self.index - 1)
        block = nn.remat(Block) if self.remat else Block
        for i in range(blocks[self.index - 1]):
            stride = 2 if i == 0 and halves else 1
            x = block(
                width=self.groups * self.group_width * wider,
                out=(256 if bottleneck else 64) * wider,
                stride=stride,
                bottleneck=bottleneck,
                stride_in_1x1=self.stride_in_1x1,
                groups=self.groups,
                dilation=2 if self.dilated else 1,
                norm=self.norm,
                norm_eps=self.norm_eps,
                dtype=self.dtype,
                name=f"block{i}",
            )(x, extent)
            extent = layers.cells(extent, stride)
        return x


class Backbone(nn.Module):
    """ResNet of `depth` layers giving `{4: c2, 8: c3, 16: c4, 32: c5}`.

    Only the maps of `out_strides` are returned, and no stage beyond the last of them
    exists: `out_strides=(16,)` is the C4 backbone whose stage 4 is `BoxHead`. With
    `dilated_c5` stage 4 keeps stride 16 and c5 replaces c4 (Dai et al. 2017, the DC5 of
    Detectron2). Convolutions start as He normal (fan out), as in torchvision. With
    `remat` training uses less memory and more time: it keeps only the maps between the
    blocks. Values and gradients are the same to rounding.
    """

    depth: int = 50
    out_strides: tuple[int, ...] = (4, 8, 16, 32)
    stride_in_1x1: bool = False
    norm: str = "frozen"
    norm_eps: float = 1e-5
    groups: int = 1
    group_width: int = 64
    dilated_c5: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.backbone",
            norm_eps=(self.norm_eps, ranges.NOT_NEGATIVE),
            groups=(self.groups, ranges.COUNT),
            group_width=(self.group_width, ranges.COUNT),
            stride_in_1x1=(self.stride_in_1x1, ranges.TRUTH),
            dilated_c5=(self.dilated_c5, ranges.TRUTH),
            remat=(self.remat, ranges.TRUTH),
        )
        check_depth(self.depth, self.groups, self.group_width)
        known = (4, 8, 16) if self.dilated_c5 else (4, 8, 16, 32)
        if not self.out_strides or not set(self.out_strides) <= set(known):
            raise ValueError(
                f"resnet out_strides={self.out_strides}: expected some of {known}"
            )
        layers.check_norm("backbone", self.norm, none=False)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extent: Int[Array, "b 2"] | None = None,
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        """Return the maps of `out_strides`, `ceil(h / stride)` cells high.

        What lies beyond the `extent` of an image, in pixels, changes nothing inside.
        """
        x = layers.Conv(
            64, 7, 2, use_bias=False, dtype=self.dtype, name="conv1"
        )(layers.inside(images, extent))  # fmt: skip
        norm = layers.norm(self.norm, name="bn1", eps=self.norm_eps, dtype=self.dtype)
        halved, now = layers.cells(extent, 2), layers.cells(extent, 4)
        x = layers.relu(layers.inside(norm(x, halved), halved))
        x = layers.inside(layers.max_pool(x, window=3, stride=2, padding=1), now)
        features = {}
        strides = (4, 8, 16, 16) if self.dilated_c5 else (4, 8, 16, 32)
        for index, stride in enumerate(strides, start=1):
            if stride > max(self.out_strides):
                break
            x = Stage(
                index=index,
                depth=self.depth,
                stride_in_1x1=self.stride_in_1x1,
                norm=self.norm,
                norm_eps=self.norm_eps,
                groups=self.groups,
                group_width=self.group_width,
                dilated=self.dilated_c5 and index == 4,
                remat=self.remat,
                dtype=self.dtype,
                name=f"layer{index}",
            )(x, now)
            features[stride], now = x, layers.cells(extent, stride)
        return {stride: features[stride] for stride in sorted(self.out_strides)}


class BoxHead(nn.Module):
    """The C4 head: stage 4 on every pooled RoI (14x14), global mean, two predictors.

    Initialised as the backbone; use the backbone's `depth` and flags. Names:
    `box_head/layer4/...`, `box_head/class_logits`, `box_head/class_deltas`.
    """

    num_classes: int
    depth: int = 50
    stride_in_1x1: bool = False
    norm: str = "frozen"
    norm_eps: float = 1e-5
    groups: int = 1
    group_width: int = 64
    class_agnostic: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        ranges.check(
            "model.box_head",
            norm_eps=(self.norm_eps, ranges.NOT_NEGATIVE),
            groups=(self.groups, ranges.COUNT),
            group_width=(self.group_width, ranges.COUNT),
            class_agnostic=(self.class_agnostic, ranges.TRUTH),
        )
        check_depth(self.depth, self.groups, self.group_width)
        layers.check_norm("box_head", self.norm, none=False)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b r h w c"], keys=None
    ) -> tuple[Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Return class_logits and class_deltas of each RoI; `keys` are not used."""
        del keys
        y = Stage(
            index=4,
            depth=self.depth,
            stride_in_1x1=self.stride_in_1x1,
            norm=self.norm,
            norm_eps=self.norm_eps,
            groups=self.groups,
            group_width=self.group_width,
            dtype=self.dtype,
            name="layer4",
        )(x.reshape((-1, *x.shape[2:])))
        return box_predictors(
            y.mean((1, 2)).reshape((*x.shape[:2], -1)),
            num_classes=self.num_classes,
            class_agnostic=self.class_agnostic,
            dtype=self.dtype,
        )


def check_depth(depth: int, groups: int = 1, group_width: int = 64) -> None:
    """Raise ValueError for a depth not in table 1, or groups without bottlenecks."""
    if depth not in STAGES:
        raise ValueError(f"resnet depth={depth}: expected one of {tuple(STAGES)}")
    if (groups, group_width) != (1, 64) and not STAGES[depth][1]:
        raise ValueError(
            f"resnet groups={groups}, group_width={group_width} need the bottlenecks "
            f"of depth 50 and more, not depth={depth}"
        )
