"""Cascade R-CNN's files: box heads by number, one stage of which is a Faster R-CNN.

| file | names of stage 1 |
| --- | --- |
| Detectron2 | `roi_heads.box_head.0.fc1.weight`, `roi_heads.box_predictor.0.bbox_pred.bias` |
| MMDetection | `roi_head.bbox_head.0.shared_fcs.0.weight`, `roi_head.bbox_head.0.fc_reg.bias` |

Backbone, FPN and RPN are those of a Faster R-CNN, so a stage's head without its number,
beside them, is one: `single`. Of Cascade Mask R-CNN the mask branches are left out, as
of Mask R-CNN.
"""  # noqa: E501

import re
from collections.abc import Mapping

import numpy as np

PREDICTOR = re.compile(
    r"^(?:roi_heads\.box_predictor\.(\d+)\.cls_score"
    r"|roi_head\.bbox_head\.(\d+)\.fc_cls)\.weight$"
)
HEAD = re.compile(
    r"^(roi_heads\.box_head|roi_heads\.box_predictor|roi_head\.bbox_head)\.(\d+)\."
)
# What the last stage divides its deltas by: Detectron2's, MMDetection's.
LAST_STDS = {
    "roi_heads": (1 / 30, 1 / 30, 1 / 15, 1 / 15),
    "roi_head": (0.033, 0.033, 0.067, 0.067),
}


def stages(arrays: Mapping[str, np.ndarray]) -> int:
    """The number of box heads; 0 for a file of one head without a number.

    >>> one = np.zeros(1)
    >>> stages({f"roi_head.bbox_head.{i}.fc_cls.weight": one for i in range(3)})
    3
    """
    return sum(PREDICTOR.match(name) is not None for name in arrays)


def single(arrays: Mapping[str, np.ndarray], stage: int) -> dict[str, np.ndarray]:
    """The arrays of a Faster R-CNN with the box head of one stage, counted from 0.

    >>> one = np.zeros(1)
    >>> names = [f"roi_head.bbox_head.{i}.fc_cls.weight" for i in range(2)]
    >>> list(single({**dict.fromkeys(names, one), "neck.x": one}, 1))
    ['roi_head.bbox_head.fc_cls.weight', 'neck.x']
    """
    found = {}
    for name, array in arrays.items():
        match = HEAD.match(name)
        if match is None:
            found[name] = array
        elif int(match[2]) == stage:
            found[HEAD.sub(r"\1.", name)] = array
    return found
