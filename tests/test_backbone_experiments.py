"""The experiments of ConvNeXt, Swin and ViT: rates by layer, and their cascades."""

import jax
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.training.optimizer import path_name, scale_by_layer
from tests.test_experiments import get_config


@pytest.mark.parametrize(
    "name, arg",
    [
        ("coco_convnext_t_fpn.py", None),
        ("coco_convnext_t_fpn.py", "size=b,cascade"),
        ("coco_vitdet_b.py", None),
    ],
)
def test_rates_by_layer_name_every_parameter_of_the_backbone_once(name, arg):
    """But for the norms of ConvNeXt's outputs, which no classifier has."""
    c = get_config(name, arg)
    model = models.build_backbone(**c["model"]["backbone"])
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rates = jax.tree.map(lambda x: np.ones((), np.float32), {"backbone": params})
    layers, decay = c["optimizer"]["layers"], c["optimizer"]["layer_decay"]
    update = scale_by_layer(layers, decay)
    rates, _ = update.update(rates, update.init(rates))
    prefixes = [prefix for layer in layers for prefix in layer]
    for path, rate in jax.tree_util.tree_leaves_with_path(rates):
        found = [p for p in prefixes if (path_name(path) + "/").startswith(p + "/")]
        assert len(found) == ("out_norm" not in path_name(path)), path
        assert (rate < 1) == bool(found)
    found = sorted({float(x) for x in jax.tree.leaves(rates)} - {1.0})
    assert found == pytest.approx([decay**i for i in range(len(layers), 0, -1)])


def test_cascades_of_the_newest_backbones_are_those_of_the_peers():
    convnext, swin, vitdet, plain = (
        get_config(f"coco_{name}.py", arg)
        for name, arg in (
            ("convnext_t_fpn", "cascade"),
            ("swin_t_fpn", "cascade,schedule=3x"),
            ("vitdet_b", "cascade"),
            ("vitdet_b", None),
        )
    )
    for c in (convnext, swin):  # 1, 1/2, 1/4 times GIoU's 10
        assert [c["loss_weights"][f"roi_box_{i}"] for i in (1, 2, 3)] == [10, 5, 2.5]
        assert c["roi_box_loss"]["name"] == "giou" and "beta" not in c["detector_loss"]
        assert c["proposals"]["train"]["post_nms"] == 2000
    optimizer = convnext["optimizer"]
    assert (optimizer["learning_rate"], optimizer["layer_decay"]) == (2e-4, 0.7)
    assert swin["total_steps"] == 36 * 7329
    assert vitdet["cascade"]["feature_gradient"] == pytest.approx(1 / 3)
    assert vitdet["postprocess"]["stds"] == (1 / 30, 1 / 30, 1 / 15, 1 / 15)
    same = ("optimizer", "proposals", "data", "total_steps", "roi_targets")
    assert all(vitdet[group] == plain[group] for group in same)
