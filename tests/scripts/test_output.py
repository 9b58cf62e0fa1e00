"""Where a script cannot write it says so in one line, before it does anything."""

import json
import os

import cv2
import numpy as np
import pytest

from frcnn_jax.data import proposal_files
from tests import disks
from tests.data import layouts
from tests.scripts import many
from tests.scripts.test_scripts import ROOT

SMALL = f"--config={ROOT / 'tests' / 'scripts' / 'small_experiment.py'}"
OLD = f"--checkpoint={ROOT / 'tests' / 'goldens' / 'old_run'}"


def calls(place, image, data):
    """Each script that writes, told to write at `place` or in it."""
    return [
        ["train", SMALL, f"--workdir={place}"],
        ["sweep", SMALL, "--sweep=x", f"--workdir={place}"],
        ["train_alternating", SMALL, f"--workdir={place}"],
        ["evaluate", OLD, f"--output={place}"],
        ["predict", OLD, str(image), f"--output={place}"],
        ["publish", str(ROOT / "tests" / "goldens" / "old_run"), f"--output={place}"],
        ["export", OLD, f"--output={place}"],
        ["export", OLD, "--format=onnx", f"--output={place}/a.onnx"],
        ["convert_weights", OLD, f"--output={place}/a.npz"],
        ["check_dataset", SMALL, f"--output={place}"],
        ["make_records", SMALL, f"--output={place}"],
        ["make_proposals", SMALL, "--splits=val", f"--output={place}/a.npz"],
        ["evaluate_proposals", SMALL, "--proposals=x.npz", f"--plot={place}/a.png"],
        ["report", str(data), f"--output={place}/a.html"],
        ["plot_curves", f"--runs={data}", f"--output={place}/a.svg"],
        ["verify_zoo", f"--page={place}/a.md"],
    ]


@pytest.fixture
def read_only(tmp_path):
    """A file system that nothing can be written to, root neither."""
    with disks.mounted(tmp_path / "disk", "ro") as folder:
        yield folder


def check(given, ends, *words):
    wrong = []
    for call, (code, _, err) in zip(given, ends, strict=True):
        line = err.strip()
        said = line.startswith(f"{call[0]}.py: ") and all(w in line for w in words)
        if code != 2 or "\n" in line or not said:
            wrong.append((call, code, err))
    assert not wrong


def inputs(folder):
    image = layouts.image(folder / "image.png")
    (folder / "metrics.jsonl").write_text("")
    (folder / "config.json").write_text("{}")
    return image, folder


def test_where_nothing_can_be_written_is_one_line(tmp_path):
    """Below a file, a folder in place of a file, a file in place of a folder."""
    image, data = inputs(tmp_path)
    for name in ("a.npz", "a.html", "a.svg", "a.png", "a.md", "a.onnx"):
        (tmp_path / name).mkdir()
    below = calls(image / "new", image, data)
    files = [c for c in calls(tmp_path, image, data) if "/a." in c[-1]]
    folders = [c for c in calls(image, image, data) if "/a." not in c[-1]]
    page, curves = tmp_path / "new" / "a" / "b.html", tmp_path / "new" / "c" / "d.svg"
    odd = tmp_path / os.fsdecode(b"run \xff")  # a name that is not UTF-8
    odd.mkdir()
    inputs(odd)
    good = [
        ["report", str(odd), "--images=0", f"--output={page}"],
        ["plot_curves", f"--runs={odd}", f"--output={curves}"],
    ]
    ends = many.run([*below, *files, *folders, *good])
    check(below, ends[: len(below)], "image.png", "a part of this path is a file")
    ends = ends[len(below) :]
    check(files, ends[: len(files)], "it is a folder: name a file in it")
    ends = ends[len(files) :]
    check(folders, ends[: len(folders)], "image.png: File exists: it is a file, but")
    assert [code for code, *_ in ends[len(folders) :]] == [0, 0]
    assert page.is_file() and curves.is_file()  # folders that are missing are made


@pytest.mark.slow
def test_a_disk_that_is_read_only_is_one_line(read_only, tmp_path):
    words = str(read_only), "Read-only file system: choose a folder that this user may"
    for place in (read_only, read_only / "new" / "deep"):
        given = calls(place, *inputs(tmp_path))
        check(given, many.run(given), *words)


def worst_set(root):
    """A YOLO folder with an image of one row, a cut one, and names that are no text."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, shape, cut in (
            (b"good.png", (40, 40, 3), 0),
            (b"\xff\xfe.png", (40, 40, 3), 0),
            (b"strip.png", (1, 600, 3), 0),
            (b"wide.png", (1, 12_000, 3), 0),
            (b"cut.png", (40, 40, 3), 99),
        ):
            image = rng.integers(0, 256, shape, np.uint8)
            data = cv2.imencode(".png", image)[1].tobytes()
            file = root / "images" / split / os.fsdecode(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data[: len(data) - cut])
            label = root / "labels" / split / os.fsdecode(name[:-4] + b".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.5 0.5\n")
    layouts.text(root / "names.txt", "thing\n")


@pytest.mark.slow
def test_the_worst_files_are_named_and_the_rest_is_done(tmp_path):
    """Proposals, the check's sheet, records: one line a file, exit code 1."""
    worst_set(tmp_path / "set")
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from experiments import common\n"
        "from tests.training import small\n"
        "def get_config():\n"
        "    c = small.config()\n"
        "    shape = {k: c.data[k] for k in ('short_side', 'max_side', 'canvas')}\n"
        f"    c.data = common.data('yolo', root={str(tmp_path / 'set')!r}, **shape)\n"
        "    c.data.update(train_split='train', eval_split='val')\n"
        "    return c\n"
    )
    data = [f"--config={experiment}"]
    output, sheet = tmp_path / "{split}.npz", tmp_path / "check"
    proposals, checked = many.run(
        [
            [
                *("make_proposals", *data, "--splits=val", f"--output={output}"),
                *("--workers=1", "--max_proposals=9"),
            ],
            ["check_dataset", *data, f"--output={sheet}", "--nodecode"],
        ]
    )
    code, out, err = proposals
    assert code == 1, err
    found = json.loads(out.splitlines()[-1])
    wide, cut = sorted(found["failed"], reverse=True)
    assert "wide.png: an image of 12000x1 pixels" in wide and "cut.png" in cut
    assert err.count("no proposals: ") == 3 and "2 images have no proposals" in err
    boxes = proposal_files.read(tmp_path / "val.npz")
    assert {k: len(v.boxes) > 0 for k, v in boxes.items()} == {
        **{"good": True, "strip": True, os.fsdecode(b"\xff\xfe"): True},
        **{"wide": False, "cut": False},
    }
    code, out, err = checked
    assert code == 1, err
    problems = json.loads((sheet / "check.json").read_text())["train"]["problems"]
    lines = [line for line in problems if "not on the sheet" in line]
    assert len(lines) == 1 and "cut.png" in lines[0]
    assert "  not on the sheet: " in out and (sheet / "sheet.jpg").is_file()
