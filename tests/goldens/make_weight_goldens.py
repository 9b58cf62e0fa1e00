"""Write the files that tests of weight reading use, as torch and torchvision make them.

    make peer
    .venv-peer/bin/python tests/goldens/make_weight_goldens.py

tests/goldens/tensors_zip.pth, tensors_stream.pth: one small state dict in both formats
of torch.save, with views, odd strides and several types; tests/goldens/
torchvision_names.json: names and shapes of the state dicts of its detectors.
"""
# pyright: reportMissingImports=false

import argparse
import collections
import json
import pathlib

import torch
import torchvision
from torchvision.models import detection

GOLDENS = pathlib.Path(__file__).parent


def tensors():
    """The numbers 0, 1, 2, ... in many layouts; the tests know them by name."""
    base = torch.arange(24, dtype=torch.float32)
    state = collections.OrderedDict(
        plain=base.reshape(2, 3, 4).clone(),
        transposed=base.reshape(4, 6).t(),
        view=base[5:11].reshape(2, 3),
        half=torch.arange(6, dtype=torch.float16),
        brain=torch.arange(6, dtype=torch.bfloat16),
        long=torch.tensor(7),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.arange(3.0)),
    )
    setattr(state, "_metadata", collections.OrderedDict(version=1))  # noqa: B010
    return state


def main():
    for name, new in (("zip", True), ("stream", False)):
        torch.save(
            tensors(),
            GOLDENS / f"tensors_{name}.pth",
            _use_new_zipfile_serialization=new,
        )
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    names: dict[str, object] = {"versions": versions}
    for make in (
        detection.fasterrcnn_resnet50_fpn,
        detection.fasterrcnn_resnet50_fpn_v2,
        detection.fasterrcnn_mobilenet_v3_large_fpn,
    ):
        state = make(weights=None, weights_backbone=None).state_dict()
        names[make.__name__] = {
            name: list(value.shape)
            for name, value in state.items()
            if not name.endswith("num_batches_tracked")
        }
    (GOLDENS / "torchvision_names.json").write_text(json.dumps(names))


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    main()
