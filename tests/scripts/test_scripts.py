"""The scripts as a user runs them: processes, files, exit codes, the last JSON line."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from frcnn_jax.detector import Detector, load
from frcnn_jax.evaluation import files
from frcnn_jax.training import checkpoint
from tests import once

ROOT = pathlib.Path(__file__).parents[2]


def script(name, *args, code=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


def last_json(done):
    return json.loads(done.stdout.splitlines()[-1])


def train(path):
    config = ROOT / "tests" / "scripts" / "small_experiment.py"
    done = script(
        *("train", f"--config={config}", f"--workdir={path}"),
        "--config.optimizer.learning_rate=0.01",
    )
    assert last_json(done).keys() >= {"AP", "AP50"}
    assert "step 1/2  loss" in done.stderr
    config = json.loads((path / "config.json").read_text())
    assert config["optimizer"]["learning_rate"] == 0.01


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return once.folder(tmp_path_factory, "small_run", train)


def test_evaluate_gives_the_same_for_checkpoint_and_files(workdir, tmp_path):
    by_checkpoint = script(
        *("evaluate", f"--checkpoint={workdir}", f"--output={tmp_path}"),
        *("--pictures=2", "--set=postprocess.score=0.0", "--batch_size=4"),
    )
    by_files = script(
        *("evaluate", f"--detections={tmp_path / 'detections_val_0-3.json'}"),
        f"--annotations={tmp_path / 'annotations_val_0-3.json'}",
    )
    assert last_json(by_checkpoint) == last_json(by_files)
    assert last_json(by_files).keys() >= {"AP", "AR100", "per_class", "VOC07"}
    assert "AP50" in by_files.stdout and "circle" in by_files.stdout
    for i in range(2):
        picture = cv2.imread(str(tmp_path / "pictures_val_0-3" / f"{i:04d}.jpg"))
        assert picture.shape[2] == 3


def test_predict_names_what_it_cannot_read_and_does_the_rest(workdir, tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("a", (70, 50)), ("b", (64, 64)), ("c", (40, 90))):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    worst = tmp_path / "worst"
    worst.mkdir()
    for name, suffix in (
        (b"gif.gif", ".gif"),
        (b"none", ".jp2"),
        (b"\xff.png", ".png"),
    ):
        data = cv2.imencode(suffix, image)[1].tobytes()
        (worst / os.fsdecode(name)).write_bytes(data)
    narrow = rng.integers(0, 256, (1, 2000, 3), np.uint8)
    cv2.imwrite(str(worst / "narrow.png"), narrow)
    cv2.imwrite(str(worst / "wide.png"), np.zeros((2, 70_000, 3), np.uint8))
    (worst / "notes").write_text("no image")
    out = tmp_path / "out"
    done = script(
        *("predict", f"--checkpoint={workdir}", f"--images={tmp_path}/*.png"),
        *(f"--images={tmp_path}/gone.jpg", f"--output={out}", "--batch_size=2"),
        *(f"--images={tmp_path}/../{tmp_path.name}/c.png", worst),  # once more
        code=1,
    )
    result = last_json(done)
    assert result["images"] == 8
    assert result["undrawn"] == [str(worst / "wide.png")]  # no JPEG is so wide
    assert result["skipped"] == 1
    assert "2 files not read; 1 not drawn; 1 file no image or video" in done.stdout
    gone, broken = (str(tmp_path / name) for name in ("gone.jpg", "broken.png"))
    assert result["unread"] == [gone, broken]
    assert "broken.png" in done.stderr
    assert len(list((out / "pictures").iterdir())) == 7
    images = files.read_annotations(out / "images.json")
    assert {(i["width"], i["height"]) for i in images["images"]} == {
        *((2000, 1), (70_000, 2)),
        (50, 70),
        (64, 64),
        (90, 40),
    }
    files.read_detections(out / "detections.json", images)


def test_predict_takes_folders_and_videos_and_keeps_the_classes_named(
    workdir, tmp_path
):
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    out = folder / "out"
    (folder / "deep").mkdir(parents=True)
    (folder / "notes.txt").write_text("no image")
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    cv2.imwrite(str(folder / "deep" / "a.PNG"), image)
    video = cv2.VideoWriter(
        str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (80, 64)
    )
    for _ in range(5):
        video.write(rng.integers(0, 256, (64, 80, 3), np.uint8))
    video.release()
    (folder / "broken.mp4").write_bytes(b"no video")
    (out / "pictures").mkdir(parents=True)  # of an earlier call: not taken for images
    cv2.imwrite(str(out / "pictures" / "00001_a.jpg"), image)
    done = script(
        *("predict", f"--checkpoint={workdir}", f"--images={folder}", "--score=0"),
        *(f"--output={out}", "--batch_size=2", "--classes=star,circle"),
        code=1,
    )
    result = last_json(done)
    assert result["images"] == 6  # one picture, five frames
    assert result["unread"] == [str(folder / "broken.mp4")]
    images = files.read_annotations(out / "images.json")
    frames = [(i["frame"], i["time"]) for i in images["images"] if "frame" in i]
    assert frames == [(n, pytest.approx(n / 5)) for n in range(5)]
    found = files.read_detections(out / "detections.json", images)
    assert {d["category_id"] for d in found} <= {1, 4}
    with (out / "detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found) > 0  # of all scores, as asked
    for row, entry in zip(rows, found, strict=True):
        x, y, w, h = entry["bbox"]
        corners = [float(row[k]) for k in ("x1", "y1", "x2", "y2")]
        np.testing.assert_allclose(corners, [x, y, x + w, y + h], atol=0.01)
        assert row["class"] == {1: "circle", 4: "star"}[entry["category_id"]]
    (drawn,) = (out / "videos").iterdir()
    capture = cv2.VideoCapture(str(drawn))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert capture.get(cv2.CAP_PROP_FPS) == 5
    capture.release()
    (picture,) = (out / "pictures").iterdir()
    assert cv2.imread(str(picture)).shape[0] >= 320  # enlarged for the labels

    done = script(
        *("predict", f"--checkpoint={workdir}", f"--images={folder}"),
        *(f"--output={out}", "--classes=stra"),
        code=2,
    )
    assert "stra: the checkpoint knows circle, square" in done.stdout + done.stderr


def test_nothing_to_predict_on_is_an_error(workdir, tmp_path):
    done = script(
        *("predict", f"--checkpoint={workdir}", f"--images={tmp_path}/*.jpg"),
        f"--output={tmp_path}",
        code=2,
    )
    assert "matches no file" in done.stderr


def test_what_is_no_option_and_what_is_misspelt_are_named(tmp_path):
    from tests.scripts import many

    run = f"--workdir={tmp_path}", "--config=experiments/shapes_demo.py"
    *refused, misspelt = many.run(
        [
            ("train", "total_steps=5", *run),
            ("evaluate", "total_steps=5"),
            ("train", *run, "--config.optimizer.learning_rat=0.1"),
        ]
    )
    for code, _, err in refused:
        assert code != 0
        assert "unexpected ['total_steps=5']" in err
        assert len(err.splitlines()) == 1
    code, _, err = misspelt
    assert code == 2
    assert "learning_rat" in err and "learning_rate" in err


ONLY_JAX = """
import importlib.metadata, sys

