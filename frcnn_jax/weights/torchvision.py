"""torchvision's state dicts <-> our variables: one table, read in both directions.

One deep thing: `places` says for each of our arrays how torchvision calls it and lays
it out; loading and exporting follow from it. Layouts, torch -> ours:

| layout | torch | ours |
| --- | --- | --- |
| `vector` | `[c]` | `[c]` |
| `gain` | `[c, 1, 1]` | `[c]` |
| `table` | `[offsets, heads]` | `[offsets, heads]` |
| `conv` | `[o, i, h, w]`, depthwise `[c, 1, h, w]` | `[h, w, i, o]`, `[h, w, 1, c]` |
| `dense` | `[o, i]` | `[i, o]` |
| `pooled` | `[o, (c h w)]`, what follows the pooled RoI | `[(h w c), o]` |
| `logits` | a row a class, background first | columns, background first |
| `deltas` | four rows a class, background first | four columns a class, no background |

Epsilon, anchor rounding and `aligned` change no shape, so this module does not notice a
wrong one: `families` compares them. `experiments/coco_*.py` have the right ones.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from frcnn_jax.weights import cascade, detectron2, mmdetection, timm
from frcnn_jax.weights.files import read_arrays, read_notes, shorten
from frcnn_jax.weights.tree import flatten, unflatten

Key = tuple[str, ...]


class Place(NamedTuple):
    """Where an array of ours stands in a state dict."""

    name: str
    layout: str


ARRAYS = dict(
    kernel="weight", bias="bias", scale="weight", mean="running_mean", var="running_var"
)
RPN_HEAD = {"objectness": "cls_logits", "deltas": "bbox_pred"}
PREDICTORS = {"class_logits": "cls_score", "class_deltas": "bbox_pred"}
# Names that torchvision itself renames while it loads files of its first versions.
OLD_NAMES = (
    (r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
)
# What may lie in a file without a place here: counters, indices and masks that follow
# from a window's size, ImageNet classifiers with the norm before them, and the branches
# of Mask and Keypoint R-CNN beside the boxes.
IGNORED = re.compile(
    r"(num_batches_tracked|attn\.relative_position_index|attn_mask)$"
    r"|^(fc|classifier|head|norm)\.|^roi_heads\.(mask|keypoint)_(head|predictor)\."
)
# Parts of a block of ConvNeXt, and of Swin.
PARTS = {
    "depthwise": "block.0",
    "norm": "block.2",
    "expand": "block.3",
    "project": "block.5",
    "layer_scale": "layer_scale",
    "norm1": "norm1",
    "attention/qkv": "attn.qkv",
    "attention/positions": "attn.relative_position_bias_table",
    "attention/project": "attn.proj",
    "norm2": "norm2",
    "mlp_expand": "mlp.0",
    "mlp_project": "mlp.3",
}


def load_detector(
    path: str | pathlib.Path,
    variables: Mapping[str, Any],
    *,
    classes: Sequence[int] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Return `variables` filled from a Faster R-CNN of a peer, and a report.

    The peer is torchvision, Detectron2, Detectron or MMDetection; the names tell. Of
    Mask and Keypoint R-CNN the box branch is taken. `classes` are the rows of the file
    (0 is background) that become classes 1..C, as COCO's 80 categories of torchvision's
    91 rows; by default all. The report has a line for each array: used and how, or
    ignored. Raises ValueError, naming them, for arrays that are missing, have no place
    in the model, or do not fit. A model with several box heads is a Cascade R-CNN's.
    """
    heads = sorted(n for n in variables["params"]["box_head"] if n[:7] == "stages_")
    found = cascade.stages(read_arrays(path))
    if found != len(heads):
        raise ValueError(
            f"{path} has {found or 1} box heads, the model {len(heads) or 1}: "
            "experiments/coco_cascade_r50_fpn.py has three, a Cascade R-CNN; "
            "coco_r50_fpn.py has one"
        )
    if heads:
        return _load_cascade(path, variables, heads, classes)
    model = flatten(variables)
    source = read_source(path)
    if not any(name.startswith("roi_heads.") for name in source.arrays):
        raise ValueError(unknown(path, source))
    return _fill(path, model, places(model), source, classes)


