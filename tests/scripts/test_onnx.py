"""A checkpoint as an ONNX file, by the scripts and by the lines of the page."""

import json
import subprocess
import sys

import numpy as np
import pytest

from frcnn_jax.detector import load
from tests.scripts import many
from tests.scripts.test_scripts import ROOT, last_json, script, workdir  # noqa: F401

# Whoever runs the file has numpy and onnxruntime.
ALONE = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("frcnn_jax", "jax", "flax", "onnx", "cv2"):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)


sys.meta_path.insert(0, Missing())
"""


@pytest.mark.slow
def test_the_lines_of_the_page_find_what_the_checkpoint_finds(workdir, tmp_path):  # noqa: F811
    file = tmp_path / "model.onnx"
    done = script(
        *("export", f"--checkpoint={workdir}", f"--output={file}", "--format=onnx"),
        "--score=0.02",
    )
    found = last_json(done)
    assert found["same"] and found["score_difference"] < 1e-4
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["opset"] == 17 and "NonMaxSuppression" in about["operators"]
    text = (ROOT / "docs" / "export.md").read_text()
    code = text.split("<!-- load onnx -->\n```python\n")[1].split("```")[0]
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    np.save(tmp_path / "image.npy", image)
    ran = subprocess.run(
        [sys.executable, "-c", ALONE + code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    detector = load(workdir)
    expected = detector([image])
    above = expected.scores[0] > 0.02
    lines = ran.stdout.splitlines()
    assert len(lines) == above.sum() > 0
    for line, c, score in zip(
        lines, expected.classes[0], expected.scores[0], strict=False
    ):
        name, value, *_ = line.split(maxsplit=2)
        assert name == detector.classes[c - 1]
        assert float(value) == pytest.approx(float(score), rel=1e-4)


@pytest.mark.slow
def test_metrics_of_the_file_are_those_of_the_checkpoint(workdir, tmp_path):  # noqa: F811
    whole, small = (tmp_path / name for name in ("whole.onnx", "small.onnx"))
    for file, options in ((whole, ()), (small, ("--quantize", "--calibrate=4"))):
        script(
            *("export", f"--checkpoint={workdir}", f"--output={file}", *options),
            *("--format=onnx", "--score=0.0"),
        )
    checkpoint = script(
        *("evaluate", f"--checkpoint={workdir}", f"--output={tmp_path}"),
        "--set=postprocess.score=0.0",
    )
    onnx = script(
        *("evaluate_onnx", f"--checkpoint={workdir}", f"--onnx={whole}"),
        f"--against={small}",
    )
    expected, found = last_json(checkpoint), last_json(onnx)
    for name in ("AP", "AP50", "AR100"):
        assert found[name] == pytest.approx(expected[name], abs=1e-3)
    assert "AP_difference" in found and found["milliseconds"] > 0


def test_options_that_do_not_fit_are_one_line():
    calls = [
        [*("--format=onnx", "--platforms=cpu")],
        ["--quantize"],
        [*("--format=onnx", "--size=4x4", "--quantize")],
    ]
    ends = many.run(
        [["export", "--checkpoint=x", "--output=y", *options] for options in calls]
    )
    messages = [
        "--platforms is for --format=stablehlo",
        "--quantize is for --format=onnx",
        "--quantize is not for --size: leave --size out",
    ]
    for (code, _, errors), message in zip(ends, messages, strict=True):
        assert message in errors and code != 0
