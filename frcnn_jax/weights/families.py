"""The family of a weights file, and the conventions that its arrays were trained with.

A wrong pixel scale, stride, epsilon, anchor or RoIAlign changes no shape: the file
loads, and the detections are silently worse. `families` recognises who wrote a file by
the names of its arrays, `contradictions` compares what that family fixes with the
leaves of an experiment. A classifier fixes pixels, stride and epsilon, a detector
anchors, RoIAlign and box coding as well. Thresholds of scores and of NMS are the
user's, and the readers put the background first.

| source of the facts | |
| --- | --- |
| torchvision | `models/detection/faster_rcnn.py`, `mobilenetv3.py`, `ops/misc.py` |
| Detectron2 | `config/defaults.py`, the zoo's `COCO-Detection/*.yaml` |
| MMDetection | `configs/_base_/models/faster-rcnn_*.py`, `anchor_generator.py` |
| Detectron | `core/config.py`, `modeling/generate_anchors.py` |
| Keras | `applications/resnet.py`, `imagenet_utils.preprocess_input` (mode "caffe") |
"""

import hashlib
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from frcnn_jax.weights import cascade, detectron2, mmdetection, timm, vit, zoo
from frcnn_jax.weights.files import read_arrays, read_notes

Fixed = dict[str, tuple[Any, ...]]


class Family(NamedTuple):
    """Who wrote a file, and what its arrays need.

    `fixed` has, for each leaf of an experiment, the values that fit; `experiment` is a
    shipped one that has them, `settings` the configuration of a detector in the package
    (`zoo.settings`), where there is one.
    """

    name: str
    experiment: str
    fixed: Fixed
    settings: str = ""


IMAGENET: Fixed = {
    "model.pixel_mean": ((123.675, 116.28, 103.53),),
    "model.pixel_std": ((58.395, 57.12, 57.375),),
}
UNSCALED: Fixed = {**IMAGENET, "model.pixel_std": ((1.0, 1.0, 1.0),)}
# What `backbone.pretrained` and `init_from` take over from a detector.
BACKBONE = (
    *("model.pixel_mean", "model.pixel_std"),
    *("model.backbone.stride_in_1x1", "model.backbone.norm_eps", "model.backbone.bgr"),
)


def _resnet(*eps: float, stride_in_1x1: bool = False) -> Fixed:
    return {
        "model.backbone.stride_in_1x1": (stride_in_1x1,),
        "model.backbone.norm_eps": eps or (1e-5,),
    }


STDS: Fixed = {
    "rpn_targets.stds": ((1.0, 1.0, 1.0, 1.0),),
    "roi_targets.stds": ((0.1, 0.1, 0.2, 0.2),),
    "postprocess.stds": ((0.1, 0.1, 0.2, 0.2),),
    "proposals.eval.stds": ((1.0, 1.0, 1.0, 1.0),),
}
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)


def _anchors(strides, sizes, *rounding: str) -> Fixed:
    return {
        "model.anchors.strides": (strides,),
        "model.anchors.sizes": (sizes,),
        "model.anchors.aspect_ratios": ((0.5, 1.0, 2.0),),
        "model.anchors.offset": (0.0,),
        "model.anchors.rounding": rounding,
    }


def _roi_align(*strides: int, aligned: bool, size: int = 7) -> Fixed:
    several: Fixed = {
        "model.roi_align.canonical_size": (224.0,),
        "model.roi_align.canonical_level": (4,),
    }
    return {
        "model.roi_align.strides": (strides,),
        "model.roi_align.output_size": (size,),
        "model.roi_align.aligned": (aligned,),
        **(several if len(strides) > 1 else {}),
    }


