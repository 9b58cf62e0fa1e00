"""Sets of the hub, with a stand-in for the package `datasets`."""

import json
import sys
import types

import cv2
import numpy as np
import pytest

from frcnn_jax.data import named, recognise
from tests.data import layouts

PNG = cv2.imencode(".png", np.zeros((40, 60, 3), np.uint8))[1].tobytes()


class Table(list):
    """Rows, and their features as `datasets` 5 describes a list of dicts."""

    def __init__(self, rows):
        super().__init__(rows)
        kind = types.SimpleNamespace(names=["cat", "dog"])
        objects = types.SimpleNamespace(feature=dict(bbox=None, category=kind))
        self.features = dict(image=None, objects=objects)

    def cast_column(self, name, kind):
        assert (name, kind) == ("image", "not decoded")
        return self


@pytest.fixture
def hub(monkeypatch):
    boxes = dict(bbox=[[1.0, 2.0, 10.0, 20.0], [3.0, 4.0, 5.0, 6.0]], category=[1, 0])
    each = [dict(bbox=b, category=c) for b, c in zip(*boxes.values(), strict=True)]
    image = dict(bytes=PNG, path=None)
    rows = [
        dict(image=image, image_id=i, objects=o) for i, o in enumerate([boxes, each])
    ]
    rows += [dict(image=image, image_id=2, objects=[])]
    fake: dict = dict(
        load_dataset=lambda name, config, split: Table(rows),
        get_dataset_split_names=lambda name, config: ["train", "validation"],
        Image=lambda decode: "decoded" if decode else "not decoded",
    )
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(**fake))


def test_a_set_of_the_hub(hub):
    source = named.load_source("hf:lab/pets", split="train")
    assert source.classes == ("cat", "dog")
    for example in list(source)[:2]:
        np.testing.assert_array_equal(example.boxes, [[1, 2, 11, 22], [3, 4, 8, 10]])
        assert example.classes.tolist() == [2, 1] and example.size == (40, 60)
    assert source[2].boxes.shape == (0, 4) and source[2].image_id == 2


def test_its_splits_are_asked_for(hub):
    data = dict(name="hf:lab/pets", train_split="auto", eval_split="auto")
    found, _ = recognise.resolve(data)
    assert (found["train_split"], found["eval_split"]) == ("train", "validation")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets, or give a folder"):
        named.load_source("hf:lab/pets", split="train")


@pytest.mark.parametrize(
    "line, message",
    [
        (
            '{"file_name": "a.png", "objects": {"bbox": 1}}',
            "line 1: 'objects' is .*a list 'bbox'",
        ),
        ('{"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]]}}', "under any of"),
        ('{"objects": {}}', "line 1 has no 'file_name'"),
        ('{"file_name": "b.png", "objects": null}', "line 1: no image b.png below"),
        ("{", "line 1 is not JSON"),
    ],
)
def test_mistakes_are_named(tmp_path, line, message):
    layouts.image(tmp_path / "train" / "a.png")
    layouts.text(tmp_path / "train" / "metadata.jsonl", line)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        named.load_source("hf", split="train", root=str(tmp_path))


def test_numbers_without_names_are_their_own(tmp_path):
    layouts.image(tmp_path / "train" / "a.png")
    objects = dict(bbox=[[1, 2, 3, 4]], categories=[2])
    line = json.dumps(dict(file_name="a.png", objects=objects))
    layouts.text(tmp_path / "train" / "metadata.jsonl", line)
    options = dict(split="train", root=str(tmp_path))
    assert named.load_source("hf", **options).classes == ("0", "1", "2")
    called = named.load_source("hf", **options, classes=("a", "b", "c"))
    assert called[0].classes.tolist() == [3]
    with pytest.raises(ValueError, match="class 2, but there are 2 names"):
        named.load_source("hf", **options, classes=("a", "b"))


@pytest.mark.parametrize(
    "cell, message",
    [
        ("{'bbox': [[1, 2", "line 2: 'objects' is .*neither JSON nor a dict as Python"),
        ("[1, 2]", "line 2: 'objects' is .*expected a dict with a list 'bbox'"),
        ("__import__('os')", "line 2: 'objects' is .*neither JSON nor a dict"),
        ("[" * 5000, "line 2: 'objects' is .*neither JSON nor a dict"),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path, cell, message):
    layouts.image(tmp_path / "a.png")
    layouts.text(tmp_path / "metadata.csv", f'file_name,objects\na.png,"{cell}"\n')
    options = dict(root=str(tmp_path), annotations="metadata.csv")
    with pytest.raises(ValueError, match=message):
        named.load_source("hf", split="all", **options)
