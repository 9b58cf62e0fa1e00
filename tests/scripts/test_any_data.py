"""One command trains on a folder, and the others follow from the checkpoint."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.data import layouts
from tests.scripts import many

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
SMALL = (
    *("total_steps=4", "eval_every=4", "checkpoint_every=4", "eval_batch_size=4"),
    *("data.short_side=48", "data.max_side=64", "data.canvas=(64, 64)"),
    *("model.backbone.depth=10", "model.fpn.channels=16", "data.max_boxes=150"),
    "optimizer.learning_rate=1e-6",  # no weights, norms frozen: it would not be finite
    *("roi_targets.num_samples=16", "rpn_targets.num_samples=32"),
    *("proposals.train.pre_nms=50", "proposals.train.post_nms=20"),
    *("proposals.eval.pre_nms=50", "proposals.eval.post_nms=20"),
)


def run(script, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)],
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


def test_leaves_of_data_are_admitted_others_are_an_error_of_one_line(tmp_path):
    layouts.csv_tabs(tmp_path)
    root = f"--config.data.root={tmp_path}"
    check, other = (
        ["check_dataset", "--nodecode", f"--config={EXPERIMENTS / name}", root]
        for name in ("finetune.py", "shapes_demo.py")
    )
    clip = "--config.optimizer.clip_norm=10"  # not in the file, as an error asks
    table = ["name=csv", "annotations=boxes.tsv"]
    table += ["train_split=all[:80%]", "eval_split=all[80%:]"]
    said = {
        "data.rot=x": "config.data.rot: neither the pipeline nor",
        "data.num_images=3": "config.data.num_images: neither the pipeline nor",
        "optimizer.lerning_rate=1": "no leaf --config.optimizer.lerning_rate: is it",
        "optimiser.learning_rate=1": "optimiser",
    }
    own = tmp_path / "1"
    for split, name in (("train", "a"), ("val", "b")):
        layouts.image(own / f"{name}.png")
        layouts.text(own / f"{split}.txt", f"{name}.png 2,3,30,30,cat\n")
    layouts.text(own / "classes.txt", "cat\n")
    module = ["name=examples.my_dataset", f"root={own}"]
    good, switched, mine, *wrong = many.run(
        [
            [*check, "--config.data.images=pictures"],
            [*other, clip, *(f"--config.data.{leaf}" for leaf in table)],
            [*other[:-1], *(f"--config.data.{leaf}" for leaf in module)],
            *([*check, f"--config.{leaf}"] for leaf in said),
        ]
    )
    for code, out, err in (good, switched):
        assert code == 0, err
        assert "8 images" in out and "csv all[80%:]" in out
    assert mine[0] == 0 and "examples.my_dataset val" in mine[1], mine
    for (code, _, err), words in zip(wrong, said.values(), strict=True):
        assert code and words in err and "Traceback" not in err, err
        assert len(err.strip().splitlines()) == 1, err


@pytest.mark.slow
def test_a_source_of_ones_own_is_trained_and_evaluated(tmp_path):
    """`examples/my_dataset.py`, a module outside the package, under any experiment."""
    folder = tmp_path / "set"
    for split, names in (("train", "abcdef"), ("val", "gh")):
        lines = [
            f"{layouts.image(folder / f'{n}.png').name} 2,3,30,30,cat" for n in names
        ]
        layouts.text(folder / f"{split}.txt", "\n".join(lines) + "\n")
    layouts.text(folder / "classes.txt", "cat\ndog\n")
    steps = ("total_steps", "eval_every", "checkpoint_every", "log_every")
    flags = [f"--config.{name}=4" for name in steps] + ["--config.batch_size=2"]
    flags += ["--config.data.name=examples.my_dataset", f"--config.data.root={folder}"]
    flags += ["--config.data.short_side=64", "--config.data.max_side=64"]
    flags += ["--config.data.canvas=(64, 64)", f"--workdir={tmp_path / 'run'}"]
    done = run("train.py", f"--config={EXPERIMENTS / 'shapes_demo.py'}", *flags)
    result = json.loads(done.stdout.splitlines()[-1])
    assert "6 training and 2 evaluation images, 2 classes: cat, dog" in done.stderr
    assert "step 4/4" in done.stderr and 0 <= result["AP"] <= 1
    written = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert written["name"] == "examples.my_dataset"
    checkpoint = f"--checkpoint={tmp_path / 'run'}"
    refused = run("evaluate.py", checkpoint, code=2)  # the code might be a stranger's
    assert "if it is yours, name it, as --set=data.name=examples.my" in refused.stderr
    again = run("evaluate.py", checkpoint, "--set=data.name=examples.my_dataset")
    assert json.loads(again.stdout.splitlines()[-1])["AP"] == result["AP"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, source, train_split, eval_split, flags",
    [
        ("raccoon", "csv", "train", "test", ["name=csv"]),
        ("raccoon", "voc", "all[:80%]", "all[80%:]", ["name=voc"]),
        ("bccd", "voc", "train", "val", []),
        ("deeppcb", "coco", "trainval", "test", []),
        ("coco_mini", "coco", "train2017", "val2017", []),
    ],
)
def test_real_sets(shared, tmp_path, name, source, train_split, eval_split, flags):
    data = [f"--config.data.root={shared / 'data' / name}"]
    data += [f"--config.data.{flag}" for flag in flags]
    experiment = f"--config={EXPERIMENTS / 'finetune.py'}"
    small = [f"--config.{change}" for change in SMALL]
    done = run("train.py", experiment, *data, *small, f"--workdir={tmp_path}")
    assert json.loads(done.stdout.splitlines()[-1])["AP"] >= 0
    written = json.loads((tmp_path / "config.json").read_text())["data"]
    assert written["name"] == source
    assert (written["train_split"], written["eval_split"]) == (train_split, eval_split)
    assert "auto" not in written.values()
    if name == "deeppcb":  # 500 images to evaluate; coco_mini is such a folder, too
        return
    # In the checkpoint, too: neither the format nor the splits are asked for again.
    again = run("evaluate.py", f"--checkpoint={tmp_path}")
    assert json.loads(again.stdout.splitlines()[-1])["AP"] >= 0
    if name == "coco_mini":
        page = tmp_path / "report.html"
        run("report.py", tmp_path, f"--output={page}", "--images=4")
        assert page.stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, problem",
    [
        ("raccoon", "2 pictures are in both splits: "),  # 52 = 74, 83 = 120
        ("coco_mini", ""),
        ("bccd", "BloodImage_00343.xml: dropped RBC (181, 329, 181, 329): no area"),
    ],
)
def test_real_sets_are_checked(shared, name, problem):
    data = [f"--config.data.root={shared / 'data' / name}"]
    data += ["--config.data.max_boxes=150"]
    data += ["--config.data.name=voc"] * (name == "raccoon")  # it has tables as well
    experiment = f"--config={EXPERIMENTS / 'finetune.py'}"
    code = 1 if problem else 0
    done = run("check_dataset.py", experiment, *data, "--nodecode", code=code)
    train, evaluated = json.loads(done.stdout.splitlines()[-1])["splits"].values()
    assert [line.startswith(problem) for line in train["problems"]] == [True] * code
    assert len(evaluated["problems"]) == code