FPN = (4, 8, 16, 32, 64)
TORCHVISION: Fixed = {
    **IMAGENET,
    **STDS,
    "model.roi_align.sampling_ratio": (2,),
}
V1: Fixed = {
    **TORCHVISION,
    **_resnet(0.0, 1e-5),
    **_anchors(FPN, SIZES, "torchvision"),
    **_roi_align(4, 8, 16, 32, aligned=False),
}
# The published weights of v1, Mask and Keypoint R-CNN are older than the epsilon: their
# name ends in the start of their SHA-256, and torchvision sets 0 for them.
V1_WITHOUT_EPSILON = ("258fb6c6", "bf2d0c1e", "fc266e95", "9f466800")
MOBILENET: Fixed = {
    **TORCHVISION,
    "model.backbone.norm_eps": (1e-5,),
    **_anchors((32, 32, 64), (SIZES,) * 3, "torchvision"),
    **_roi_align(32, aligned=False),
}
ADAPTIVE: Fixed = {"model.roi_align.sampling_ratio": (0,)}  # ceil(RoI side / cells)
DETECTRON2: dict[str, Fixed] = {
    "FPN": {
        **_anchors(FPN, SIZES, "detectron2", "none"),  # equal for one size a level
        **_roi_align(4, 8, 16, 32, aligned=True),
    },
    "C4": {
        **_anchors((16,), (SIZES,), "detectron2"),
        **_roi_align(16, aligned=True, size=14),
        "model.backbone.dilated_c5": (False,),
        "model.box_head.stride_in_1x1": (True,),
        "model.box_head.norm_eps": (1e-5,),
    },
    "DC5": {
        **_anchors((16,), (SIZES,), "detectron2"),
        **_roi_align(16, aligned=True),
        "model.backbone.dilated_c5": (True,),
    },
}
MMDETECTION: dict[str, Fixed] = {
    kind: {**fixed, "model.anchors.rounding": ("none",)}
    for kind, fixed in DETECTRON2.items()
}
MMDETECTION["FPN"]["model.anchors.rounding"] = ("detectron2", "none")
KERAS = Family(
    "a classifier of Keras (ResNet50)",
    "experiments/bccd_r50_fpn.py",
    {
        "model.pixel_mean": ((123.68, 116.779, 103.939),),
        "model.pixel_std": ((1.0, 1.0, 1.0),),
        **_resnet(1e-3, stride_in_1x1=True),
    },
)
VGG = (
    Family(
        "a classifier of torchvision or timm (VGG-16)",
        "experiments/voc07_vgg16.py:torchvision",
        {**IMAGENET, "model.backbone.bgr": (False,)},
    ),
    Family(
        "a classifier of Caffe (VGG-16)",
        "experiments/voc07_vgg16.py",
        {
            "model.pixel_mean": ((122.7717, 115.9465, 102.9801),),
            "model.pixel_std": ((1.0, 1.0, 1.0),),
            "model.backbone.bgr": (True,),
        },
    ),
)


def families(path: str | pathlib.Path) -> tuple[Family, ...]:
    """The families that a file can be of: one, the two of VGG-16, or none known.

    Raises what `files.read_arrays` does.
    """
    path = pathlib.Path(path)
    arrays = read_arrays(path)
    if cascade.stages(arrays):
        return (_cascade(path, arrays),)
    if detectron2.recognises(arrays):
        return (_with_pixels_of_the_file(_detectron2(arrays), arrays),)
    if mmdetection.recognises(arrays):
        return (_mmdetection(path, arrays),)
    names = set(arrays)
    if any(name.startswith("roi_heads.") for name in names):
        return _torchvision_detector(path, names)
    if "conv1/kernel" in names:
        return (KERAS,)
    if vit.recognises(arrays):
        return _plain_vit(names)
    network = timm.recognises(arrays)
    if network == "convnext" or "features.1.0.layer_scale" in names:
        name = "a classifier of torchvision or timm (ConvNeXt)"
        return (Family(name, "experiments/coco_convnext_t_fpn.py", IMAGENET),)
    if network == "swin" or "features.1.0.attn.qkv.weight" in names:
        name = "a classifier of torchvision or timm (Swin)"
        return (Family(name, "experiments/coco_swin_t_fpn.py", IMAGENET),)
    if network:
        fixed = {**IMAGENET, "model.backbone.norm_eps": (1e-5,)}
        name = "a classifier of timm (MobileNetV3-Large)"
        return (Family(name, "experiments/coco_mobilenet_v3.py", fixed),)
    if "features.0.0.weight" in names:
        # Its detectors are trained with 1e-5 on the classifier's weights, of 1e-3.
        fixed = {**IMAGENET, "model.backbone.norm_eps": (1e-3, 1e-5)}
        name = "a classifier of torchvision (MobileNetV3-Large)"
        return (Family(name, "experiments/coco_mobilenet_v3.py", fixed),)
    if {"conv1.weight", "layer1.0.conv1.weight"} <= names:
        return (_classifier("torchvision or timm"),)
    if any(re.match(r"features\.0\.(weight|bias)$", name) for name in names):
        return VGG[:1] if any(n.startswith("pre_logits.") for n in names) else VGG
    return ()


def _classifier(whose: str) -> Family:
    return Family(
        f"a classifier of {whose} (ResNet)",
        "experiments/coco_r50_fpn_v1.py:eps=1e-5",
        {**IMAGENET, **_resnet()},
    )


