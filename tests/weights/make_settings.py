r"""Writes frcnn_jax/weights/settings, the configurations of the named detectors.

    python tests/weights/make_settings.py

They are those of `experiments/`, which an installed package has not. Run it again when
an experiment changes; `test_zoo.py` says when.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from frcnn_jax.training import config as configs  # noqa: E402

FOLDER = ROOT / "frcnn_jax" / "weights" / "settings"
EXPERIMENTS = {  # the name of the settings: file and argument
    "torchvision_r50_fpn": "coco_r50_fpn_v1",
    "torchvision_r50_fpn_v2": "coco_r50_fpn_v2",
    "torchvision_mobilenet_v3": "coco_mobilenet_v3",
    "torchvision_mobilenet_v3_320": "coco_mobilenet_v3:low",
    "detectron2_r50_fpn": "coco_r50_fpn",
    "detectron2_r101_fpn": "coco_r50_fpn:depth=101",
    "detectron2_x101_fpn": "coco_r50_fpn:x101",
    "detectron2_r50_c4": "coco_r50_c4",
    "detectron2_r101_c4": "coco_r50_c4:depth=101",
    "detectron2_r50_dc5": "coco_r50_dc5",
    "detectron2_r101_dc5": "coco_r50_dc5:depth=101",
    "detectron2_cascade_r50_fpn": "coco_cascade_r50_fpn",
    "mmdetection_cascade_r50_fpn": "coco_cascade_r50_fpn:mmdetection",
    "mmdetection_cascade_r101_fpn": "coco_cascade_r50_fpn:mmdetection,depth=101",
    "mmdetection_r50_fpn": "coco_mmdetection",
    "mmdetection_r101_fpn": "coco_mmdetection:depth=101",
    "mmdetection_x101_32x4d_fpn": "coco_mmdetection:network=x101_32x4d",
    "mmdetection_x101_64x4d_fpn": "coco_mmdetection:network=x101_64x4d",
    "mmdetection_r50_caffe_fpn": "coco_mmdetection:caffe",
    "mmdetection_r101_caffe_fpn": "coco_mmdetection:caffe,depth=101",
    "mmdetection_r50_caffe_c4": "coco_mmdetection:caffe,kind=c4",
    "mmdetection_r50_caffe_dc5": "coco_mmdetection:caffe,kind=dc5",
}


def make(name: str) -> dict:
    """The configuration of settings, as JSON has it."""
    file, _, arg = EXPERIMENTS[name].partition(":")
    module = configs.load_experiment(ROOT / "experiments" / f"{file}.py")
    return json.loads(module.get_config(arg).to_json())


def main():
    FOLDER.mkdir(exist_ok=True)
    for name in EXPERIMENTS:
        text = json.dumps(make(name), indent=1, sort_keys=True)
        (FOLDER / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
