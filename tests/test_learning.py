"""The demo and narrow backbones learn, on images that training never saw."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from experiments import shapes_demo
from frcnn_jax.training.loop import train_and_evaluate

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_demo_learns_shapes_from_scratch(tmp_path):
    def script(name, *args):
        command = [sys.executable, f"scripts/{name}.py", *args]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    script(
        "train", "--config=experiments/shapes_demo.py", f"--workdir={tmp_path / 'run'}"
    )
    result = script(
        "evaluate", f"--checkpoint={tmp_path / 'run'}", "--split=test", "--pictures=2"
    )
    assert result["AP50"] >= 0.90
    assert result["AP"] >= 0.60
    annotations = json.loads((tmp_path / "run" / "annotations_val.json").read_text())
    assert len(annotations["images"]) == 200


BACKBONES = {
    "convnext": dict(depths=(1, 1, 2, 1), width=32, out_strides=(4, 8, 16)),
    "swin": dict(depths=(1, 2, 2, 1), width=32, window=4, out_strides=(4, 8, 16)),
}


RATES = dict(convnext=2e-3, swin=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_narrow_backbones_learn_coloured_shapes(name, tmp_path):
    """From random weights, 800 steps of 8 pictures of 64x64, evaluated on 200 others.

    The set is easier than the demo's: colours tell the classes, small shapes are
    ignored (`tests/coloured_shapes.py`). Measured: docs/api/models.md.
    """
    c: Any = shapes_demo.get_config()
    c.update(total_steps=800, eval_every=800, checkpoint_every=800)
    c.data.update(
        name="tests.coloured_shapes",
        size=64,
        short_side=64,
        max_side=64,
        canvas=(64, 64),
        cache=True,
    )
    c.model.backbone = dict(name=name, **BACKBONES[name])
    c.model.box_head = dict(widths=(128,), class_agnostic=True)
    c.model.anchors.update(strides=(4, 8, 16), sizes=(16.0, 24.0, 36.0))
    c.model.fpn.channels = c.model.rpn.channels = 32
    c.rpn_targets.num_samples = 32
    c.roi_targets.update(num_samples=32, fg_fraction=0.5)
    for part in c.proposals.values():
        part.update(pre_nms=100, post_nms=50)
    c.optimizer.update(warmup_steps=30, learning_rate=RATES[name])
    result = train_and_evaluate(c, tmp_path)
    assert result["AP50"] >= 0.95