def _plain_vit(names: set[str]) -> tuple[Family, ...]:
    """Of a ViT with a classifier the names do not tell which pixels it was fed."""
    experiment = "experiments/coco_vitdet_b.py"
    if "blocks.0.ls1.gamma" in names:
        fixed = {**IMAGENET, "model.backbone.norm_eps": (1e-6,)}
        return (Family("DINOv2 of timm", experiment + ":dinov2", fixed),)
    if "blocks.0.attn.rel_pos_h" in names:  # timm's has 1e-5, the authors' 1e-6
        fixed = {**IMAGENET, "model.backbone.norm_eps": (1e-6, 1e-5)}
        return (Family("Segment Anything's image encoder", experiment, fixed),)
    if any(name.startswith("head.") for name in names):
        return ()
    fixed = {**IMAGENET, "model.backbone.norm_eps": (1e-6,)}
    return (Family("a ViT without a classifier (MAE, DINO)", experiment, fixed),)


def _torchvision_detector(path: pathlib.Path, names: set[str]) -> tuple[Family, ...]:
    if "backbone.body.0.0.weight" in names:
        experiment = "experiments/coco_mobilenet_v3.py"
        name = "torchvision's MobileNetV3 FPN"
        return (Family(name, experiment, MOBILENET, "torchvision_mobilenet_v3"),)
    if "backbone.body.conv1.weight" not in names:
        return ()
    if "roi_heads.box_head.0.0.weight" in names:
        experiment = "experiments/coco_r50_fpn_v2.py"
        fixed, settings = {**V1, **_resnet()}, _if_50("torchvision_r50_fpn_v2", names)
        return (Family("torchvision's R50-FPN v2", experiment, fixed, settings),)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    fixed, experiment = V1, "experiments/coco_r50_fpn_v1.py"
    if digest.startswith(V1_WITHOUT_EPSILON):
        fixed = {**V1, **_resnet(0.0)}
    settings = _if_50("torchvision_r50_fpn", names)
    return (Family("torchvision's R50-FPN (v1)", experiment, fixed, settings),)


def _depth(names: Collection[str]) -> int:
    """50, 101, or 0 for another number of blocks of a ResNet's third stage."""
    blocks = {n.split(".")[3] for n in names if n.startswith("backbone.body.layer3.")}
    return {6: 50, 23: 101}.get(len(blocks), 0)


def _if_50(settings: str, names: Collection[str]) -> str:
    return settings if _depth(names) == 50 else ""


