"""From plain dicts to a detector.

`build_detector` takes one dict a part, each the keyword arguments of one function or
class:

| group | keyword arguments of | default |
| --- | --- | --- |
| `backbone` | `build_backbone` and the module's `Backbone` | required |
| `fpn` | `build_neck` and the module's `Neck`; leave it out for one level (C4) | none |
| `anchors` | `anchor_pyramid` | FPN: 32 to 512 on strides 4 to 64 |
| `rpn` | `RPNHead` | |
| `roi_align` | `pool_rois` | 7x7 on strides 4 to 32 |
| or `roi_pool` | `max_pool_rois` | |
| `box_head` | `build_box_head` and the module's `BoxHead` | two layers of 1024 |

A C4 detector:

    build_detector(
        num_classes=80,
        backbone=dict(name="resnet", depth=50, out_strides=(16,)),
        anchors=dict(strides=(16,), sizes=((32, 64, 128, 256, 512),)),
        rpn=dict(channels=1024),
        roi_align=dict(strides=(16,), output_size=14),
        box_head=dict(name="resnet", depth=50),
    )
"""

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from frcnn_jax import models, ranges
from frcnn_jax.models.anchor_levels import anchor_pyramid, anchors_per_place
from frcnn_jax.models.cascade import CascadeHead, CascadeRCNN
from frcnn_jax.models.faster_rcnn import FasterRCNN, FastRCNN
from frcnn_jax.models.pooling import max_pool_rois, pool_rois
from frcnn_jax.models.rpn_head import RPNHead

Number = int | float


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
    pad_to: int = 0,
    stages: int = 1,
    pixel_mean: tuple[Number, Number, Number] = (123.675, 116.28, 103.53),
    pixel_std: tuple[Number, Number, Number] = (58.395, 57.12, 57.375),
    dtype: str = "float32",
) -> FastRCNN:
    """Compose a FasterRCNN of `num_classes` (without background) from plain dicts.

    `roi_pool` replaces `roi_align`. `external_proposals` leaves out the RPN: a
    FastRCNN, which has neither `anchors` nor `rpn`. `stages` above 1 is a CascadeRCNN
    of so many box heads, class-agnostic, each as `box_head` says.

    An image gets what it would get alone on a canvas of its size rounded up to
    `pad_to`; 0 is 32 with an FPN, as torchvision and Detectron2 pad, and 1 without.

    `dtype` is what the network computes in: "float32", "bfloat16", or "float64" (with
    `jax_enable_x64`, for comparisons); parameters and outputs stay float32. Raises
    TypeError for a misspelt key and ValueError for a value that does not fit, each
    naming the group.
    """
    ranges.check(
        "model",
        external_proposals=(external_proposals, ranges.TRUTH),
        pad_to=(pad_to, ranges.COUNT_OR_NONE),
        stages=(stages, ranges.COUNT),
        pixel_mean=(_plain(pixel_mean), ranges.several(ranges.NOT_NEGATIVE, 3)),
        pixel_std=(_plain(pixel_std), ranges.several(ranges.POSITIVE, 3)),
        dtype=(dtype, ranges.one_of("float32", "bfloat16", "float64")),
    )
    compute = jnp.dtype(dtype)
    neck = None if fpn is None else build_neck(dtype=compute, **_plain(fpn))
    head = {**_plain(box_head or {}), "num_classes": num_classes, "dtype": compute}
    parts: dict[str, Any] = dict(
        backbone=build_backbone(dtype=compute, **_plain(backbone)),
        fpn=neck,
        box_head=build_box_head(**head) if stages == 1 else _cascade(stages, head),
        pool=_pooling(roi_align, roi_pool),
        pixel_mean=_plain(pixel_mean),
        pixel_std=_plain(pixel_std),
        pad_to=pad_to or (1 if fpn is None else 32),
    )
    if external_proposals:
        if anchors or rpn or stages > 1:
            raise ValueError(
                "external_proposals=True: leave out anchors and rpn, and stages"
            )
        return FastRCNN(**parts)
    network = FasterRCNN if stages == 1 else CascadeRCNN
    return network(**parts, **_rpn(anchors, rpn, compute))


def _rpn(anchors: Any, rpn: Any, dtype: Any) -> dict[str, Any]:
    """What a FasterRCNN has besides a FastRCNN."""
    anchors = _keywords(
        "anchors", anchor_pyramid, anchors, given=("feature_sizes", "extent")
    )
    rpn = _keywords("rpn", RPNHead, rpn, given=("num_anchors", "dtype"))
    count = anchors_per_place(**anchors)
    return dict(
        rpn_head=RPNHead(num_anchors=count, dtype=dtype, **rpn),
        anchors=partial(anchor_pyramid, **anchors),
        levels=anchors.get("levels")
        or anchors.get("strides", _default(anchor_pyramid, "strides")),
    )