def _load_cascade(
    path: str | pathlib.Path,
    variables: Mapping[str, Any],
    heads: Sequence[str],
    classes: Sequence[int] | None,
) -> tuple[dict[str, Any], list[str]]:
    """`load_detector`, of each box head as of a Faster R-CNN with that one."""
    params, filled, lines = variables["params"], {}, []
    for stage, head in enumerate(heads):
        part = {**params, "box_head": params["box_head"][head]}
        model = flatten({**variables, "params": part})
        source = read_source(path, stage=stage)
        one, report = _fill(path, model, places(model), source, classes)
        filled[head] = one["params"]["box_head"]
        shown = [x.replace("/box_head/", f"/box_head/{head}/") for x in report]
        lines += [x for x in shown if not stage or f"/box_head/{head}/" in x]
    one["params"]["box_head"] = filled
    return one, lines


def count_classes(path: str | pathlib.Path) -> int:
    """Return the number of classes, without background, of a peer's detector."""
    name = "roi_heads.box_predictor.cls_score.bias"
    arrays = read_source(path).arrays
    if name not in arrays:
        raise ValueError(unknown(path, read_source(path)))
    return len(arrays[name]) - 1


def unknown(path: Any, source: "Source") -> str:
    """What to say of a file that holds no detector: names looked for, and found."""
    found = ", ".join([source.origin.get(n, n) for n in source.arrays][:3])
    return (
        f"{path} holds no detector that is known: it has arrays such as {found}; "
        "expected names of torchvision (roi_heads.box_predictor.*), Detectron2 "
        "(proposal_generator.*), Detectron (cls_score_w) or MMDetection (rpn_head.*)"
    )


class Source(NamedTuple):
    """The arrays of a file under torchvision's names."""

    arrays: dict[str, np.ndarray]
    origin: dict[str, str]  # what a name was in the file, where it was another
    ignored: list[str]  # names of the file that are no weights


def read_source(path: str | pathlib.Path, *, stage: int = 0) -> Source:
    """Read a file of torchvision, timm, Detectron2, Detectron or MMDetection.

    Of a Cascade R-CNN the Faster R-CNN of one `stage`, counted from 0.
    """
    arrays = read_arrays(path)
    if cascade.stages(arrays):
        arrays = cascade.single(arrays, stage)
    if mmdetection.recognises(arrays):
        bgr = mmdetection.is_bgr(path, read_notes(path))
        try:
            return Source(*mmdetection.to_torchvision(arrays, bgr=bgr))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    for names in (detectron2, timm):
        if names.recognises(arrays):
            return Source(*names.to_torchvision(arrays))
    return Source(rename(arrays), {}, [])