def _mmdetection(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> Family:
    """MMDetection's detectors, of pytorch and of caffe style."""
    notes = read_notes(path)
    bgr = mmdetection.is_bgr(path, notes)
    known = mmdetection.to_torchvision(arrays, bgr=bgr)[0]
    kernel = known.get("backbone.body.layer1.0.conv2.weight", np.zeros((64, 64)))
    width, group = kernel.shape[:2]
    resnext, depth = width != group, _depth(known)
    caffe = bgr and not resnext
    kind = "C4"
    if any(name.startswith("roi_heads.box_head.") for name in known):
        kind = "FPN" if "backbone.fpn.inner_blocks.0.0.weight" in known else "DC5"
    fixed = {**(UNSCALED if caffe else IMAGENET), **STDS, **ADAPTIVE}
    fixed.update({**_resnet(stride_in_1x1=caffe), **MMDETECTION[kind]})
    found = mmdetection.pixels(notes, bgr=bgr)
    fixed.update({f"model.{leaf}": (value,) for leaf, value in found.items()})
    network = f"r{depth}" + "_caffe" * caffe
    arg = [f"depth={depth}"] * (depth == 101) + ["caffe"] * caffe
    if resnext:
        network = f"x{depth}_{width // group}x{group}d"
        arg = [f"network={network}"]
    arg += [f"kind={kind.lower()}"] * (kind != "FPN")
    settings = f"mmdetection_{network}_{kind.lower()}"
    return Family(
        f"MMDetection's {kind}" + " (caffe style)" * caffe,
        "experiments/coco_mmdetection.py" + f":{','.join(arg)}" * bool(arg),
        fixed,
        settings if settings in zoo.all_settings() else "",
    )


def _detectron2(arrays: Mapping[str, np.ndarray]) -> Family:
    """Detectron2's detectors, Detectron's, and the zoo's ImageNet weights."""
    known = detectron2.to_torchvision(arrays)[0]
    if "stem.fc.weight" in arrays:
        return _classifier("torchvision, as Detectron2 converts it,")
    kernel = known.get("backbone.body.layer2.0.conv2.weight", np.zeros((1, 1)))
    resnext = kernel.shape[0] != kernel.shape[1]
    fixed = {**(IMAGENET if resnext else UNSCALED)}
    fixed.update(_resnet(stride_in_1x1=not resnext))
    arg = ":x101" if resnext else ""
    if not any(name.startswith("roi_heads.") for name in known):
        kind = "FAIR, ResNeXt" if resnext else "MSRA, ResNet"
        experiment = f"experiments/coco_r50_fpn.py{arg}"
        return Family(
            f"ImageNet weights of Detectron's zoo ({kind})", experiment, fixed
        )
    if any(name.startswith("backbone.fpn.") for name in known):
        kind = "FPN"
    else:
        in_head = any(name.startswith("roi_heads.box_head.fc6.") for name in known)
        kind = "DC5" if in_head else "C4"
    fixed.update({**STDS, **ADAPTIVE, **DETECTRON2[kind]})
    experiment = f"experiments/coco_r50_{kind.lower()}.py{arg}"
    if "conv1_w" not in arrays:
        network = f"{'x' if resnext else 'r'}{_depth(known)}"
        settings = f"detectron2_{network}_{kind.lower()}"
        settings = settings if settings in zoo.all_settings() else ""
        return Family(f"Detectron2's {kind}", experiment, fixed, settings)
    # Detectron: RoIAlign without the half pixel, anchors of its own rounding.
    fixed["model.roi_align.aligned"] = (False,)
    del fixed["model.anchors.rounding"]
    experiment += " --config.model.roi_align.aligned=False"
    return Family(f"Detectron's {kind}", experiment, fixed)


def _cascade(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> Family:
    """The family of the Faster R-CNN of the first stage, but for the box head."""
    one, experiment = cascade.single(arrays, 0), "experiments/coco_cascade_r50_fpn.py"
    if mmdetection.recognises(one):
        found, last = _mmdetection(path, one), cascade.LAST_STDS["roi_head"]
        args = ["mmdetection"]
    else:
        found = _with_pixels_of_the_file(_detectron2(one), one)
        last, args = cascade.LAST_STDS["roi_heads"], []
    known = detectron2.to_torchvision(one)[0] if not args else one
    blocks = {re.sub(r".*layer3\.(\d+)\..*", r"\1", n) for n in known if "layer3." in n}
    args += ["depth=101"] * (len(blocks) == 23)
    fixed = dict(found.fixed)
    fixed["model.stages"] = (cascade.stages(arrays),)
    fixed["cascade.stds"] = (((0.05, 0.05, 0.1, 0.1), last),)
    fixed["postprocess.stds"] = (last,)
    settings = found.settings.replace("_r", "_cascade_r", 1)
    return Family(
        found.name.replace("'s ", "'s Cascade "),
        experiment + f":{','.join(args)}" * bool(args),
        fixed,
        settings if settings in zoo.all_settings() else "",
    )


def _with_pixels_of_the_file(
    family: Family, arrays: Mapping[str, np.ndarray]
) -> Family:
    """Files of older versions hold `pixel_mean` and `pixel_std`, BGR: they decide."""
    found: Fixed = {}
    for leaf in ("pixel_mean", "pixel_std"):
        array = next((a for n, a in arrays.items() if n.split(".")[-1] == leaf), None)
        if array is not None and array.size == 3 and np.all(array):
            found[f"model.{leaf}"] = (tuple(float(v) for v in array.ravel()[::-1]),)
    return family._replace(fixed={**family.fixed, **found})


def contradictions(
    family: Family, leaves: Mapping[str, Any], only: Collection[str] = ()
) -> dict[str, str]:
    """`{leaf: "found ..., expected ..."}` of an experiment that does not fit a family.

    `leaves` has the values by their names, defaults included; a leaf that it lacks is
    one that the experiment's model does not have, and is not compared. `only` limits
    the comparison to some leaves.
    """
    return {
        leaf: f"found {leaves[leaf]!r}, expected {' or '.join(map(repr, fitting))}"
        for leaf, fitting in family.fixed.items()
        if leaf in leaves
        and (not only or leaf in only)
        and not any(_same(leaves[leaf], value) for value in fitting)
    }


def _same(a: Any, b: Any) -> bool:
    """Equal, numbers within 0.05 from 1 on and within 1e-7 below (epsilons)."""
    if isinstance(a, str | bool) or isinstance(b, str | bool):
        return a == b
    if isinstance(a, Sequence) or isinstance(b, Sequence):
        a, b = (x if isinstance(x, Sequence) else (x,) for x in (a, b))
        return len(a) == len(b) and all(map(_same, a, b))
    return abs(a - b) <= (0.05 if abs(b) >= 1 else 1e-7)
