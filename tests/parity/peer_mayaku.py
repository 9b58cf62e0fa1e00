"""What mayaku's Detectron2 detectors answer, for tests/parity/compare_mayaku.py.

mayaku (PyPI) computes Detectron2's models in PyTorch and reads a zoo file with its
`cfg.yaml`. Runs in the peers' environment (`make peer`); every line on stdin is a
request's .npz, the answer is written beside it and its path printed. A request holds
`weights` (a Detectron2 .pkl), `config` (its cfg.yaml), `images` [1, 3, h, w] normalised
and padded, and `sizes` [1, 2]. mayaku's pooler turns Detectron2's sampling ratio 0 into
a fixed 2; here torchvision's RoIAlign with the adaptive rule takes its place.
"""
# pyright: reportMissingImports=false

import pathlib
import sys
import tempfile

import numpy as np
import torch
import torchvision
from mayaku.cli._factory import load_detector
from mayaku.d2 import convert_d2
from mayaku.models.poolers import ROIPooler, assign_boxes_to_levels


def pool(self, features, box_lists):
    """RoIAlign of each box from its level, `ceil(side / cells)` samples an axis."""
    boxes = [b.tensor if hasattr(b, "tensor") else b for b in box_lists]
    rows = torch.cat(boxes)
    level = assign_boxes_to_levels(
        box_lists,
        min_level=self._min_level,
        max_level=self._max_level,
        canonical_box_size=self.canonical_box_size,
        canonical_level=self.canonical_level,
    )
    index = torch.cat([torch.full((len(b), 1), float(i)) for i, b in enumerate(boxes)])
    rois = torch.cat([index, rows], 1)
    size = self.output_size
    out = rows.new_zeros((len(rows), features[0].shape[1], *size))
    for i, (x, scale) in enumerate(zip(features, self.scales, strict=True)):
        mine = level == i
        if mine.any():
            out[mine] = torchvision.ops.roi_align(
                x, rois[mine], size, scale, 0, aligned=True
            )
    return out


ROIPooler.forward = pool


@torch.no_grad()
def answer(request):
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "converted.pth"
        convert_d2(
            str(request["weights"]), d2_config=str(request["config"]), output=file
        )
        _, model, _ = load_detector(file)
    model.eval()
    sizes = [tuple(int(x) for x in request["sizes"][0])]
    features = model.backbone(torch.from_numpy(request["images"]))
    proposals, _ = model.rpn(sizes, features, gt_instances=None)
    results, _ = model.roi_heads(features, proposals, targets=None)
    found = results[0]
    names = sorted(features)
    return {
        **{
            f"features/{i}": features[n].permute(0, 2, 3, 1).numpy()
            for i, n in enumerate(names)
        },
        "proposals": proposals[0].proposal_boxes.tensor.numpy(),
        "boxes": found.pred_boxes.tensor.numpy(),
        "scores": found.scores.numpy(),
        "labels": found.pred_classes.numpy() + 1,
    }


def main():
    torch.set_num_threads(2)
    for line in sys.stdin:
        path = pathlib.Path(line.strip())
        with np.load(path) as file:
            request = {name: file[name] for name in file.files}
        written = path.with_suffix(".answer.npz")
        np.savez(written, **answer(request))
        print(written, flush=True)


if __name__ == "__main__":
    main()
