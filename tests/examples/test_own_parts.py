"""Own backbone, own data set, own COCO folder: each in one file, each trains."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import finetune_coco, my_backbone, my_dataset
from frcnn_jax.data import images
from frcnn_jax.models.checks import check_extent
from frcnn_jax.training import checkpoint
from frcnn_jax.training.loop import train_and_evaluate
from tests.training import small

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one step with the example's backbone."""
    config = small.config(total_steps=1, eval_every=1, checkpoint_every=1)
    config.model["backbone"] = dict(name="examples.my_backbone", widths=(8, 8))
    path = tmp_path_factory.mktemp("run")
    train_and_evaluate(config, path)
    return path


@pytest.mark.slow
def test_fine_tuning_keeps_the_network_and_takes_the_folders_classes(trained, tmp_path):
    finetune_coco.make_folder(str(tmp_path / "coco"), train=4, val=2, size=64)
    finetune_coco.main(str(trained), str(tmp_path / "coco"), str(tmp_path / "run"), 1)
    meta = checkpoint.read_meta(checkpoint.find(tmp_path / "run"))
    assert meta.classes == ("box", "ball") and meta.category_ids == (3, 7)
    assert meta.config.model.backbone.name == "examples.my_backbone"
    before, after = (
        checkpoint.read_variables(checkpoint.find(path))["params"]["backbone"]
        for path in (trained, tmp_path / "run")
    )
    for name, layer in before.items():  # one step from where it was, not drawn anew
        for leaf, value in layer.items():
            np.testing.assert_allclose(after[name][leaf], value, atol=0.05)


def test_backbone_keeps_its_contract():
    backbone = my_backbone.Backbone(widths=(8, 16))
    images = jnp.zeros((1, 64, 48, 3))
    features = jax.eval_shape(backbone.init_with_output, jax.random.key(0), images)[0]
    assert {s: f.shape for s, f in features.items()} == {
        4: (1, 16, 12, 8),
        8: (1, 8, 6, 16),
    }
    check_extent(backbone, size=(32, 48), gradients=False)


def test_folder_is_what_the_pictures_show(tmp_path):
    finetune_coco.make_folder(str(tmp_path), train=3, val=1, size=64)
    file = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    assert {c["name"] for c in content["categories"]} == {"ball", "box"}
    for entry in content["images"]:
        picture = images.load_image(str(tmp_path / "train" / entry["file_name"]))
        assert picture.shape == (64, 64, 3)
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        assert 0 <= x < x + w <= 64 and 0 <= y < y + h <= 64


def write(folder, **files):
    picture = np.zeros((40, 60, 3), np.uint8)
    images.save_image(folder / "photos" / "a.png", picture)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)


def test_own_format_is_read(tmp_path):
    write(
        tmp_path,
        classes="cat\ndog\n",
        train="photos/a.png 1,2,30,20,dog 5,5,9,80,cat\n",
        val="photos/a.png\n",
    )
    source = my_dataset.load(split="train", root=str(tmp_path))
    assert source.classes == ("cat", "dog")
    np.testing.assert_array_equal(source[0].boxes, [[1, 2, 30, 20], [5, 5, 9, 40]])
    np.testing.assert_array_equal(source[0].classes, [2, 1])
    assert len(source.report) == 1 and "clipped" in source.report[0]
    assert my_dataset.load(split="val", root=str(tmp_path))[0].boxes.shape == (0, 4)
    done = subprocess.run(
        [sys.executable, "-m", "examples.my_dataset", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "train: 1 images, 2 boxes of ('cat', 'dog')" in done.stdout


@pytest.mark.parametrize(
    "item, said", [("1,2,3,dog", "train.txt:1"), ("1,2,9,9,cow", "'cow'")]
)
def test_own_format_names_what_is_wrong(tmp_path, item, said):
    write(tmp_path, classes="cat\ndog", train=f"photos/a.png {item}\n")
    with pytest.raises(ValueError, match=said):
        my_dataset.load(split="train", root=str(tmp_path))
