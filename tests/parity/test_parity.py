"""Live comparisons with torchvision, in its own environment.

    make peer
    pytest -m parity
    PARITY_SEEDS=100:110 PARITY_SIZES=256x160,300x400 pytest -m parity

Without the environment they are skipped, and say so. `compare_torchvision.py` beside
this file does the work and takes any seeds and sizes; docs/parity.md has what many
gave.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from frcnn_jax.training.optimizer import make_optimizer
from frcnn_jax.weights import files as weight_files
from frcnn_jax.weights import torchvision

ROOT = pathlib.Path(__file__).parents[2]
PEER = ROOT / ".venv-peer/bin/python"
SEEDS = os.environ.get("PARITY_SEEDS", "100:102")
SIZES = os.environ.get("PARITY_SIZES", "192x256,256x160")
MODELS = ("r50_fpn", "r50_fpn_v2", "mobilenet_v3", "mobilenet_v3_low")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not PEER.exists(), reason=f"no {PEER}: `make peer` builds it"),
]


def compare(*args):
    script = ROOT / "tests/parity/compare_torchvision.py"
    arguments = [sys.executable, str(script), f"--seeds={SEEDS}", f"--sizes={SIZES}"]
    done = subprocess.run([*arguments, *args], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", MODELS)
def test_layers_and_detections(model):
    found = compare(f"--model={model}")
    assert found["anchors"] == 0
    for layer in ("features", "rpn_logits", "rpn_deltas"):
        assert found[layer] < 2e-4, layer
    for layer in ("class_logits", "class_deltas"):
        assert found[layer] < 5e-4, layer
    assert found["candidates"][0] > 200  # NMS has something to do
    for row in found["exceptions"]:  # only a near tie, or torchvision's own rounding
        explained = min(row["gaps"].values()) < 1e-5 or not row["differing_exact_nms"]
        assert explained and row["differing"] <= 3, row


def test_losses_and_gradients():
    found = compare("--model=r50_fpn", "--training", "--steps=1", "--float64")
    assert max(found["losses_deviation"]) < 1e-5
    assert found["gradients"] > 80 and found["gradient_deviation"] < 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_export_loads_in_torchvision_and_returns_bit_for_bit(model, tmp_path):
    from tests.parity import compare_torchvision as scripts
    from tests.parity.random_weights import random_weights

    weights = random_weights(scripts.shapes_of(model), 5)
    first = tmp_path / "first.npz"
    weight_files.write_npz(first, weights)
    variables = scripts.load(model, first)
    exported = tmp_path / "exported.npz"
    state = torchvision.export_detector(variables)
    weight_files.write_npz(exported, state)
    peer = scripts.Peer(str(PEER), tmp_path)
    back = peer(model=model, weights=str(exported), echo=True)
    peer.close()
    background = "roi_heads.box_predictor.bbox_pred"
    assert back.keys() - {"versions"} == weights.keys()
    for name, array in weights.items():
        rows = slice(4, None) if name.startswith(background) else slice(None)
        np.testing.assert_array_equal(back[name][rows], array[rows])


def test_peer_trains_at_our_rate():
    """Of a batch that is not the reference batch, in warm-up and after a boundary."""
    optimizer = dict(
        **dict(learning_rate=0.02, reference_batch=8, warmup_steps=50),
        **dict(boundaries=(0.7, 0.9), schedule="step"),
    )
    recipe = dict(optimizer=optimizer, batch_size=2, total_steps=560)
    steps, (_, ours) = (0, 20, 300, 400, 550), make_optimizer(560, 2, **optimizer)
    code = "import json, sys, peer_training as p; r, s = json.loads(sys.argv[1]); "
    code += "print([p.rate(r, n) for n in s])"
    done = subprocess.run(
        [PEER, "-c", code, json.dumps((recipe, steps))],
        **dict(capture_output=True, text=True, check=True, cwd=ROOT / "tests/parity"),
    )
    expected = [float(ours(step)) for step in steps]
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-5)
    np.testing.assert_allclose(expected[2], 0.005, rtol=1e-6)