def _cascade(stages: int, head: Mapping[str, Any]) -> nn.Module:
    """Box heads of their own parameters; ValueError for boxes of each class."""
    fields = {"class_agnostic": True, **head}
    if not fields["class_agnostic"]:
        raise ValueError(
            f"model.stages={stages} with box_head.class_agnostic=False: a cascade "
            "refines one box a RoI; leave class_agnostic out"
        )
    return CascadeHead(stages=tuple(build_box_head(**fields) for _ in range(stages)))


def with_defaults(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the group `model` with the defaults of each part's function filled in.

    Parts that the detector does not have (FPN, RPN, one of the two poolings) stay out.

    >>> with_defaults({"backbone": {"name": "resnet"}})["roi_align"]["aligned"]
    True
    """
    given = _plain(model)
    parts: dict[str, Callable[..., Any]] = dict(
        backbone=_lookup("backbone", given["backbone"]["name"], "Backbone"),
        box_head=_lookup(
            "box_head", given.get("box_head", {}).get("name", "box_head"), "BoxHead"
        ),
    )
    if given.get("fpn") is not None:
        parts["fpn"] = _lookup("fpn", given["fpn"].get("name", "fpn"), "Neck")
    if not given.get("external_proposals"):
        parts |= dict(anchors=anchor_pyramid, rpn=RPNHead)
    if given.get("roi_pool") is None:
        parts["roi_align"] = pool_rois
    else:
        parts["roi_pool"] = max_pool_rois
    own = {k: v for k, v in given.items() if not isinstance(v, dict)}
    filled = {**_defaults(build_detector), **own}
    for name, function in parts.items():
        filled[name] = {**_defaults(function), **(given.get(name) or {})}
    return filled


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a function's keyword arguments, or of a module's fields."""
    return {
        name: p.default
        for name, p in inspect.signature(function).parameters.items()
        if p.default not in (inspect.Parameter.empty, None)
        and name not in ("parent", "name", "dtype")
    }


def _pooling(roi_align, roi_pool) -> Callable[..., Array]:
    """RoIPool where its group is given, else RoIAlign."""
    given = ("features", "rois", "extent")
    if roi_pool is None:
        align = _keywords("roi_align", pool_rois, roi_align, given=given)
        _check_pooling("model.roi_align", align)
        return partial(pool_rois, **align)
    if roi_align is not None:
        raise ValueError("both roi_align and roi_pool are given: leave out one")
    pool = _keywords("roi_pool", max_pool_rois, roi_pool, given=given)
    _check_pooling("model.roi_pool", pool)
    return partial(max_pool_rois, **pool)


def _check_pooling(group: str, values: Mapping[str, Any]) -> None:
    """ValueError names the first argument that is out of its range."""
    rules = dict(
        strides=ranges.several(ranges.COUNT),
        stride=ranges.COUNT,
        output_size=ranges.COUNT,
        sampling_ratio=ranges.COUNT_OR_NONE,  # 0 is the adaptive rule
        max_samples=ranges.COUNT,
        aligned=ranges.TRUTH,
        canonical_size=ranges.POSITIVE,
        canonical_level=ranges.COUNT_OR_NONE,
    )
    ranges.check(group, **{k: (v, rules[k]) for k, v in values.items() if k in rules})


def build_backbone(
    name: str, *, pretrained: str = "", dtype: Any = jnp.float32, **fields: Any
) -> nn.Module:
    """Return `Backbone(**fields)` of the module `frcnn_jax.models.<name>` (or a path).

    `pretrained` is a file of weights; `weights.load_backbone` reads it after `init`,
    not this function. A Backbone without a field `dtype` computes in its own. Raises
    ValueError for an unknown name, TypeError for a misspelt field.
    """
    ranges.check("model.backbone", pretrained=(pretrained, ranges.TEXT))
    backbone = _lookup("backbone", name, "Backbone")
    fields = _keywords(f"backbone {name!r}", backbone, fields, given=("dtype",))
    if "dtype" in inspect.signature(backbone).parameters:
        fields["dtype"] = dtype
    return backbone(**fields)


def build_neck(
    name: str = "fpn", *, dtype: Any = jnp.float32, **fields: Any
) -> nn.Module:
    """Return `Neck(**fields)` of a module, found as `build_backbone` does."""
    neck = _lookup("fpn", name, "Neck")
    return neck(dtype=dtype, **_keywords("fpn", neck, fields, given=("dtype",)))


def build_box_head(
    name: str = "box_head",
    *,
    num_classes: int,
    dtype: Any = jnp.float32,
    **fields: Any,
) -> nn.Module:
    """Return `BoxHead(**fields)` of a module, found as `build_backbone` does."""
    # Where it stood when older checkpoints were written.
    if name in ("faster_rcnn", "frcnn_jax.models.faster_rcnn"):
        name = "box_head"
    head = _lookup("box_head", name, "BoxHead")
    given = ("num_classes", "dtype")
    fields = _keywords(f"box_head {name!r}", head, fields, given=given)
    return head(num_classes=num_classes, dtype=dtype, **fields)


def _lookup(group: str, name: str, attribute: str) -> Any:
    """The class `attribute` of a module of this package or of a dotted path."""
    ranges.check(f"model.{group}", name=(name, ranges.TEXT))
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
