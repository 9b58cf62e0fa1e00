"""torchvision's detector as an ONNX file, as its own users export it.

python tests/parity/peer_onnx.py r50_fpn model.onnx 800 1088

Random weights, an image of the size that the file is traced with and no resizing. It
needs torch, torchvision, onnx and onnxscript.
"""
# pyright: reportMissingImports=false

import sys

import torch
from torchvision.models import detection

DETECTORS = dict(
    r50_fpn=detection.fasterrcnn_resnet50_fpn,
    r50_fpn_v2=detection.fasterrcnn_resnet50_fpn_v2,
    mobilenet_v3=detection.fasterrcnn_mobilenet_v3_large_fpn,
)


def main(name, file, height, width):
    h, w = int(height), int(width)
    torch.manual_seed(0)
    model = DETECTORS[name](
        weights=None, weights_backbone=None, min_size=min(h, w), max_size=max(h, w)
    )
    torch.onnx.export(
        model.eval(), ([torch.rand(3, h, w)],), file, dynamo=False, opset_version=17
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
