"""Several sets as one: classes, weights, what is ignored."""

import sys
import types

import numpy as np
import pytest

from frcnn_jax.data import pipeline
from frcnn_jax.data.source import Example, Source
from frcnn_jax.data.sources import mix


def make(classes, labels, value):
    examples = [
        Example(
            np.full((20, 20, 3), value, np.uint8),
            i,
            np.tile(np.float32([1, 1, 9, 9]), (len(found), 1)),
            np.array(found, np.int32),
            np.zeros(len(found), bool),
        )
        for i, found in enumerate(labels)
    ]
    return Source(examples, classes, report=[f"note {value}"])


@pytest.fixture(autouse=True)
def lab(monkeypatch):
    sets = {
        "zoo": lambda split: make(("cat", "dog"), [[1], [2], [1, 2]], 10),
        "farm": lambda split: make(
            ("hound", "cow", "mud"), [[1, 2, 3]] if split == "test" else [[3], [1]], 20
        ),
    }
    for name, function in sets.items():
        module = types.ModuleType(f"my_lab.{name}")
        module.load = lambda *, split, function=function: function(split)
        monkeypatch.setitem(sys.modules, f"my_lab.{name}", module)
    monkeypatch.setitem(sys.modules, "my_lab", types.ModuleType("my_lab"))


def sets(**farm):
    farm = dict(name="my_lab.farm", rename=dict(hound="dog", mud="")) | farm
    return dict(zoo=dict(name="my_lab.zoo"), farm=farm)


def test_classes_are_shared_by_name():
    source = mix.load(split="train", datasets=sets())
    assert source.classes == ("cat", "dog", "cow")
    assert len(source) == 5 and source.repeats is None
    assert [e.image_id for e in source][::2] == ["zoo/0", "zoo/2", "farm/1"]
    mud, hound = source[3], source[-1]
    assert mud.ignore.tolist() == [True] and mud.classes.min() >= 1
    assert hound.classes.tolist() == [2] and hound.ignore.tolist() == [False]
    assert source.report == ["zoo: note 10", "farm: note 20"]
    assert [e.image_id for e in source.examples[2:4]] == ["zoo/2", "farm/0"]
    with pytest.raises(IndexError):
        source[5]


def test_each_set_has_its_own_names_of_splits():
    source = mix.load(split="val", datasets=sets(splits=dict(val="test")))
    assert source[-1].classes.tolist() == [2, 3, 1]
    assert source[-1].ignore.tolist() == [False, False, True]


def test_weights_are_shares_of_an_epoch():
    datasets = sets(weight=3.0)
    datasets["zoo"]["weight"] = 1.0
    source = mix.load(split="train", datasets=datasets)
    # Five visits an epoch: 5/4 of three images, 15/4 of two.
    np.testing.assert_allclose(source.repeats, [5 / 12] * 3 + [15 / 8] * 2)
    options = dict(short_side=20, max_side=20, canvas=(20, 20), max_boxes=3)
    data = pipeline.train_dataset(source, batch_size=5, seed=0, **options)
    values = np.concatenate([data[k].image[:, 0, 0, 0] for k in range(80)])
    assert abs((values == 20).mean() - 0.75) < 0.02


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="farm has the class 'cow', which is not in"):
        mix.load(split="train", datasets=sets(), classes=("cat", "dog"))
    with pytest.raises(
        ValueError, match="farm.rename: .*no class 'pig', but hound, cow, mud"
    ):
        mix.load(split="train", datasets=sets(rename=dict(pig="cow")))
    with pytest.raises(ValueError, match="give every set a weight, or none"):
        mix.load(split="train", datasets=sets(weight=2))
    for weight in (-1, 0, float("nan"), "x"):
        with pytest.raises(ValueError, match="datasets.farm.weight=.*above 0"):
            mix.load(split="train", datasets=sets(weight=weight))
    with pytest.raises(ValueError, match="data.datasets.zoo.name='': expected a text"):
        mix.load(split="train", datasets=dict(zoo=dict(root="photos")))
    with pytest.raises(ValueError, match="data.datasets is empty"):
        mix.load(split="train", datasets={})


def test_through_build():
    data = pipeline.build(
        "mix",
        datasets=sets(),
        **dict(batch_size=2, eval_batch_size=2, seed=0, train_split="train"),
        **dict(eval_split="val", short_side=20, max_side=20, canvas=(20, 20)),
    )
    assert next(data.train_batches()).image.shape == (2, 20, 20, 3)
    assert data.steps_per_epoch == 3
