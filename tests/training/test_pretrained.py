"""A run is refused before it starts from weights that contradict its experiment."""

import jax
import numpy as np
import pytest

from experiments import bccd_r50_fpn
from frcnn_jax import models
from frcnn_jax.training import checkpoint, loop, pretrained
from frcnn_jax.weights import families
from frcnn_jax.weights import files as weight_files


def small(arg):
    """An experiment with a network of ten layers."""
    c = bccd_r50_fpn.get_config(arg)
    c.model.backbone.depth = 10
    return c


@pytest.fixture(scope="module")
def torchvisions(tmp_path_factory):
    """A ResNet-10 under torchvision's names, and our variables for it."""
    model = models.build_detector(num_classes=2, **small("").model.to_dict())
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    arrays = {"conv1.weight": np.ones((64, 3, 7, 7), np.float32)}

    def norm(name, channels):
        for kind in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{name}.{kind}"] = np.ones(channels, np.float32)

    norm("bn1", 64)
    before = 64
    for i, width in enumerate((64, 128, 256, 512), start=1):
        block = f"layer{i}.0"
        for j, channels in ((1, before), (2, width)):
            shape = (width, channels, 3, 3)
            arrays[f"{block}.conv{j}.weight"] = np.ones(shape, np.float32)
            norm(f"{block}.bn{j}", width)
        if i > 1:
            shape = (width, before, 1, 1)
            arrays[f"{block}.downsample.0.weight"] = np.ones(shape, np.float32)
            norm(f"{block}.downsample.1", width)
        before = width
    file = tmp_path_factory.mktemp("weights") / "r10.safetensors"
    weight_files.write_safetensors(file, arrays)
    return str(file), variables


def test_a_backbone_of_another_family_is_refused(torchvisions, caplog):
    file, variables = torchvisions
    c = small("").to_dict()
    c["model"]["backbone"]["pretrained"] = file
    with pytest.raises(ValueError, match="norm_eps: found 0.001, expected 1e-05"):
        loop.load_weights(variables, c, ("a", "b"), set_by_flag=())
    conventions = [leaf for leaf in families.BACKBONE if not leaf.endswith("bgr")]
    loop.load_weights(variables, c, ("a", "b"), set_by_flag=conventions)
    assert "set on purpose" in caplog.text


def test_a_backbone_that_fits_is_loaded(torchvisions):
    file, variables = torchvisions
    c = small("weights=timm").to_dict()
    c["model"]["backbone"]["pretrained"] = file
    loaded = loop.load_weights(variables, c, ("a", "b"), set_by_flag=())
    assert (loaded["params"]["backbone"]["conv1"]["kernel"] == 1).all()


def test_a_run_of_other_conventions_is_refused(torchvisions, monkeypatch):
    _, variables = torchvisions
    old, c = small("weights=timm"), small("").to_dict()
    c["init_from"] = "runs/old"
    meta = checkpoint.Meta(old, ("a", "b"), (1, 2), 0, {}, None)
    monkeypatch.setattr(checkpoint, "find", lambda path: path)
    monkeypatch.setattr(checkpoint, "read_meta", lambda path: meta)
    monkeypatch.setattr(checkpoint, "read_variables", lambda path: variables)
    with pytest.raises(ValueError, match="init_from=runs/old was trained with other"):
        loop.load_weights(variables, c, ("a", "b"), set_by_flag=())
    c = small("weights=timm").to_dict() | {"init_from": "runs/old"}
    loop.load_weights(variables, c, ("a", "b"), set_by_flag=())


def test_keras_own_file_is_recognised(shared):
    file = shared / "weights" / "resnet50_imagenet_keras_fp16.npz"
    assert families.families(file) == (families.KERAS,)
    config = bccd_r50_fpn.get_config().to_dict()
    pretrained.check_backbone(file, config, set_by_flag=())
    config = bccd_r50_fpn.get_config("weights=timm").to_dict()
    with pytest.raises(ValueError, match="a classifier of Keras"):
        pretrained.check_backbone(file, config, set_by_flag=())