names = importlib.metadata.packages_distributions()
installed = "jax jaxlib numpy scipy ml-dtypes opt-einsum flatbuffers".split()


class Missing:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        ours = {d.replace("_", "-") for d in names.get(top, ())}
        if top == "frcnn_jax" or (ours and not ours.intersection(installed)):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)


sys.meta_path.insert(0, Missing())
"""


@pytest.mark.slow
def test_export_runs_where_only_jax_is_installed_and_finds_the_same(workdir, tmp_path):
    """The lines of docs/export.md, in a process that can import nothing of ours."""
    done = script(
        *("export", f"--checkpoint={workdir}", f"--output={tmp_path / 'exported'}"),
        "--score=0.0",
    )
    assert last_json(done)["same"] is True
    text = (ROOT / "docs" / "export.md").read_text()
    code = text.split("<!-- load -->\n```python\n")[1].split("```")[0]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    np.save(tmp_path / "image.npy", image)
    ran = subprocess.run(
        [sys.executable, "-c", ONLY_JAX + code],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    detector = load(workdir)
    detector.config.postprocess.score = 0.0
    detector = Detector(
        detector.model,
        detector.variables,
        checkpoint.read_meta(checkpoint.find(workdir))._replace(config=detector.config),
    )
    expected = detector([image])
    lines = ran.stdout.splitlines()
    assert len(lines) == expected.valid.sum() > 0
    for line, c, score in zip(
        lines, expected.classes[0], expected.scores[0], strict=False
    ):
        name, value, *_ = line.split(maxsplit=2)
        assert name == detector.classes[c - 1]
        assert float(value) == pytest.approx(float(score), rel=1e-4)
