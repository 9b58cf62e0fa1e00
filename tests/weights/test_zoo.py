"""The table of names, and the configurations that go with it."""

import re
import subprocess
import sys
import urllib.parse

import pytest

from frcnn_jax.training import config as configs
from frcnn_jax.weights import download, zoo
from tests.weights.make_settings import EXPERIMENTS, make


def test_the_table_names_each_detector_once():
    names = [entry.name for entry in zoo.TABLE]
    assert len(set(names)) == len({entry.url for entry in zoo.TABLE}) == len(names)
    assert {entry.family for entry in zoo.TABLE} == {
        *("torchvision", "detectron2", "mmdetection"),
    }
    for name in (
        "torchvision/fasterrcnn_resnet50_fpn",
        "detectron2/mask_rcnn_R_50_C4_1x",
    ):
        found = zoo.find(name)
        assert found is not None and found.name == name
    assert zoo.find("torchvision/resnet50") is None


@pytest.mark.parametrize("entry", zoo.TABLE, ids=lambda entry: entry.name)
def test_a_row_is_whole(entry):
    assert 20 < entry.ap < 60 and entry.licence
    assert entry.settings in zoo.all_settings()
    assert len(entry.classes) == len(entry.category_ids) in (1, 80)
    assert (len(entry.classes) == 1) == ("keypoint" in entry.name)
    parts = urllib.parse.urlsplit(entry.url)
    assert parts.scheme == "https" and parts.hostname
    assert download.place(entry.url).name == parts.path.rpartition("/")[2]
    # The digits of a digest are those that the maker put into the file's name.
    kind, _, digits = entry.digest.partition(":")
    assert kind == ("md5" if entry.family == "detectron2" else "sha256")
    assert re.search(rf"[-_]{digits}\.(pth|pkl)$", entry.url)
    assert re.fullmatch(r"[0-9a-f]{6,8}", digits)


def test_every_configuration_belongs_to_a_row():
    assert set(zoo.all_settings()) == set(EXPERIMENTS)
    assert {entry.settings for entry in zoo.TABLE} == set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_configurations_are_those_of_the_experiments(name):
    found, expected = zoo.settings(name), make(name)
    for group in ("data", "model", "proposals", "postprocess"):
        assert found[group] == expected[group], (
            f"{group} of {name}.json is not what its experiment has: run "
            "python tests/weights/make_settings.py"
        )
    configs.check(configs.from_json(found))


def test_names_that_are_nearly_right_are_shown():
    assert zoo.similar("torchvision/fasterrcnn_resnet50")[0] == (
        "torchvision/fasterrcnn_resnet50_fpn"
    )
    assert zoo.similar("x101_64x4d")
    assert zoo.similar("runs/demo") == []


def test_the_module_lists_what_there_is():
    code = [sys.executable, "-m", "frcnn_jax.weights", "mmdetection", "x101"]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].split()[0] == "name"
    rows = [line for line in lines if line.startswith("mmdetection/")]
    assert len(rows) == 4 and "torchvision/" not in done.stdout
    assert "cff10310" in rows[0] and "Apache-2.0" in rows[0] and "41.2" in rows[0]
    assert "downloads go to" in done.stdout