def load_backbone(
    path: str | pathlib.Path, variables: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `variables` (of a detector) with the backbone's arrays read from `path`.

    The file is a classifier of torchvision (ResNet, ResNeXt, MobileNetV3, ConvNeXt,
    Swin), timm (the same; its plain ResNets have the same names) or Detectron2's zoo,
    or a detector of which only the backbone is taken. Norms that a detector has and no
    classifier (`out_norm4`) keep their values. Raises as `load_detector` does.
    """
    source = read_source(path)
    arrays = source.arrays
    prefix = "backbone.body."
    if any(name.startswith(prefix) for name in arrays):
        arrays = {n: a for n, a in arrays.items() if n.startswith(prefix)}
    else:
        arrays = {prefix + n.removeprefix("features."): a for n, a in arrays.items()}
    arrays = {
        name: array
        for name, array in arrays.items()
        if not IGNORED.search(name.removeprefix(prefix))
    }
    model = flatten(variables)
    # The C4 detectors keep stage 4 of the backbone in the box head.
    body = {
        key: leaf
        for key, leaf in model.items()
        if (key[1] == "backbone" and not key[2].startswith("out_norm"))
        or key[1:3] == ("box_head", "layer4")
    }
    return _fill(path, model, places(body), source._replace(arrays=arrays), None)[0]


def export_detector(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the state dict that torchvision's model of this shape loads.

    Box regressions of the background, which torchvision has and never uses, are zero.
    Raises ValueError for a model that torchvision has none of.
    """
    model = flatten(variables)
    if any(key[1:3] == ("box_head", "layer4") for key in model):
        raise ValueError("a C4 model has no counterpart in torchvision")
    if not any(key[1] == "rpn_head" for key in model):
        raise ValueError("a model without an RPN has no counterpart in torchvision")
    return {
        place.name: _to_torch(np.asarray(model[key]), place.layout, model)
        for key, place in places(model).items()
    }


def rename(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays under the names of current versions of torchvision."""
    renamed = {}
    for name, array in arrays.items():
        for old, new in OLD_NAMES:
            name = re.sub(old, new, name)
        renamed[name] = array
    return renamed


def places(model: Mapping[Key, Any]) -> dict[Key, Place]:
    """Return the Place of each array of `{("params", "backbone", ...): array}`.

    Raises ValueError for an array that torchvision's detectors do not have.
    """
    found = {}
    for key, array in model.items():
        _, group, *path, kind = key
        modules = dict(
            backbone=_backbone_module,
            fpn=_fpn_module,
            rpn_head=_rpn_module,
            box_head=_box_module,
        )
        module = modules[group](path, model) if group in modules else None
        if module is None or kind not in ARRAYS:
            raise ValueError(f"{'/'.join(key)} has no place in torchvision's detectors")
        layout = _layout(group, path, np.ndim(array), model)
        name = f"{module}.{ARRAYS[kind]}"
        bare = layout in ("gain", "table")  # a parameter of the block itself
        found[key] = Place(module if bare else name, layout)
    return found


def _backbone_module(path: list[str], model: Mapping[Key, Any]) -> str | None:
    """`layer1/block0/conv2` -> `layer1.0.conv2`; MobileNet's blocks are numbered."""
    body = "backbone.body"
    if path[0] in ("embed", "embed_norm"):
        return f"{body}.0.{0 if path[0] == 'embed' else 2}"
    if match := re.fullmatch(r"(stem|last)(_bn|_norm)?", path[0]):
        part, norm = match.groups()
        return f"{body}.{16 if part == 'last' else 0}.{int(norm is not None)}"
    if match := re.fullmatch(r"stage([1-4])", path[0]):
        return _stage_module(int(match[1]), path[1:])
    if match := re.fullmatch(r"block(\d+)", path[0]):
        parts = ("expand", "depthwise", "squeeze", "project")
        there = [
            p for p in parts if ("params", "backbone", path[0], p, "kernel") in model
        ]
        block = f"{body}.{match[1]}.block"
        if path[1] in ("squeeze", "excite"):
            fc = "fc1" if path[1] == "squeeze" else "fc2"
            return f"{block}.{there.index('squeeze')}.{fc}"
        part = path[1].removesuffix("_bn")
        return f"{block}.{there.index(part)}.{int(path[1].endswith('_bn'))}"
    if len(path) == 1 and path[0] in ("conv1", "bn1"):
        return f"{body}.{path[0]}"
    if len(path) == 3 and re.fullmatch(r"layer[1-4]", path[0]):
        shortcut = {"shortcut": "downsample.0", "shortcut_bn": "downsample.1"}
        block = path[1].removeprefix("block")
        return f"{body}.{path[0]}.{block}.{shortcut.get(path[2], path[2])}"
    return None


def _stage_module(stage: int, path: list[str]) -> str | None:
    """Of ConvNeXt's second stage `block0/norm` -> `3.0.block.2`, `down` -> `2.1`."""
    between = dict(down_norm="0", down="1", merge_norm="norm", merge="reduction")
    if path[0] in between:
        return f"backbone.body.{2 * stage - 2}.{between[path[0]]}"
    part = PARTS.get("/".join(path[1:]))
    block = path[0].removeprefix("block")
    return part and f"backbone.body.{2 * stage - 1}.{block}.{part}"


def _fpn_module(path: list[str], model: Mapping[Key, Any]) -> str | None:
    """`lateral8` -> `inner_blocks.1.0`, where 8 is the second of the strides."""
    laterals = [re.fullmatch(r"lateral(\d+)", k[2]) for k in model if k[1] == "fpn"]
    strides = sorted({int(m[1]) for m in laterals if m})
    match = re.fullmatch(r"(lateral|output)(\d+)(_norm)?", path[0])
    if match is None:
        return None
    blocks = "inner_blocks" if match[1] == "lateral" else "layer_blocks"
    i = strides.index(int(match[2]))
    return f"backbone.fpn.{blocks}.{i}.{int(match[3] is not None)}"


def _rpn_module(path: list[str], model: Mapping[Key, Any]) -> str | None:
    """`conv2` -> `conv.1.0`."""
    if match := re.fullmatch(r"conv(\d*)", path[0]):
        return f"rpn.head.conv.{int(match[1] or 1) - 1}.0"
    name = RPN_HEAD.get(path[0])
    return name and f"rpn.head.{name}"


def _box_module(path: list[str], model: Mapping[Key, Any]) -> str | None:
    """`fc1` -> `fc6`, but after n convolutions and the flattening `n + 1`."""
    if path[0] in PREDICTORS:
        return f"roi_heads.box_predictor.{PREDICTORS[path[0]]}"
    if path[0] == "layer4":  # C4, in Detectron2 alone
        return _backbone_module(path, model)
    match = re.fullmatch(r"(conv|fc)(\d+)(_norm)?", path[0])
    if match is None:
        return None
    kind, i = match[1], int(match[2])
    convs = len(_box_convs(model))
    if kind == "conv":
        return f"roi_heads.box_head.{i - 1}.{int(match[3] is not None)}"
    return f"roi_heads.box_head.{convs + 2 * i - 1 if convs else f'fc{i + 5}'}"


def _layout(group: str, path: list[str], rank: int, model: Mapping[Key, Any]) -> str:
    if group == "box_head" and path[0] in PREDICTORS:
        return path[0].removeprefix("class_")
    if rank == 2 and path[0] == "fc1":
        return "pooled"
    if path[-1] in ("layer_scale", "positions"):
        return "gain" if path[-1] == "layer_scale" else "table"
    return {1: "vector", 2: "dense", 4: "conv"}[rank]


def _box_convs(model: Mapping[Key, Any]) -> list[str]:
    names = {key[2] for key in model if key[1] == "box_head"}
    return sorted(name for name in names if re.fullmatch(r"conv\d+", name))


def _pooled(model: Mapping[Key, Any]) -> int:
    """The channels of the map that is flattened into the box head's first layer."""
    if convs := _box_convs(model):
        return model["params", "box_head", convs[-1], "kernel"].shape[-1]
    return model["params", "rpn_head", "conv", "kernel"].shape[2]


def _from_torch(
    array: np.ndarray,
    layout: str,
    model: Mapping[Key, Any],
    classes: Sequence[int] | None,
) -> np.ndarray:
    if layout in ("logits", "deltas"):
        rows = array if layout == "logits" else array.reshape((-1, 4, *array.shape[1:]))
        chosen = list(range(1, len(rows)) if classes is None else classes)
        if layout == "deltas" and len(rows) == 2:  # one box for all classes
            chosen = [1]
        rows = rows[[0, *chosen] if layout == "logits" else chosen]
        return rows.reshape((-1, *array.shape[1:])).T
    if layout == "pooled":
        channels = _pooled(model)
        side = int((array.shape[1] / channels) ** 0.5)
        maps = array.reshape((-1, channels, side, side))
        return maps.transpose(2, 3, 1, 0).reshape((-1, len(array)))
    if layout == "gain":
        return array.reshape(-1)
    if layout == "table":
        return array
    return array.transpose({"conv": (2, 3, 1, 0), "dense": (1, 0)}.get(layout))


def _to_torch(array: np.ndarray, layout: str, model: Mapping[Key, Any]) -> np.ndarray:
    if layout == "deltas":
        background = np.zeros((*array.shape[:-1], 4), array.dtype)
        return np.concatenate([background, array], -1).T
    if layout == "pooled":
        channels = _pooled(model)
        side = int((len(array) / channels) ** 0.5)
        maps = array.reshape((side, side, channels, -1))
        return maps.transpose(3, 2, 0, 1).reshape((array.shape[1], -1))
    if layout == "gain":
        return array.reshape((-1, 1, 1))
    if layout == "table":
        return array
    return array.transpose((3, 2, 0, 1)) if layout == "conv" else array.T


def _fill(
    path: Any,
    model: Mapping[Key, Any],
    found: Mapping[Key, Place],
    source: Source,
    classes: Sequence[int] | None,
) -> tuple[dict[str, Any], list[str]]:
    """Put the arrays of a file where they belong, or say all that is wrong with it."""

    def called(name: str) -> str:
        return source.origin.get(name, name)

    arrays, names = source.arrays, {place.name for place in found.values()}
    left = [n for n in arrays if n not in names]
    ignored = [*source.ignored, *(called(n) for n in left if IGNORED.search(n))]
    problems = [f"not in the file: {called(n)}" for n in names - set(arrays)]
    problems += [
        f"not in the model: {called(n)}" for n in left if not IGNORED.search(n)
    ]
    filled, report = dict(model), [f"ignored {name}" for name in ignored]
    for key, (name, layout) in found.items():
        if name not in arrays:
            continue
        array, shape = arrays[name], model[key].shape
        if layout == "table":  # of another window
            array = timm.swin_table(array, shape[0])
        try:
            value = _from_torch(array, layout, model, classes)
        except (ValueError, IndexError) as error:
            problems.append(f"{called(name)} of shape {array.shape}: {error}")
            continue
        if value.shape != shape:
            problems.append(
                f"{called(name)} has shape {array.shape}, {'/'.join(key)} needs {shape}"
            )
        filled[key] = jnp.asarray(value, jnp.float32)
        report.append(
            f"{called(name)} {array.shape} -> {'/'.join(key)} {shape} ({layout})"
        )
    if problems:
        raise ValueError(f"{path} does not fit the model: " + shorten(sorted(problems)))
    return unflatten(filled), sorted(report)
