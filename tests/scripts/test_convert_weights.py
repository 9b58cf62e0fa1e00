"""From a torchvision file to a checkpoint that detects, and back, as a user does it."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.data.images import save_image
from frcnn_jax.detector import load
from frcnn_jax.training.convert import rows_of
from frcnn_jax.weights import files as weight_files
from frcnn_jax.weights import torchvision

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


def convert(*args, code=0, script="convert_weights"):
    done = subprocess.run(
        [sys.executable, str(ROOT / f"scripts/{script}.py"), *map(str, args)],
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
    state = torchvision.export_detector(random)
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
    file = tmp_path / "back.safetensors"
    convert(f"--checkpoint={tmp_path / 'run'}", f"--output={file}")
    back = weight_files.read_arrays(file)
    assert back.keys() == state.keys()
    rows = [0, *detector.category_ids]
    for name, array in back.items():
        expected = state[name]
        if "cls_score" in name:
            expected = expected[rows]
        if "box_predictor.bbox_pred" in name:
            shape = (-1, *expected.shape[1:])
            expected = expected.reshape(91, 4, *shape[1:])[rows].reshape(shape)
        np.testing.assert_array_equal(array, expected)


def write_coco(folder, categories):
    """Three images of noise with a box of each category."""
    rng = np.random.default_rng(0)
    images = [
        dict(id=i, file_name=f"{i}.png", width=60, height=50) for i in range(1, 4)
    ]
    boxes = [
        dict(
            id=10 * image["id"] + k,
            image_id=image["id"],
            category_id=category,
            bbox=[5 + 10 * k, 5, 20, 30],
            area=600,
            iscrowd=0,
        )
        for image in images
        for k, category in enumerate(categories)
    ]
    (folder / "annotations").mkdir()
    (folder / "val2017").mkdir()
    for image in images:
        pixels = rng.integers(0, 255, (50, 60, 3), np.uint8)
        save_image(folder / "val2017" / image["file_name"], pixels)
    (folder / "annotations/instances_val2017.json").write_text(
        json.dumps(
            dict(
                images=images,
                annotations=boxes,
                categories=[dict(id=c, name=f"thing {c}") for c in categories],
            )
        )
    )


def test_an_experiment_that_is_open_names_the_one_that_fits(peer):
    from tests.scripts import many

    file = peer[0] / "peer.npz"
    call = "evaluate", "--config=experiments/finetune.py", f"--weights={file}"
    ((code, _, err),) = many.run([call])
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert "leaves batch_size, " in err and "coco_r50_fpn_v1" in err


def test_a_peers_file_is_evaluated_in_one_command(peer, tmp_path):
    """The rows of the file are those of the data's ids, of 91 as of COCO's 80."""
    folder, state = peer
    ids = (2, 7, 18)
    write_coco(tmp_path, ids)
    # Class 7 is certain of every RoI, and its boxes are the RoIs themselves.
    strong = dict(state)
    scores, boxes = (f"roi_heads.box_predictor.{x}" for x in ("cls_score", "bbox_pred"))
    strong[f"{scores}.bias"] = np.eye(91, dtype=np.float32)[7] * 30
    weight_files.write_npz(tmp_path / "peer.npz", strong)
    done = convert(
        f"--config={folder / 'small.py'}",
        f"--weights={tmp_path / 'peer.npz'}",
        f"--set=data.root={tmp_path}",
        f"--output={tmp_path / 'out'}",
        "--batch_size=2",
        script="evaluate",
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert 0 <= result["AP"] <= 1
    (results,) = (tmp_path / "out").glob("detections_*.json")
    found = json.loads(results.read_text())
    best = max(found, key=lambda d: d["score"])
    assert best["category_id"] == 7 and best["score"] > 0.9
    assert {d["category_id"] for d in found} <= set(ids)


def test_rows_of_a_file_follow_from_its_count(peer):
    folder, _ = peer
    rows = functools.partial(rows_of, folder / "peer.npz")  # 90 classes
    assert rows(range(1, 91)) == tuple(range(1, 91))
    assert rows((3, 90)) == (3, 90)
    with pytest.raises(ValueError, match="90 classes, the data 1 with ids up to 91"):
        rows((91,))


def test_mistakes_are_explained(peer, tmp_path):
    folder, state = peer
    arguments = (f"--config={folder / 'small.py'}", f"--output={tmp_path / 'run'}")
    done = convert(*arguments, code=2)
    assert "give --weights or --checkpoint, and not both" in done.stderr + done.stdout
    few = dict(state)
    few["roi_heads.box_predictor.cls_score.bias"] = np.zeros(4, np.float32)
    weight_files.write_npz(tmp_path / "few.npz", few)
    done = convert(*arguments, f"--weights={tmp_path / 'few.npz'}", code=2)
    assert (
        "has 3 classes, COCO 80 or 90: give their --classes"
        in done.stderr + done.stdout
    )
    # Detectron2's recipe for a file of torchvision: nothing is written.
    wrong = (folder / "small.py").read_text() + "    c.model.pixel_std = (1, 1, 1)\n"
    wrong = wrong.replace("    return c\n", "") + "    return c\n"
    (folder / "wrong.py").write_text(wrong)
    arguments = (
        *(f"--config={folder / 'wrong.py'}", f"--output={tmp_path / 'run'}"),
        f"--weights={folder / 'peer.npz'}",
    )
    done = convert(*arguments, code=2)
    assert "model.pixel_std: found (1, 1, 1), expected (58.395" in done.stderr
    assert "use --config=experiments/coco_r50_fpn_v1.py" in done.stderr
    assert not (tmp_path / "run").exists()
    done = convert(*arguments, "--config.model.pixel_std=(1,1,1)")
    assert "set on purpose: model.pixel_std" in done.stderr
    assert (tmp_path / "run").exists()
