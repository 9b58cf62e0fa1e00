"""MMDetection's names of arrays -> torchvision's, which `places` knows.

| MMDetection | torchvision |
| --- | --- |
| `backbone.layer1.0.conv1.weight` | `backbone.body.layer1.0.conv1.weight` |
| `neck.lateral_convs.0.conv`, `neck.fpn_convs.0.conv` | `backbone.fpn.inner_blocks.0.0`, `layer_blocks.0.0` |
| `rpn_head.rpn_conv`, `rpn_cls`, `rpn_reg` | `rpn.head.conv.0.0`, `cls_logits`, `bbox_pred` |
| `roi_head.bbox_head.shared_fcs.0` | `roi_heads.box_head.fc6` |
| `roi_head.bbox_head.fc_cls`, `fc_reg` | `roi_heads.box_predictor.cls_score`, `bbox_pred` |
| `roi_head.shared_head.layer4` (C4) | `backbone.body.layer4` |

The background is last and has no box; networks of Caffe's weights read BGR, which
`is_bgr` finds in the text of the configuration that a file carries. Anchors are not
rounded and stand at the corner of a cell (centre offset 0), several sizes for each
ratio, for each size; boxes are divided by (0.1, 0.1, 0.2, 0.2); RoIAlign is aligned and
adaptive. Files of versions before 2.0 have other anchors and boxes, and are refused.
"""  # noqa: E501

import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

log = logging.getLogger(__name__)
NAMES = (
    (r"^backbone\.(?=conv1|bn1|layer\d)", "backbone.body."),
    (r"^roi_head\.shared_head\.(?=layer4)", "backbone.body."),
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"^rpn_head\.rpn_conv\.", "rpn.head.conv.0.0."),
    (r"^rpn_head\.rpn_cls\.", "rpn.head.cls_logits."),
    (r"^rpn_head\.rpn_reg\.", "rpn.head.bbox_pred."),
    (
        r"^roi_head\.bbox_head\.shared_fcs\.(\d)\.",
        lambda m: f"roi_heads.box_head.fc{int(m[1]) + 6}.",
    ),
    (r"^roi_head\.bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
    (r"^roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
)
LEFT_OUT = re.compile(r"^(roi_head\.mask_head\.|.*num_batches_tracked$)")
NUMBERS = r"=\s*\[([\d.,\s]+)\]"


def recognises(arrays: Mapping[str, Any]) -> bool:
    """Whether the names are those of one of its two-stage detectors."""
    return "rpn_head.rpn_conv.weight" in arrays


def to_torchvision(
    arrays: Mapping[str, np.ndarray], *, bgr: bool
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Return arrays in torchvision's names and layouts, what they were, what is left.

    As `detectron2.to_torchvision`; `bgr` turns the first convolution to RGB. Raises
    ValueError for a file of MMDetection 1.
    """
    if "bbox_head.fc_cls.weight" in arrays:
        raise ValueError(
            "it is a file of MMDetection 1, whose boxes and anchors are others: take "
            "one of version 2 or 3"
        )
    found, origin, ignored = {}, {}, []
    for name, array in arrays.items():
        if LEFT_OUT.search(name):
            ignored.append(name)
            continue
        known = name
        for pattern, new in NAMES:
            known = re.sub(pattern, new, known)
        origin[known] = name
        if known == "backbone.body.conv1.weight" and bgr:
            array, origin[known] = array[:, ::-1], f"{name} (BGR to RGB)"
        if "box_predictor.cls_score" in known:
            array = np.roll(array, 1, axis=0)
            origin[known] = f"{name} (background from last to first)"
        if "box_predictor.bbox_pred" in known:
            background = np.zeros((4, *array.shape[1:]), array.dtype)
            array = np.concatenate([background, array])
        found[known] = array
    return found, origin, ignored


def configuration(notes: Mapping[str, Any]) -> str:
    """The text of the configuration in a file's notes (`files.read_notes`)."""
    meta = notes.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    texts = (meta.get("config"), meta.get("cfg"))  # of version 2, of version 3
    return next((text for text in texts if isinstance(text, str)), "")


def is_bgr(path: str | pathlib.Path, notes: Mapping[str, Any]) -> bool:
    """Whether a file's network was trained on BGR.

    By its configuration, else by its name. A file that says neither is taken for RGB,
    with a warning.
    """
    if match := re.search(r"to_rgb\s*=\s*(True|False)", configuration(notes)):
        return match[1] == "False"
    name = pathlib.Path(path).name
    if "caffe" not in name and not re.search(r"_(fpn|1x|2x|3x)_", name):
        log.warning(
            "%s does not say if its network reads BGR or RGB: taken for RGB ("
            "MMDetection's files of caffe style read BGR)",
            path,
        )
    return "caffe" in name


def pixels(notes: Mapping[str, Any], *, bgr: bool) -> dict[str, tuple[float, ...]]:
    """`{"pixel_mean": ..., "pixel_std": ...}`, RGB, of a file's configuration."""
    found = {}
    for leaf in ("mean", "std"):
        pattern = rf"(?<![a-z_]){leaf}{NUMBERS}"
        if match := re.search(pattern, configuration(notes)):
            values = tuple(float(v) for v in match[1].split(",") if v.strip())
            if len(values) == 3 and all(values):
                found[f"pixel_{leaf}"] = values[::-1] if bgr else values
    return found


def classes(notes: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes that a file carries; none, where it does not."""
    meta = notes.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    of_set = meta.get("dataset_meta")
    for group in (meta, of_set if isinstance(of_set, Mapping) else {}):
        names = group.get("CLASSES", group.get("classes"))
        if isinstance(names, tuple | list) and all(isinstance(n, str) for n in names):
            return tuple(names)
    return ()
