"""A batch given to a function of one image: one line that says so.

In a process of its own: jaxtyping, which the other tests are checked by, speaks first.
"""

import subprocess
import sys

CODE = """
import numpy as np, jax
from frcnn_jax import losses, proposals, targets
from frcnn_jax.ops import matching, nms
from frcnn_jax.types import Proposals

boxes, gt = np.ones((2, 5, 4), np.float32), np.ones((2, 3, 4), np.float32)
valid, key, size = np.ones((2, 3), bool), jax.random.key(0), np.ones((2, 2))
scores = np.ones((2, 5), np.float32)
one = dict(fg_iou=0.5, bg_iou=0.5, force_best=True)
tries = dict(
    match=lambda: matching.match(boxes, gt, valid, **one),
    sample=lambda: matching.sample(key, valid * 1, num_samples=2, fg_fraction=0.5),
    nms_indices=lambda: nms.nms(boxes, scores, iou_threshold=0.5),
    soft_nms=lambda: nms.soft_nms(boxes, scores),
    rpn_targets=lambda: targets.rpn_targets(key, boxes[0], gt, valid),
    roi_targets=lambda: targets.roi_targets(
        key, Proposals(boxes, scores, scores > 0), gt, valid * 1, valid
    ),
    rpn_loss=lambda: losses.rpn_loss(scores, boxes, valid[0] * 1, gt[0]),
    detector_loss=lambda: losses.detector_loss(
        boxes, boxes[:, :, None], valid[0] * 1, gt[0]
    ),
    select_proposals=lambda: proposals.select_proposals(boxes[0], scores, boxes, size),
    postprocess=lambda: proposals.postprocess(
        boxes, scores > 0, boxes, boxes[:, :, None], size
    ),
)
for name, call in tries.items():
    for form in (call, lambda: jax.jit(call)()):
        try:
            form()
            raise SystemExit(f"{name}: no error")
        except ValueError as error:
            text = str(error)
            assert name in text and "jax.vmap" in text and "\\n" not in text, text
"""


def test_a_forgotten_vmap_is_named():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
