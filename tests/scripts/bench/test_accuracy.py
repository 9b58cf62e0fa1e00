"""The comparison of accuracy: which trials run, how long, and what is told of them."""

import importlib.util
import json

import pytest
from absl import app, flags

from tests.scripts.test_scripts import ROOT

BOX = [10.0, 10.0, 20.0, 20.0]
# How many of 8 images each trial finds the object of, by side and rate, then seed.
FOUND = {
    ("torchvision", "0.005"): {0: 4},
    ("torchvision", "0.01"): {0: 5, 1: 5},
    ("same", "0.01"): {0: 5, 1: 5},
    ("finetune", ""): {0: 8, 1: 8},
}


@pytest.fixture
def bench(tmp_path):
    values = flags.FlagValues()
    path = ROOT / "scripts" / "bench" / "accuracy.py"
    spec = importlib.util.spec_from_file_location("bench_accuracy", path)
    module = importlib.util.module_from_spec(spec)
    kept, flags.FLAGS.__dict__["__flags"] = flags.FLAGS.__dict__["__flags"], {}
    try:
        spec.loader.exec_module(module)
        values = flags.FLAGS
        argv = ["accuracy", f"--workdir={tmp_path}", "--seeds=0,1", "--on=x,e.py"]
        values(argv)
        yield module
    finally:
        flags.FLAGS.__dict__["__flags"] = kept


def truth():
    annotations = [
        dict(id=i + 1, image_id=i, category_id=1, bbox=BOX, area=400.0, iscrowd=0)
        for i in range(8)
    ]
    return dict(
        images=[
            dict(id=i, file_name=f"{i}.png", width=64, height=64) for i in range(8)
        ],
        categories=[{"id": 1, "name": "a"}],
        annotations=annotations,
    )


def detections(count):
    return [dict(image_id=i, category_id=1, bbox=BOX, score=0.5) for i in range(count)]


def write(at, side, count, seconds):
    run = at / {"same": "ours", "finetune": "run"}.get(side, side)
    run.mkdir(parents=True)
    (at / "shared").mkdir()
    (at / "shared/eval.json").write_text(json.dumps(truth()))
    (run / "annotations_val.json").write_text(json.dumps(truth()))
    (run / "detections_val.json").write_text(json.dumps(detections(count)))
    (at / "spent.json").write_text(json.dumps([seconds, 2 * seconds]))


def test_the_better_rate_goes_on_and_sets_the_minutes(bench, monkeypatch):
    ran = []

    def fake(command, at):
        side, _, rate = at.parent.name.partition("_")
        seed = int(at.name)
        ran.append((side, rate, seed))
        write(at, side, FOUND[side, rate][seed], seconds=600 + 60 * seed)
        if side == "finetune":
            assert f"--config.minutes={10 + seed}.00" in command

    def finetune(chosen, seed, minutes, at):
        return [f"--config.minutes={minutes:.2f}"]

    monkeypatch.setattr(bench, "measured", fake)
    monkeypatch.setattr(bench, "finetune_command", finetune)
    chosen = bench.parsed("x,e.py:runlocal,data.root=A")
    assert chosen == ("x", "e.py:runlocal", ("data.root=A",))
    found = list(bench.trials(chosen))
    assert ran == [(s, r, k) for (s, r), seeds in FOUND.items() for k in seeds]
    rows = bench.rows_of(found)
    assert [(r["side"], r["rate"], len(r["seeds"])) for r in rows] == [
        ("torchvision", "0.005", 1),
        ("torchvision", "0.01", 2),
        ("same", "0.01", 2),
        ("finetune", "chosen", 2),
    ]
    assert rows[1]["minutes"] == 10.5 and rows[1]["processor_minutes"] == 21.0
    gaps = bench.differences(found, draws=20)
    assert gaps["same"] == (0, 0, 0)
    # Recall 5/8 at precision 1 is 63 of COCO's 101 points of recall.
    mean, low, high = gaps["finetune"]
    assert mean == pytest.approx(1 - 63 / 101) and 0 <= low < mean < high
    ran.clear()
    assert len(list(bench.trials(chosen))) == len(found) and not ran  # all are kept


def test_other_images_are_not_compared(bench):
    def trial(side, annotations):
        return bench.Trial(side, 0, "1", {"AP": 0.5}, 1, 1, annotations, detections(4))

    other = truth()
    other["images"][0]["file_name"] = "another.png"
    with pytest.raises(ValueError, match="same: other evaluation images"):
        bench.differences([trial("torchvision", truth()), trial("same", other)], 5)


def test_a_set_without_an_experiment(bench):
    for text in ("x", "data.root=A", "x,data.root=A"):
        with pytest.raises(app.UsageError, match="expected NAME,EXPERIMENT"):
            bench.parsed(text)


def test_the_commands_name_the_data_as_the_experiment_reads_it(bench, tmp_path):
    experiment = str(ROOT / "experiments/bccd_r50_fpn.py:runlocal")
    chosen = bench.parsed(f"b,{experiment},data.root={tmp_path}")
    command = bench.finetune_command(chosen, 3, 19.0, tmp_path)
    for leaf in ("data.name=voc", f"data.root={tmp_path}", "data.train_split=train"):
        assert f"--config.{leaf}" in command
    assert {"--config.minutes=19.00", "--config.seed=3"} <= set(command)
    assert f"--config={ROOT / 'experiments/finetune.py'}" in command
    bench.flags.FLAGS.recipe = "experiments/finetune.py:cascade"
    command = bench.finetune_command(chosen, 3, 19.0, tmp_path)
    assert f"--config={ROOT / 'experiments/finetune.py:cascade'}" in command
    command = bench.recipe_command(chosen, "torchvision", 3, "0.01", tmp_path)
    assert "--only=torchvision" in command
    assert "--config.optimizer.learning_rate=0.01" in command
