"""One bad image does not end what works on many: calibration, ONNX files, the page."""

import importlib
import json

import numpy as np
import pytest

from frcnn_jax.data.images import save_image
from frcnn_jax.detector import load
from tests.data import layouts
from tests.scripts.test_scripts import ROOT, last_json, script


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a COCO folder, whose pictures are damaged after the training."""
    root = tmp_path_factory.mktemp("set")
    layouts.coco_classical(root)
    workdir = tmp_path_factory.mktemp("run")
    config = ROOT / "tests" / "scripts" / "small_folder.py"
    script(
        *("train", f"--config={config}", f"--config.data.root={root}"),
        f"--workdir={workdir}",
    )
    for split, cut, none in (("train", "img 0", "img 1"), ("val", "img 6", "")):
        folder = root / f"{split}2017"
        cut = folder / f"{cut}.png"
        cut.write_bytes(cut.read_bytes()[:-2000])
        if none:
            (folder / f"{none}.png").write_text("no picture")
    layouts.image(root / "train2017" / "img 2.png")
    return workdir, root


@pytest.mark.slow
def test_calibration_and_evaluation_go_on_without_bad_images(run, tmp_path):
    workdir, root = run
    file = tmp_path / "small.onnx"
    done = script(
        *("export", f"--checkpoint={workdir}", f"--output={file}", "--format=onnx"),
        *("--quantize", "--calibrate=100"),
        code=1,
    )
    assert last_json(done)["skipped"] == 2 and file.exists()
    assert "2 images did not calibrate: " in done.stderr
    for name in ("img 0.png", "img 1.png"):
        assert f"{root}/train2017/{name}: skipped: " in done.stderr
    ask = ("evaluate_onnx", f"--checkpoint={workdir}", f"--onnx={file}")
    refused = script(*ask, code=2)
    assert "img 6.png" in refused.stderr and "Traceback" not in refused.stderr
    assert "data.on_bad_image='skip'" in refused.stderr
    moved = tmp_path / "moved"
    root.rename(moved)
    try:
        gone = script(*ask, code=2)
        assert "data.root" in gone.stderr and "Traceback" not in gone.stderr
        flags = "--config.data.on_bad_image=skip", f"--set=data.root={moved}"
        done = script(*ask, *flags)
    finally:
        moved.rename(root)
    assert 0 <= last_json(done)["AP"] <= 1
    assert "img 6.png: skipped: " in done.stderr and "(1 times)" in done.stderr


@pytest.mark.slow
def test_nothing_to_calibrate_with_is_one_line(run, tmp_path):
    workdir, root = run
    found = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    for image in found["images"]:
        (root / "train2017" / image["file_name"]).write_text("no picture")
    done = script(
        *("export", f"--checkpoint={workdir}", f"--output={tmp_path / 'a.onnx'}"),
        *("--format=onnx", "--quantize"),
        code=2,
    )
    assert "there is no image to calibrate with" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_tiles_and_the_page_take_images_of_any_shape(run, tmp_path):
    workdir, _ = run
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    layouts.image(folder / "a.png")
    (folder / "broken.png").write_text("no picture")
    narrow = rng.integers(0, 256, (1, 2000, 3), np.uint8)
    save_image(folder / "narrow.png", narrow)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-2000])
    ask = ("predict", f"--checkpoint={workdir}", "--set=views.tile=64")
    done = script(*ask, f"--output={tmp_path / 'out'}", folder, code=1)
    found = last_json(done)
    assert found["images"] == 2 and len(found["unread"]) == 2
    assert "broken.png" in done.stderr and "cut.png" in done.stderr
    demo = importlib.import_module("scripts.demo")
    detector = load(workdir)
    for picture in (narrow, np.zeros((1, 1, 3), np.uint8), np.zeros((700, 3, 3), "u1")):
        record = demo.answer(detector, picture, RuntimeError)
        drawn, rows = demo.view(picture, record, 0.0, [])
        assert drawn.ndim == 3 and isinstance(rows, list)
    with pytest.raises(RuntimeError, match="image has dtype float64"):
        demo.answer(detector, np.zeros((4, 4, 3)), RuntimeError)
