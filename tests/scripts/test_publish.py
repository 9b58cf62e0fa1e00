"""A run as a folder for others: made, read, and put on a hub that is on loopback."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from frcnn_jax.training import checkpoint, published, trained
from tests.scripts import fake_hub

ROOT = pathlib.Path(__file__).parents[2]
RUN = ROOT / "tests" / "goldens" / "old_run"  # of generated shapes


def publish(*args, code=0, **env):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "publish.py"), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A run with results of an evaluation."""
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(RUN / "checkpoints", run / "checkpoints")
    meta = checkpoint.read_meta(checkpoint.find(run))
    names = zip(meta.category_ids, meta.classes, strict=True)
    box = dict(
        image_id=1, bbox=[1.0, 1.0, 20.0, 20.0], category_id=meta.category_ids[0]
    )
    annotations = dict(
        info=dict(split="val", step=2),
        images=[dict(id=1, file_name="a.jpg", height=64, width=64)],
        categories=[dict(id=i, name=name) for i, name in names],
        annotations=[dict(box, id=1, area=400.0, iscrowd=0)],
    )
    (run / "annotations_val.json").write_text(json.dumps(annotations))
    (run / "detections_val.json").write_text(json.dumps([dict(box, score=0.9)]))
    return run


def test_a_folder_is_made_put_on_a_hub_and_loaded(shapes, tmp_path, monkeypatch):
    folder = tmp_path / "shapes-detector"
    with fake_hub.running() as hub:
        home = dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
        done = publish(
            *(shapes, f"--output={folder}", "--licence=mit", "--push=me/mine"),
            *("--command=make demo", "--private"),
            **dict(home, HF_TOKEN="x", no_proxy="127.0.0.1", HF_HUB_DISABLE_XET="1"),
        )
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["url"].startswith(f"{hub.url}/me/mine/commit/")
        assert "private" in hub.created.values() or hub.created.get("private")
        files = ("model.safetensors", "frcnn_jax.json", "README.md")
        assert set(hub.files) == set(files) == set(result["files"])
        for name in files:
            assert hub.files[name] == (folder / name).read_bytes()
        import huggingface_hub

        real = huggingface_hub.hf_hub_download

        def download(repository, file, revision=None):
            place = dict(endpoint=hub.url, cache_dir=tmp_path / "cache")
            return real(repository, file, revision=revision, **place)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        fetched = trained.load("hf:me/mine")
    text = (folder / "README.md").read_text()
    meta = checkpoint.read_meta(checkpoint.find(shapes))
    for part in ("license: mit", "make demo", "hf:me/mine", *meta.classes):
        assert part in text
    assert f"| {meta.classes[0]} | 1.000 | 1.000 |" in text
    assert f"| {meta.classes[1]} | - | - |" in text
    assert str(ROOT) not in text and str(tmp_path) not in text
    about = json.loads((folder / "frcnn_jax.json").read_text())
    assert about["sha256"] == result["sha256"] and about["split"] == "val"
    assert about["metrics"]["AP"] == pytest.approx(1.0)
    here = trained.load(folder)
    run = trained.load(shapes)
    for found in (here, fetched):
        assert found.meta.classes == run.meta.classes
        assert found.meta.step == run.meta.step == 2
        jax.tree.map(np.testing.assert_array_equal, found.variables, run.variables)


def test_a_folder_of_other_files_is_left_alone(shapes, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = publish(shapes, f"--output={tmp_path}", code=2)
    assert "is a folder with other files" in done.stderr
    assert not (tmp_path / published.ABOUT).exists()


@pytest.mark.slow
def test_a_detector_of_blood_cells_has_its_report_and_its_data(shared, tmp_path):
    """Trained for two steps on BCCD, evaluated, published with its report page."""
    from frcnn_jax.training.loop import train_and_evaluate
    from tests.training import small

    config = small.config(total_steps=2, eval_every=2, checkpoint_every=2)
    config.data = dict(
        name="voc",
        root=str(shared / "data" / "bccd"),
        classes=(),
        **dict(train_split="train[:6]", eval_split="val[:3]"),
        **dict(short_side=64, max_side=96, canvas=(64, 96), max_boxes=64, flip=True),
    )
    train_and_evaluate(config, tmp_path / "bccd")
    done = publish(tmp_path / "bccd", f"--output={tmp_path / 'cells'}")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["files"][-1] == "report.html"
    assert (tmp_path / "cells" / "report.html").stat().st_size > 10_000
    text = (tmp_path / "cells" / "README.md").read_text()
    found = trained.load(tmp_path / "cells")
    assert set(found.meta.classes) == {"RBC", "WBC", "Platelets"}
    for part in ("| RBC |", "`data.name` | voc", "`optimizer.name` | sgd", "bccd"):
        assert part in text
    about = (tmp_path / "cells" / "frcnn_jax.json").read_text()
    assert str(shared) not in text + about
