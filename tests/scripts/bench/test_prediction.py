"""The bench of prediction: recall and interval by hand; deepforest's photographs."""

import csv
import importlib.util
import pathlib
import zipfile

import pytest

from frcnn_jax.evaluation import intervals
from tests.scripts.test_scripts import ROOT, last_json, script, workdir

__all__ = ["workdir"]  # a run of the small experiment

BOX = [10.0, 10.0, 20.0, 20.0]
SWEEP = """
from tests.training import small


def get_config():
    return small.config(total_steps=2, eval_every=2, checkpoint_every=2)


def sweep_prediction():
    yield {"postprocess.score": 0.0}
    yield {"postprocess.score": 0.0, "views.flip": True, "views.tile": 40}
"""


@pytest.fixture(scope="module")
def bench():
    path = ROOT / "scripts" / "bench" / "prediction.py"
    spec = importlib.util.spec_from_file_location("bench_prediction", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def truth(images=4):
    annotations = [
        dict(id=i + 1, image_id=i, category_id=1, bbox=BOX, area=400.0, iscrowd=0)
        for i in range(images)
    ]
    return dict(
        images=[{"id": i} for i in range(images)],
        categories=[{"id": 1, "name": "a"}],
        annotations=annotations,
    )


def found(image, box=BOX, score=0.5):
    return dict(image_id=image, category_id=1, bbox=box, score=score)


def test_recall_counts_each_object_once(bench):
    detections = [found(0), found(0, score=0.4), found(1, [10.0, 10.0, 20.0, 11.0])]
    detections.append(found(2, [10.0, 10.0, 20.0, 9.0]))  # IoU 0.45
    assert bench.recall(truth(), detections) == 0.5
    assert bench.recall(truth(), []) == 0.0


def test_the_interval_is_one_of_resampled_images():
    """Of four images two are found: AP is k / 4 in a set with k of those."""
    low, high = intervals.interval(truth(), [found(0), found(1)], draws=200)
    # One draw in 16 has none of the two: the 2.5th percentile is 0.
    assert low == 0 and 0.5 < high <= 1.0
    every = [found(i) for i in range(4)]
    assert intervals.interval(truth(), every, draws=20) == (1.0, 1.0)


@pytest.mark.slow
def test_every_row_has_its_figures(workdir, tmp_path):
    config = tmp_path / "sweeps.py"
    config.write_text(SWEEP)
    done = script(
        *("bench/prediction", f"--config={config}", f"--checkpoint={workdir}"),
        *("--draws=5", "--images=2", f"--output={tmp_path}"),
    )
    rows = last_json(done)["rows"]
    assert len(rows) == 2 and rows[1]["views.tile"] == 40
    for row in rows:
        assert row["seconds"] > 0 and 0 <= row["recall"] <= 1


def test_deepforests_photographs_become_a_table(tmp_path):
    wheel = tmp_path / "x.whl"
    text = "<annotation>{}</annotation>"
    box = "<object><name>Tree</name><bndbox><xmin>{0}</xmin><ymin>2</ymin>"
    box += "<xmax>30</xmax><ymax>40</ymax></bndbox></object>"
    names = ("2019_YELL_2_528000_4978000_image_crop2", "OSBS_029")
    names += ("2019_YELL_2_541000_4977000_image_crop", "SOAP_061")
    with zipfile.ZipFile(wheel, "w") as file:
        for i, name in enumerate(names):
            file.writestr(f"deepforest/data/{name}.png", b"pixels")
            trees = "".join(box.format(k) for k in range(i + 1))
            file.writestr(f"deepforest/data/{name}.xml", text.format(trees))
    out = tmp_path / "out"
    done = script("bench/deepforest", f"--wheel={wheel}", f"--output={out}")
    assert last_json(done) == {"train": 3, "test": 7}
    rows = list(csv.reader((out / "train.csv").read_text().splitlines()))
    assert rows[0] == ["image", "x1", "y1", "x2", "y2", "label"]
    assert rows[1] == [f"{names[0]}.png", "0.0", "2.0", "30.0", "40.0", "tree"]
    assert pathlib.Path(out / f"{names[3]}.png").read_bytes() == b"pixels"
