"""Faster R-CNN (Ren et al. 2016, fig. 2): one network that proposes and classifies.

    images -> backbone [-> fpn] -> rpn_head -> logits, deltas        FasterRCNN.rpn
    features, RoIs -> roi_align -> box_head -> class logits, deltas  FasterRCNN.detect

b images, h w map, k anchors a place, a anchors of all levels, r RoIs, C classes. What
lies between the two calls (proposals, sampling) has no parameters and is not here.

`build_detector` composes the parts from plain dicts, each the keyword arguments of one
function or class:

| group | keyword arguments of | default |
| --- | --- | --- |
| `backbone` | `build_backbone` and the module's `Backbone` | required |
| `fpn` | `fpn.FPN`; leave it out for one level (C4) | none |
| `anchors` | `anchor_pyramid` | FPN: 32 to 512 on strides 4 to 64 |
| `rpn` | `RPNHead` | |
| `roi_align` | `pool_rois` | 7x7 on strides 4 to 32 |
| or `roi_pool` | `max_pool_rois` | |
| `box_head` | `build_box_head` and the module's `BoxHead` | two layers of 1024 |
"""

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from frcnn_jax import models
from frcnn_jax.models import fpn as fpn_module
from frcnn_jax.models import layers
from frcnn_jax.ops import anchors as anchor_ops
from frcnn_jax.ops import roi_align as roi_ops

Features = dict[int, Float[Array, "b _ _ _"]]
Number = int | float


class RPNOutput(NamedTuple):
    """What the RPN says; levels are concatenated, small stride first."""

    features: Features  # of every stride; the RoIs are pooled from them
    anchors: Float[Array, "a 4"]  # the same for every image
    logits: Float[Array, "b a"] | Float[Array, "b a 2"]
    deltas: Float[Array, "b a 4"]
    level_sizes: tuple[int, ...]  # anchors of each level, static


class RPNHead(nn.Module):
    """Sec 3.1: a 3x3 convolution with ReLU, then two 1x1 ones; shared by all levels.

    `objectness` is "sigmoid" (k logits a place) or "softmax" (2k, as in the paper).
    `depth` counts the 3x3 convolutions. All kernels start as N(0, 0.01), biases at 0.
    Names: `conv` (then `conv2`, ...), `objectness`, `deltas`.

    Its gradients are fast where at most 256 anchors an image have one, as after Sec
    3.1.3; with more they are exact too, and take the time of the whole map. Forward
    mode (`jax.jvp`) does not go through it.
    """

    num_anchors: int
    channels: int = 256
    objectness: str = "sigmoid"
    depth: int = 1
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.objectness not in ("sigmoid", "softmax"):
            raise ValueError(
                f"rpn objectness={self.objectness!r}: expected 'sigmoid' or 'softmax'"
            )
        if self.depth < 1:
            raise ValueError(f"rpn depth={self.depth}: expected at least one layer")
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Features) -> tuple[Array, Float[Array, "b a 4"]]:
        """Return float32 logits `[b, a]` (or `[b, a, 2]`) and deltas `[b, a, 4]`.

        Strides ascend; inside a level the order is (y, x, anchor).
        """
        k, per_anchor = self.num_anchors, 2 if self.objectness == "softmax" else 1
        init = nn.initializers.normal(0.01)

        def weights(features, size, name):
            return layers.ConvWeights(features, size, init, self.dtype, name=name)

        names = ["conv", *(f"conv{i}" for i in range(2, self.depth + 1))]
        before = [
            layers.Conv(self.channels, kernel_init=init, dtype=self.dtype, name=name)
            for name in names[:-1]
        ]
        conv = weights(self.channels, 3, names[-1])
        objectness = weights(per_anchor * k, 1, "objectness")
        offsets = weights(4 * k, 1, "deltas")
        logits, deltas = [], []
        for stride in sorted(features):
            x = features[stride].astype(self.dtype)
            for layer in before:
                x = layers.relu(layer(x))
            last = conv(x.shape[-1]), objectness(self.channels), offsets(self.channels)
            # 256 anchors of an image are what the loss looks at (Sec 3.1.3).
            of_level = layers.sampled_head(last_layers, 256, last, x)
            logits.append(of_level["logits"].reshape((x.shape[0], -1, per_anchor)))
            deltas.append(of_level["deltas"].reshape((x.shape[0], -1, 4)))
        logits = jnp.concatenate(logits, axis=1).astype(jnp.float32)
        deltas = jnp.concatenate(deltas, axis=1).astype(jnp.float32)
        return logits if per_anchor == 2 else logits[..., 0], deltas


