"""Files of Cascade R-CNN: every name of three box heads has its place, by value.

No such file is at hand: the names follow the modules of Detectron2's
`CascadeROIHeads` (`box_head.0.fc1`, `box_predictor.0.bbox_pred` of four rows) and of
MMDetection's `CascadeRoIHead` (`bbox_head.0.fc_reg`), the shapes those of the networks.
"""

import importlib

import jax
import numpy as np
import pytest

from frcnn_jax.training import config as configs
from frcnn_jax.weights import cascade, families, torchvision, tree
from tests.training import small
from tests.weights import test_detectron2, test_mmdetection
from tests.weights.pth import write_pth
from tests.weights.test_detectron2 import biased, variables_of, zeros, zoo_shapes

HEADS = {
    "detectron2": (
        *("roi_heads.box_head.fc1", "roi_heads.box_head.fc2"),
        *("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"),
    ),
    "mmdetection": (
        *("roi_head.bbox_head.shared_fcs.0", "roi_head.bbox_head.shared_fcs.1"),
        *("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"),
    ),
}


def numbered(name, stage):
    """`roi_heads.box_head.fc1` -> `roi_heads.box_head.0.fc1`."""
    a, b, rest = name.split(".", 2)
    return f"{a}.{b}.{stage}.{rest}"


def shapes_of_three(family, inputs, hidden, last, classes):
    fc1, fc2, score, box = HEADS[family]
    shapes = {}
    for stage in range(3):
        shapes |= biased(numbered(fc1, stage), hidden, inputs)
        shapes |= biased(numbered(fc2, stage), last, hidden)
        shapes |= biased(numbered(score, stage), classes + 1, last)
        shapes |= biased(numbered(box, stage), 4, last)
    return shapes


@pytest.fixture(scope="module", params=["detectron2", "mmdetection"])
def file(request, tmp_path_factory):
    """A small model of three box heads, the arrays of its file, and the file."""
    folder = tmp_path_factory.mktemp("cascade")
    module = {"detectron2": test_detectron2, "mmdetection": test_mmdetection}
    _, arrays = module[request.param].small.__wrapped__()
    arrays = {n: a for n, a in arrays.items() if not n.startswith("roi_head")}
    rng = np.random.default_rng(1)
    for name, shape in shapes_of_three(request.param, 196, 5, 6, 2).items():
        arrays[name] = np.asarray(rng.normal(size=shape), np.float32)
    variables = variables_of(2, **module[request.param].SMALL, stages=3)
    if request.param == "detectron2":
        arrays["roi_heads.mask_head.deconv.weight"] = np.zeros((2, 2), np.float32)
        return (
            *HEADS["detectron2"],
            variables,
            arrays,
            test_detectron2.write(folder / "x.pkl", arrays),
        )
    arrays["roi_head.mask_head.1.convs.0.conv.weight"] = np.zeros((2, 2), np.float32)
    path = write_pth(folder / "x_fpn_1x_.pth", {"state_dict": arrays, "meta": {}})
    return *HEADS["mmdetection"], variables, arrays, path


def test_values_of_every_stage(file):
    fc1, fc2, score, box, variables, arrays, path = file
    loaded, report = torchvision.load_detector(path, variables)
    params = loaded["params"]
    jax.tree.map(
        lambda a, b: np.testing.assert_equal(a.shape, b.shape), loaded, variables
    )
    for stage in range(3):
        head = params["box_head"][f"stages_{stage}"]
        get = lambda name, s=stage: arrays[numbered(name, s) + ".weight"]  # noqa: E731
        found = head["class_logits"]["kernel"].T
        np.testing.assert_array_equal(found, get(score)[[2, 0, 1]])
        np.testing.assert_array_equal(head["class_deltas"]["kernel"].T, get(box))
        np.testing.assert_array_equal(head["fc2"]["kernel"].T, get(fc2))
        channel, y, x = 3, 5, 2
        kernel = head["fc1"]["kernel"]
        expected = get(fc1)[1, channel * 49 + y * 7 + x]
        assert expected == kernel[(y * 7 + x) * 4 + channel, 1]
    # Every array is named once, the mask branch as what is left out.
    assert len(report) == len(arrays) == len(set(report))
    assert sum("ignored" in line and "mask_head" in line for line in report) == 1


def test_classes_are_chosen_and_the_one_box_stays(file):
    *_, variables, arrays, path = file
    one = variables_of(1, **test_detectron2.SMALL, stages=3)
    loaded, _ = torchvision.load_detector(path, one, classes=[2])
    whole, _ = torchvision.load_detector(path, variables)
    for head, full in zip(
        loaded["params"]["box_head"].values(),
        whole["params"]["box_head"].values(),
        strict=True,
    ):
        kernel = full["class_logits"]["kernel"]
        np.testing.assert_array_equal(head["class_logits"]["kernel"], kernel[:, [0, 2]])
        small.assert_trees_equal(head["class_deltas"], full["class_deltas"])
    assert torchvision.count_classes(path) == 2


def test_a_model_of_another_number_of_heads_is_refused(file):
    *_, path = file
    plain = variables_of(2, **test_detectron2.SMALL)
    with pytest.raises(ValueError, match="3 box heads, the model 1.*coco_cascade"):
        torchvision.load_detector(path, plain)
    two = variables_of(2, **test_detectron2.SMALL, stages=2)
    with pytest.raises(ValueError, match="3 box heads, the model 2"):
        torchvision.load_detector(path, two)


@pytest.mark.parametrize("arg", ["", "schedule=3x"])
def test_every_array_of_detectron2s_file_has_its_place(arg):
    """Its Cascade Mask R50-FPN, both ways: nothing is left, nothing is missing."""
    module = importlib.import_module("experiments.coco_cascade_r50_fpn")
    variables = variables_of(**module.get_config(arg).model.to_dict())
    plain = zoo_shapes(50, 64, 1, "FPN")
    shapes = {n: s for n, s in plain.items() if ".box_" not in n}
    shapes |= shapes_of_three("detectron2", 49 * 256, 1024, 1024, 80)
    arrays = zeros(shapes)
    assert cascade.stages(arrays) == 3 and len(arrays) == len(plain) + 16
    used = 0
    for stage in range(3):
        params = variables["params"]
        part = {**params, "box_head": params["box_head"][f"stages_{stage}"]}
        model = tree.flatten({**variables, "params": part})
        one = cascade.single(arrays, stage)
        found, _, ignored = torchvision.detectron2.to_torchvision(one)
        places = torchvision.places(model)
        assert not ignored and {p.name for p in places.values()} == set(found)
        used += len(one)
    assert used == 3 * len(plain)


def test_torchvisions_heads_of_convolutions_are_no_stages():
    names = (
        "box_head.0.0.weight",
        "box_head.5.weight",
        "box_predictor.cls_score.weight",
    )
    assert cascade.stages({f"roi_heads.{n}": np.zeros(1) for n in names}) == 0


def test_a_file_is_compared_with_the_experiment(file):
    *_, path = file
    (family,) = families.families(path)
    name, _, arg = family.experiment.partition(":")
    module = configs.load_experiment(name)
    leaves = configs.leaves(module.get_config(arg).to_dict())
    assert "Cascade" in family.name
    assert not families.contradictions(family, leaves)
    other = module.get_config("" if arg else "mmdetection")
    wrong = families.contradictions(family, configs.leaves(other.to_dict()))
    assert {"cascade.stds", "postprocess.stds"} <= set(wrong)
