"""Detectron2's and Caffe2's names of arrays -> torchvision's, which `places` knows.

| file | names |
| --- | --- |
| Detectron2's zoo, `model_final_*` | `backbone.bottom_up.res2.0.conv1.norm.weight` |
| ImageNet weights for it, `MSRA/R-50.pkl` | Caffe2's: `res2_0_branch2a_bn_gamma` |
| torchvision's for it, `torchvision/R-50.pkl` | `res2.0.conv1.norm.weight`, `stem.fc` |
| Detectron, `model_final.pkl` | the same, and `fpn_inner_res4_5_sum_lateral_w` |

All but torchvision's read BGR; Detectron2 has the background last and without a box;
Detectron's norms have no statistics. This module undoes all of that. What changes no
shape is a matter of the experiment (`families` compares it): pixels of deviation 1
(ResNeXt has its own), stride in the first 1x1 (ResNeXt: 3x3), epsilon 1e-5, anchors in
the order "detectron2". `experiments/coco_r50_fpn.py`, `coco_r50_c4.py` and
`coco_r50_dc5.py` have these values. Detectron's own detectors have RoIs that are not
`aligned`, and boxes that are one pixel larger; this code has no such boxes.
"""

import re
from collections.abc import Mapping

import numpy as np

# Caffe2 -> Detectron2, from the left; what no pattern matches stays as it is.
CAFFE2 = (
    (r"^conv1_w$", "stem.conv1.weight"),
    (r"^res_conv1_bn_(\w+)$", r"stem.conv1.norm.\1"),
    (r"^(res\d)_(\d+)_branch1_(\w+)$", r"\1.\2.shortcut.\3"),
    (r"^(res\d)_(\d+)_branch2a_(\w+)$", r"\1.\2.conv1.\3"),
    (r"^(res\d)_(\d+)_branch2b_(\w+)$", r"\1.\2.conv2.\3"),
    (r"^(res\d)_(\d+)_branch2c_(\w+)$", r"\1.\2.conv3.\3"),
    (r"^fpn_inner_res(\d)_\d+_sum(?:_lateral)?_([wb])$", r"fpn_lateral\1.\2"),
    (r"^fpn_res(\d)_\d+_sum_([wb])$", r"fpn_output\1.\2"),
    (r"^conv_rpn(?:_fpn2)?_([wb])$", r"rpn_head.conv.\1"),
    (r"^rpn_cls_logits(?:_fpn2)?_([wb])$", r"rpn_head.objectness_logits.\1"),
    (r"^rpn_bbox_pred(?:_fpn2)?_([wb])$", r"rpn_head.anchor_deltas.\1"),
    (r"^fc([67])_([wb])$", lambda m: f"box_head.fc{int(m[1]) - 5}.{m[2]}"),
    (r"^(cls_score|bbox_pred)_([wb])$", r"box_predictor.\1.\2"),
    (r"\.bn_(\w+)$", r".norm.\1"),
    (r"\.norm\.(?:s|gamma)$", ".norm.weight"),
    (r"\.norm\.(?:b|beta)$", ".norm.bias"),
    (r"\.norm\.rm$", ".norm.running_mean"),
    (r"\.norm\.riv$", ".norm.running_var"),
    (r"\.w$", ".weight"),
    (r"\.b$", ".bias"),
)
# Detectron2, without the names of its parts -> torchvision.
DETECTRON2 = (
    (r"^stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"^stem\.conv1\.", "backbone.body.conv1."),
    (r"^res(\d)\.", lambda m: f"backbone.body.layer{int(m[1]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"^fpn_lateral(\d)\.", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.0."),
    (r"^fpn_output(\d)\.", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.0."),
    (r"^rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"^rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"^rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
    (r"^box_head\.fc(\d)\.", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 5}."),
    (r"^box_predictor\.", "roi_heads.box_predictor."),
)
PARTS = re.compile(
    r"^(backbone\.(bottom_up\.)?|proposal_generator\.|roi_heads\.)"
    r"(?=stem|res\d|fpn_|rpn_head|anchor_generator|box_)"
)
RECOGNISED = re.compile(r"(^|\.)stem\.conv1\.weight$|^conv1_w$")
# No weights of a detector: classifiers, Caffe2's bias of conv1 (Detectron2 leaves it
# out as well), what the configuration says, and the branches of Mask and Keypoint R-CNN
# beside the boxes.
IGNORED = re.compile(
    r"^(stem\.fc\.|linear\.|fc\.|(fc1000|pred)_[wb]$|conv1_b$|pixel_(mean|std)$"
    r"|anchor_generator\.cell_anchors|roi_heads\.(mask|keypoint)_head\.)"
)


def recognises(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are Detectron2's or Caffe2's."""
    return any(RECOGNISED.search(name) for name in arrays)


def to_torchvision(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Return arrays in torchvision's names and layouts, what they were, what is left.

    The second dict says for every new name the old one, and what was done to the array.
    A name that is not known stays, so that the model misses its place. Norms without
    statistics get those that make them `scale x + bias` at an epsilon of 1e-5.
    """
    found, origin, ignored = {}, {}, []
    for name, array in arrays.items():
        short = PARTS.sub("", name)
        if IGNORED.search(short):
            ignored.append(name)
            continue
        plain = short
        for pattern, new in CAFFE2:
            plain = re.sub(pattern, new, plain)
        caffe2, known = plain != short, plain
        for pattern, new in DETECTRON2:
            known = re.sub(pattern, new, known)
        origin[known] = name
        if known == "backbone.body.conv1.weight" and "stem.fc.weight" not in arrays:
            array, origin[known] = array[:, ::-1], f"{name} (BGR to RGB)"
        if not caffe2 and "box_predictor.cls_score" in known:
            array = np.roll(array, 1, axis=0)
            origin[known] = f"{name} (background from last to first)"
        if not caffe2 and "box_predictor.bbox_pred" in known:
            background = np.zeros((4, *array.shape[1:]), array.dtype)
            array = np.concatenate([background, array])
        found[known] = array
    for name in [n for n in found if re.search(r"\.(bn\d|downsample\.1)\.weight$", n)]:
        norm = name.removesuffix("weight")
        if f"{norm}running_var" not in found:
            found[f"{norm}running_mean"] = np.zeros_like(found[name])
            found[f"{norm}running_var"] = np.full_like(found[name], 1 - 1e-5)
            for kind in ("running_mean", "running_var"):
                origin[norm + kind] = f"(none: {origin[name]} is a mere scale)"
    return found, origin, ignored