def last_layers(weights, x, padding):
    """The RPN's last 3x3 convolution with ReLU, and the two 1x1 ones, on one level."""
    (kernel, bias), (_, first), _ = weights
    x = layers.relu(layers.conv(x, kernel, bias, padding=padding))
    # One product, and so one gradient of x.
    kernel, bias = (
        jnp.concatenate(pair, -1) for pair in zip(*weights[1:], strict=True)
    )
    both = layers.conv(x, kernel, bias)
    return dict(logits=both[..., : len(first)], deltas=both[..., len(first) :])


class BoxHead(nn.Module):
    """FPN Sec 4.2: hidden layers of `widths` with ReLU, then the two predictors.

    Before them, 3x3 convolutions of the widths `convs` with `norm` (see `layers.norm`)
    and ReLU: `conv1`, `conv1_norm`, ... . `fc1` reads the map flattened in the order
    (y, x, channel); weights made for (channel, y, x), as PyTorch flattens, need
    `transpose` before they fit. Dense kernels start uniform with variance 1 / fan_in
    (Detectron2's choice).
    """

    num_classes: int
    widths: tuple[int, ...] = (1024, 1024)
    convs: tuple[int, ...] = ()
    norm: str = "none"
    class_agnostic: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        layers.check_norm("box_head", self.norm)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b r h w c"], keys=None
    ) -> tuple[Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Return class_logits and class_deltas of each RoI; `keys` are not used."""
        del keys
        b, r = x.shape[:2]
        x = x.reshape((b * r, *x.shape[2:])).astype(self.dtype)
        for i, width in enumerate(self.convs, start=1):
            x = layers.Conv(
                width,
                use_bias=self.norm == "none",
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            x = layers.norm(self.norm, dtype=self.dtype, name=f"conv{i}_norm")(x)
            x = layers.relu(x)
        x = x.reshape((b, r, -1))
        for i, width in enumerate(self.widths, start=1):
            x = nn.Dense(
                width,
                kernel_init=layers.xavier_uniform,
                dtype=self.dtype,
                name=f"fc{i}",
            )(x)
            x = layers.relu(x)
        return layers.box_predictors(
            x,
            num_classes=self.num_classes,
            class_agnostic=self.class_agnostic,
            dtype=self.dtype,
        )


def legacy_cells(sizes, aspect_ratios):
    """The anchors of `ops.anchors.legacy_cell_anchors` for `sizes` in pixels."""
    return anchor_ops.legacy_cell_anchors(
        aspect_ratios=aspect_ratios, scales=[s / 16 for s in np.ravel(sizes)]
    )


CELLS = dict(
    none=anchor_ops.cell_anchors,
    detectron2=anchor_ops.size_first_cell_anchors,
    torchvision=anchor_ops.rounded_cell_anchors,
    legacy=legacy_cells,
)


def anchor_pyramid(
    feature_sizes: Mapping[int, tuple[int, int]],
    *,
    strides: tuple[int, ...] = (4, 8, 16, 32, 64),
    sizes: tuple[Number | tuple[Number, ...], ...] = (32.0, 64.0, 128.0, 256.0, 512.0),
    aspect_ratios: tuple[Number, ...] = (0.5, 1.0, 2.0),
    offset: Number = 0.0,
    rounding: str = "none",
    levels: tuple[int, ...] = (),
) -> Float[Array, "a 4"]:
    """Return the anchors of all `strides`, for feature maps of `{stride: (h, w)}`.

    `sizes` has one entry a level: a length in pixels, or a tuple of them. `rounding` is
    that of other codes' weights, their order of anchors included: "torchvision"
    (`torchvision_strides` as well), "legacy" (py-faster-rcnn), "detectron2" (sizes
    outside, nothing rounded), or "none". `levels` are the keys of the maps where they
    are not the strides, as with two maps of one stride.
    """
    if rounding not in CELLS:
        raise ValueError(
            f"anchors.rounding={rounding!r}: expected one of {tuple(CELLS)}"
        )
    maps = [feature_sizes[key] for key in levels or strides]
    torchvision = rounding == "torchvision"
    return anchor_ops.pyramid(
        maps,
        torchvision_strides(maps, strides) if torchvision else strides,
        sizes,
        aspect_ratios,
        offset=offset,
        cells=CELLS[rounding],
    )


def torchvision_strides(
    maps: Sequence[tuple[int, int]], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """The strides (y, x) that torchvision gives the maps: whole pixels, image // map.

    They differ from `strides` where a map was rounded up: 800 // 13 = 61 in place of 64
    at 800 pixels. A canvas that is a multiple of 64 has the true ones.

    >>> torchvision_strides([(200, 336), (13, 21)], (4, 64))
    [(4, 4), (61, 64)]
    """
    (h, w), stride = maps[0], strides[0]
    return [(h * stride // y, w * stride // x) for y, x in maps]


def anchors_per_place(
    *,
    strides: tuple[int, ...] = (4, 8, 16, 32, 64),
    sizes: tuple[Number | tuple[Number, ...], ...] = (32.0, 64.0, 128.0, 256.0, 512.0),
    levels: tuple[int, ...] = (),
    **kwargs: Any,
) -> int:
    """Return k, the same for all levels; raise ValueError where levels disagree."""
    if list(strides) != sorted(strides):
        raise ValueError(f"anchors.strides={strides}: expected them to ascend")
    if len(strides) != len(sizes):
        raise ValueError(
            f"anchors: {len(strides)} strides {strides} but {len(sizes)} sizes "
            f"{sizes}; give one size, or one tuple of sizes, for each stride"
        )
    if levels and len(levels) != len(strides):
        raise ValueError(
            f"anchors.levels={levels}: expected one key for each of strides={strides}"
        )
    counts = {
        len(anchor_pyramid({8: (1, 1)}, strides=(8,), sizes=(size,), **kwargs))
        for size in sizes
    }
    if len(counts) != 1:
        raise ValueError(
            f"anchors: sizes={sizes} give {sorted(counts)} anchors a place; the RPN "
            "head is shared, so every level needs the same number"
        )
    return counts.pop()


def pool_rois(
    features: Features,
    rois: Float[Array, "b r 4"],
    *,
    strides: tuple[int, ...] = (4, 8, 16, 32),
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: Number = 224.0,
    canonical_level: int = 4,
) -> Float[Array, "b r o o c"]:
    """RoIAlign each RoI from the level of `strides` that suits its size (FPN eq. 1)."""
    missing = set(strides) - set(features)
    if missing:
        raise ValueError(
            f"roi_align.strides={strides}: no features of stride {sorted(missing)}; "
            f"there are {sorted(features)}"
        )
    one_image = partial(
        roi_ops.multilevel_roi_align,
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        canonical_size=canonical_size,
        canonical_level=canonical_level,
    )
    return jax.vmap(one_image)({s: features[s] for s in sorted(strides)}, rois)


def max_pool_rois(
    features: Features,
    rois: Float[Array, "b r 4"],
    *,
    stride: int = 16,
    output_size: int = 7,
) -> Float[Array, "b r o o c"]:
    """RoIPool each RoI from the one level of `stride` (Fast R-CNN, Sec 2.1)."""
    if stride not in features:
        raise ValueError(
            f"roi_pool.stride={stride}: no features of that stride; there are "
            f"{sorted(features)}"
        )
    one_image = partial(roi_ops.roi_pool, stride=stride, output_size=output_size)
    return jax.vmap(one_image)(features[stride], rois)


class FastRCNN(nn.Module):
    """The detector of RoIs that come from elsewhere (Girshick 2015, fig. 1).

    A backbone maps normalised images `[b, h, w, 3]` to `{stride: [b, h, w, c]}`, `pool`
    cuts out RoIs; a box head maps `[b, r, o, o, c]` (and a key an image, for dropout)
    to class_logits and class_deltas. Names of parameters: `backbone`, `fpn`,
    `box_head`.
    """

    backbone: nn.Module
    fpn: nn.Module | None
    box_head: nn.Module
    pool: Callable[..., Float[Array, "b r o o c"]]
    pixel_mean: tuple[Number, Number, Number]
    pixel_std: tuple[Number, Number, Number]

    def normalize(
        self, image: Num[Array, "b h w 3"], image_size: Int[Array, "b 2"]
    ) -> Float[Array, "b h w 3"]:
        """(image - pixel_mean) / pixel_std of RGB 0..255; zero outside `image_size`."""
        mean = jnp.asarray(self.pixel_mean, jnp.float32)[None, None, None]
        std = jnp.asarray(self.pixel_std, jnp.float32)[None, None, None]
        h, w = image.shape[1:3]
        inside_y = jnp.arange(h)[None] < image_size[:, :1]
        inside_x = jnp.arange(w)[None] < image_size[:, 1:]
        inside = (inside_y[:, :, None] & inside_x[:, None, :])[..., None]
        return jnp.where(inside, (image.astype(jnp.float32) - mean) / std, 0.0)

    def features(self, images: Float[Array, "b h w 3"]) -> Features:
        """Run backbone and neck on normalised images of any size."""
        features = self.backbone(images)
        return features if self.fpn is None else self.fpn(features)

    def detect(
        self,
        features: Features,
        rois: Float[Array, "b r 4"],
        keys: Array | None = None,
    ) -> tuple[Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Return class_logits and class_deltas of each RoI; `keys` only for dropout."""
        return self.box_head(self.pool(features, rois), keys)

    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Run everything on one RoI an image: what `init` needs."""
        return self.detect(self.features(images), _one_roi(images))


class FasterRCNN(FastRCNN):
    """FastRCNN and, on the same features, the RPN that proposes its RoIs.

    `anchors` maps `{stride: (h, w)}` to boxes, `levels` are the maps that the RPN sees.
    Names of parameters: those of FastRCNN and `rpn_head`.
    """

    rpn_head: nn.Module
    anchors: Callable[..., Float[Array, "a 4"]]
    levels: tuple[int, ...]

    def rpn(self, images: Float[Array, "b h w 3"]) -> RPNOutput:
        """Run backbone, neck and RPN on normalised images of any size."""
        return self.rpn_of(self.features(images))

    def rpn_of(self, features: Features) -> RPNOutput:
        """Run the RPN on the features of images."""
        missing = set(self.levels) - set(features)
        if missing:
            raise ValueError(
                f"anchors.strides={self.levels}: no features of stride "
                f"{sorted(missing)}; there are {sorted(features)}"
            )
        levels = {s: features[s] for s in sorted(self.levels)}
        sizes = {s: f.shape[1:3] for s, f in levels.items()}
        logits, deltas = self.rpn_head(levels)
        k = self.rpn_head.num_anchors
        return RPNOutput(
            features,
            jnp.asarray(self.anchors(sizes)),
            logits,
            deltas,
            tuple(h * w * k for h, w in sizes.values()),
        )

    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[RPNOutput, Float[Array, "b r c1"], Float[Array, "b r c2 4"]]:
        """Run both stages, the second on one RoI an image: what `init` needs."""
        out = self.rpn(images)
        return out, *self.detect(out.features, _one_roi(images))


def _one_roi(images):
    return jnp.broadcast_to(jnp.float32([0, 0, 32, 32]), (images.shape[0], 1, 4))


def build_detector(
    *,
    num_classes: int,
    backbone: Mapping[str, Any],
    fpn: Mapping[str, Any] | None = None,
    anchors: Mapping[str, Any] | None = None,
    rpn: Mapping[str, Any] | None = None,
    roi_align: Mapping[str, Any] | None = None,
    roi_pool: Mapping[str, Any] | None = None,
    box_head: Mapping[str, Any] | None = None,
    external_proposals: bool = False,
    pixel_mean: tuple[Number, Number, Number] = (123.675, 116.28, 103.53),
    pixel_std: tuple[Number, Number, Number] = (58.395, 57.12, 57.375),
    dtype: str = "float32",
) -> FastRCNN:
    """Compose a FasterRCNN of `num_classes` (without background) from plain dicts.

    `roi_pool` stands in place of `roi_align`. `external_proposals` leaves out the RPN:
    a FastRCNN, which has neither `anchors` nor `rpn`.

    `dtype` ("float32" or "bfloat16") is what the network computes in; parameters and
    outputs stay float32. Raises TypeError for a misspelt key and ValueError for a value
    that does not fit, each naming the group. A C4 detector:

        build_detector(
            num_classes=80,
            backbone=dict(name="resnet", depth=50, out_strides=(16,)),
            anchors=dict(strides=(16,), sizes=((32, 64, 128, 256, 512),)),
            rpn=dict(channels=1024),
            roi_align=dict(strides=(16,), output_size=14),
            box_head=dict(name="resnet", depth=50),
        )
    """
    compute = jnp.dtype(dtype)
    neck = None
    if fpn is not None:
        neck = fpn_module.FPN(
            dtype=compute, **_keywords("fpn", fpn_module.FPN, fpn, given=("dtype",))
        )
    parts: dict[str, Any] = dict(
        backbone=build_backbone(dtype=compute, **_plain(backbone)),
        fpn=neck,
        box_head=build_box_head(
            num_classes=num_classes, dtype=compute, **_plain(box_head or {})
        ),
        pool=_pooling(roi_align, roi_pool),
        pixel_mean=_plain(pixel_mean),
        pixel_std=_plain(pixel_std),
    )
    if external_proposals:
        if anchors or rpn:
            raise ValueError(
                "external_proposals=True builds no RPN: leave out anchors and rpn"
            )
        return FastRCNN(**parts)
    anchors = _keywords("anchors", anchor_pyramid, anchors, given=("feature_sizes",))
    rpn = _keywords("rpn", RPNHead, rpn, given=("num_anchors", "dtype"))
    return FasterRCNN(
        **parts,
        rpn_head=RPNHead(
            num_anchors=anchors_per_place(**anchors), dtype=compute, **rpn
        ),
        anchors=partial(anchor_pyramid, **anchors),
        levels=anchors.get("levels")
        or anchors.get("strides", _default(anchor_pyramid, "strides")),
    )


def _pooling(roi_align, roi_pool) -> Callable[..., Array]:
    """RoIPool where its group is given, else RoIAlign."""
    given = ("features", "rois")
    if roi_pool is None:
        return partial(
            pool_rois, **_keywords("roi_align", pool_rois, roi_align, given=given)
        )
    if roi_align is not None:
        raise ValueError("both roi_align and roi_pool are given: leave out one")
    return partial(
        max_pool_rois, **_keywords("roi_pool", max_pool_rois, roi_pool, given=given)
    )


def build_backbone(
    name: str, *, pretrained: str = "", dtype: Any = jnp.float32, **fields: Any
) -> nn.Module:
    """Return `Backbone(**fields)` of the module `frcnn_jax.models.<name>` (or a path).

    `pretrained` is a file of weights: it is read by `load_backbone` after `init`, not
    here. A Backbone without a field `dtype` computes in its own. Raises ValueError for
    an unknown name, TypeError for a misspelt field.
    """
    del pretrained
    backbone = _lookup("backbone", name, "Backbone")
    fields = _keywords(f"backbone {name!r}", backbone, fields, given=("dtype",))
    if "dtype" in inspect.signature(backbone).parameters:
        fields["dtype"] = dtype
    return backbone(**fields)


def build_box_head(
    name: str = "faster_rcnn",
    *,
    num_classes: int,
    dtype: Any = jnp.float32,
    **fields: Any,
) -> nn.Module:
    """Return `BoxHead(**fields)` of a module, found as `build_backbone` does."""
    head = _lookup("box_head", name, "BoxHead")
    given = ("num_classes", "dtype")
    fields = _keywords(f"box_head {name!r}", head, fields, given=given)
    return head(num_classes=num_classes, dtype=dtype, **fields)


def _lookup(group: str, name: str, attribute: str) -> Any:
    """The class `attribute` of a module of this package or of a dotted path."""
    path = name if "." in name else f"{models.__name__}.{name}"
    try:
        found = importlib.util.find_spec(path)
    except (ImportError, ValueError):
        found = None
    if found is not None:
        module = importlib.import_module(path)
        if hasattr(module, attribute):
            return getattr(module, attribute)
    available = [
        m.name
        for m in pkgutil.iter_modules(models.__path__)
        if hasattr(importlib.import_module(f"{models.__name__}.{m.name}"), attribute)
    ]
    raise ValueError(
        f"{group}.name={name!r}: no module of that name with a class {attribute}; "
        f"available are {available}, or the dotted path of your own module"
    )


def _keywords(
    group: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any] | None,
    *,
    given: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A plain copy of `arguments`; TypeError where one is not a keyword of `function`.

    `given` are the parameters that the caller fills.
    """
    hidden = {*given, "parent", "name"}
    allowed = [p for p in inspect.signature(function).parameters if p not in hidden]
    plain = _plain(arguments or {})
    unknown = [key for key in plain if key not in allowed]
    if unknown:
        raise TypeError(f"{group}: unexpected {unknown}; expected some of {allowed}")
    return plain


def _default(function: Callable[..., Any], parameter: str) -> Any:
    return inspect.signature(function).parameters[parameter].default


def _plain(value: Any) -> Any:
    """Dicts for mappings and tuples for lists, all the way down (fields are hashed)."""
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    return value
