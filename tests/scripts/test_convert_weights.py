"""From a torchvision file to a checkpoint that detects, and back, as a user does it."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.detector import load
from frcnn_jax.models import pretrained_torch, weight_files

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = """
from experiments import coco_r50_fpn_v1

def get_config(arg=None):
    c = coco_r50_fpn_v1.get_config("runlocal")
    c.model.backbone.depth = 10
    c.model.fpn.channels = 8
    c.model.rpn = dict(channels=8)
    c.model.box_head = dict(widths=(16, 16))
    c.data.update(short_side=64, max_side=64, canvas=(64, 64))
    c.postprocess.score = 0.0
    return c
"""


def convert(*args, code=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/convert_weights.py"), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """A small experiment and a file of random weights with COCO's 91 rows."""
    folder = tmp_path_factory.mktemp("peer")
    (folder / "small.py").write_text(EXPERIMENT)
    namespace = {}
    exec(EXPERIMENT, namespace)
    config = namespace["get_config"]().to_dict()
    model = models.build_detector(num_classes=90, **config["model"])
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    random = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            np.ones(x.shape, np.float32)
            if path[-1].key == "var"
            else rng.normal(0, 0.02, x.shape).astype(np.float32)
        ),
        variables,
    )
    state = pretrained_torch.export_detector(random)
    weight_files.write_npz(folder / "peer.npz", state)
    return folder, state


def test_a_file_becomes_a_checkpoint_and_a_file_again(peer, tmp_path):
    folder, state = peer
    done = convert(
        *(f"--config={folder / 'small.py'}", f"--weights={folder / 'peer.npz'}"),
        *(f"--output={tmp_path / 'run'}", "--report"),
    )
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary == dict(arrays=len(state), ignored=0, classes=80)
    assert "backbone.body.conv1.weight (64, 3, 7, 7) -> params/backbone" in done.stdout
    detector = load(tmp_path / "run")
    assert detector.classes[0] == "person" and detector.classes[-1] == "toothbrush"
    assert detector.category_ids[-1] == 90 and 12 not in detector.category_ids
    found = detector([np.zeros((50, 60, 3), np.uint8)])
    assert found.valid.any() and np.isfinite(found.boxes).all()
    convert(f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'back.npz'}")
    back = weight_files.read_arrays(tmp_path / "back.npz")
    rows = [0, *detector.category_ids]
    for name, array in back.items():
        expected = state[name]
        if "cls_score" in name:
            expected = expected[rows]
        if "box_predictor.bbox_pred" in name:
            shape = (-1, *expected.shape[1:])
            expected = expected.reshape(91, 4, *shape[1:])[rows].reshape(shape)
        np.testing.assert_array_equal(array, expected)


def test_mistakes_are_explained(peer, tmp_path):
    folder, state = peer
    arguments = (f"--config={folder / 'small.py'}", f"--output={tmp_path / 'run'}")
    done = convert(*arguments, code=1)
    assert "give --config and --weights, or --checkpoint" in done.stderr + done.stdout
    few = dict(state)
    few["roi_heads.box_predictor.cls_score.bias"] = np.zeros(4, np.float32)
    weight_files.write_npz(tmp_path / "few.npz", few)
    done = convert(*arguments, f"--weights={tmp_path / 'few.npz'}", code=1)
    assert "has 3 classes, COCO 90: give their --classes" in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()
