"""The family of a file is known, and only the experiment that fits it passes.

Names and shapes are torchvision's (golden) and those of Detectron2's zoo.
"""

import hashlib
import importlib
import json
import pathlib

import numpy as np
import pytest

from frcnn_jax.training import pretrained
from frcnn_jax.weights import detectron2, families
from tests.weights.test_detectron2 import EXTRA, ZOO, caffe2_name, zeros, zoo_shapes

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
NAMES = json.loads((GOLDENS / "torchvision_names.json").read_text())
EXPERIMENTS = [
    *("coco_r50_fpn", "coco_r50_fpn:x101", "coco_r50_c4", "coco_r50_dc5"),
    *("coco_r50_fpn_v1", "coco_r50_fpn_v1:eps=1e-5", "coco_r50_fpn_v2"),
    *("coco_mobilenet_v3", "bccd_r50_fpn", "bccd_r50_fpn:weights=timm"),
    *("voc07_vgg16", "voc07_vgg16:torchvision"),
]
V1 = NAMES["fasterrcnn_resnet50_fpn"]
MOBILENET = NAMES["fasterrcnn_mobilenet_v3_large_fpn"]
DETECTORS = {  # the file's names and shapes, and the experiments that fit
    # v1 and v2 differ in arrays (which the reader compares), and v2 in its epsilon.
    "v1": (V1, ["coco_r50_fpn_v1", "coco_r50_fpn_v1:eps=1e-5", "coco_r50_fpn_v2"]),
    "v2": (
        NAMES["fasterrcnn_resnet50_fpn_v2"],
        ["coco_r50_fpn_v1:eps=1e-5", "coco_r50_fpn_v2"],
    ),
    "mobilenet": (MOBILENET, ["coco_mobilenet_v3"]),
    "R50-FPN": (zoo_shapes(*ZOO["R50-FPN"][2:]), ["coco_r50_fpn"]),
    "R50-C4": (zoo_shapes(*ZOO["R50-C4"][2:]), ["coco_r50_c4"]),
    "R50-DC5": (zoo_shapes(*ZOO["R50-DC5"][2:]), ["coco_r50_dc5"]),
    "X101": (zoo_shapes(*ZOO["X101-32x8d-FPN"][2:]), ["coco_r50_fpn:x101"]),
}


def body(shapes, prefix="backbone.body."):
    return {
        name.removeprefix(prefix): shape
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }


def caffe2(zoo):
    shapes = body(zoo_shapes(*ZOO[zoo][2:]), "backbone.bottom_up.")
    return {caffe2_name(f"backbone.bottom_up.{n}"): s for n, s in shapes.items()}


def vgg(timm=False):
    extra = {"pre_logits.fc1.weight": (1, 1, 1, 1)} if timm else {}
    return {"features.0.weight": (64, 3, 3, 3), **extra}


KERAS, CAFFE = ["bccd_r50_fpn"], ["voc07_vgg16"]
MSRA = ["coco_r50_fpn", "coco_r50_c4", "coco_r50_dc5"]
FAIR = ["coco_r50_fpn:x101"]
TORCH = ["coco_r50_fpn_v1:eps=1e-5", "coco_r50_fpn_v2", "bccd_r50_fpn:weights=timm"]
V1_EPS_0, MOBILE = ["coco_r50_fpn_v1"], ["coco_mobilenet_v3"]
TORCH_VGG = ["voc07_vgg16:torchvision"]
BACKBONES = {  # names and shapes; experiments that fit; that are refused
    "ResNet": (body(V1), TORCH, KERAS + MSRA + V1_EPS_0 + CAFFE),
    "mobilenet": (
        {f"features.{name}": shape for name, shape in body(MOBILENET).items()},
        MOBILE,
        KERAS + MSRA + V1_EPS_0 + CAFFE,
    ),
    "MSRA": (caffe2("R50-FPN"), MSRA, KERAS + FAIR + TORCH + V1_EPS_0 + CAFFE),
    "FAIR": (caffe2("X101-32x8d-FPN"), FAIR, KERAS + MSRA + V1_EPS_0 + CAFFE),
    "Keras": ({"conv1/kernel": (7, 7, 3, 64)}, KERAS, MSRA + TORCH + V1_EPS_0 + CAFFE),
    "VGG": (vgg(), CAFFE + TORCH_VGG, KERAS + MSRA),
    "ConvNeXt": (
        {"features.0.0.weight": (96, 3, 4, 4), "features.1.0.layer_scale": (96, 1, 1)},
        ["coco_convnext_t_fpn"],
        KERAS + MSRA + CAFFE,
    ),
    "timm's ConvNeXt": (
        {
            "stem.0.weight": (96, 3, 4, 4),
            "stages.0.blocks.0.conv_dw.weight": (96, 1, 7, 7),
        },
        ["coco_convnext_t_fpn"],
        KERAS + MSRA + CAFFE,
    ),
    "Swin": (
        {"features.0.0.weight": (96, 3, 4, 4), "features.1.0.attn.qkv.weight": (9, 3)},
        ["coco_swin_t_fpn"],
        KERAS + MSRA + CAFFE,
    ),
    "timm's Swin": (
        {
            "patch_embed.proj.weight": (96, 3, 4, 4),
            "layers.0.blocks.0.attn.qkv.weight": (288, 96),
        },
        ["coco_swin_t_fpn"],
        KERAS + MSRA + CAFFE,
    ),
    "timm's VGG": (vgg(timm=True), TORCH_VGG, CAFFE + KERAS + MSRA),
}


def config_of(name):
    name, _, arg = name.partition(":")
    module = importlib.import_module(f"experiments.{name}")
    return module.get_config(arg).to_dict()


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes nothing but a name: the arrays are only looked at by name and shape."""
    path = tmp_path / "weights.npz"

    def write(shapes, **more):
        path.write_bytes(b"")
        arrays = {**zeros(shapes), **more}
        monkeypatch.setattr(families, "read_arrays", lambda _: arrays)
        return path

    return write


def passes(check, path, name, set_by_flag=()):
    try:
        check(path, config_of(name), set_by_flag=set_by_flag)
    except ValueError as error:
        assert "which the experiment contradicts" in str(error)
        return False
    return True


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_passes_under_its_own_experiment_alone(file, name):
    shapes, fitting = DETECTORS[name]
    path = file(shapes)
    found = [e for e in EXPERIMENTS if passes(pretrained.check_detector, path, e)]
    assert found == [e for e in EXPERIMENTS if e in fitting]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_passes_where_pixels_stride_and_epsilon_agree(file, name):
    shapes, fitting, refused = BACKBONES[name]
    path = file(shapes)
    for experiment in fitting + refused:
        fits = passes(pretrained.check_backbone, path, experiment)
        assert fits == (experiment in fitting), experiment


@pytest.mark.parametrize("name", [*DETECTORS, *BACKBONES])
def test_the_experiment_that_the_error_names_fits(file, name):
    path = file({**DETECTORS, **BACKBONES}[name][0])
    check = (
        pretrained.check_detector if name in DETECTORS else pretrained.check_backbone
    )
    for family in families.families(path):
        experiment = family.experiment.split()[0]
        experiment = experiment.removeprefix("experiments/").replace(".py", "")
        assert passes(check, path, experiment)


def test_the_error_lists_leaves_found_and_expected(file):
    path = file(V1)
    with pytest.raises(ValueError) as caught:
        pretrained.check_detector(path, config_of("coco_r50_fpn"), set_by_flag=())
    text = str(caught.value)
    assert "weights.npz is of the family torchvision's R50-FPN (v1)" in text
    assert "use --config=experiments/coco_r50_fpn_v1.py" in text
    for line in (
        "model.pixel_std: found (1.0, 1.0, 1.0), expected (58.395, 57.12, 57.375)",
        "model.backbone.stride_in_1x1: found True, expected False",
        "model.anchors.rounding: found 'none', expected 'torchvision'",
        "model.roi_align.aligned: found True, expected False",
        "model.roi_align.sampling_ratio: found 0, expected 2",
    ):
        assert line in text
    assert "score" not in text and "nms" not in text


def test_a_leaf_set_by_flag_is_a_warning(file, caplog):
    config = config_of("coco_r50_fpn_v1")
    config["model"]["anchors"]["sizes"] = (16.0, 32.0, 64.0, 128.0, 256.0)
    config["postprocess"]["score"] = 0.3
    path, leaf = file(V1), "model.anchors.sizes"
    with pytest.raises(ValueError, match=f"contradicts: {leaf}: found .16.0"):
        pretrained.check_detector(path, config, set_by_flag=())
    pretrained.check_detector(path, config, set_by_flag=[leaf])
    pretrained.check_detector(path, config, set_by_flag=[f"{leaf}[0]"])
    assert f"set on purpose: {leaf}: found (16.0" in caplog.text


def test_pixels_that_the_file_holds_decide(file):
    """Detectron2 writes them as BGR; a network trained on scaled pixels says so."""
    pixels = {"pixel_std": np.array([57.375, 57.12, 58.395]).reshape(3, 1, 1)}
    path = file(DETECTORS["R50-FPN"][0], **pixels)
    with pytest.raises(ValueError, match=r"pixel_std: found .*expected \(58.395, 57"):
        pretrained.check_detector(path, config_of("coco_r50_fpn"), set_by_flag=())
    pixels = {"pixel_mean": np.array([103.53, 116.28, 123.675]).reshape(3, 1, 1)}
    path = file(DETECTORS["R50-FPN"][0], **pixels)
    pretrained.check_detector(path, config_of("coco_r50_fpn"), set_by_flag=())
    path = file(zoo_shapes(*ZOO["R50-FPN"][2:]) | EXTRA)  # zeros say nothing
    pretrained.check_detector(path, config_of("coco_r50_fpn"), set_by_flag=())


def test_the_published_weights_of_v1_have_no_epsilon(file, monkeypatch):
    path = file(V1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(families, "V1_WITHOUT_EPSILON", (digest[:8],))
    assert passes(pretrained.check_detector, path, "coco_r50_fpn_v1")
    assert not passes(pretrained.check_detector, path, "coco_r50_fpn_v1:eps=1e-5")


def test_torchvision_converted_by_detectron2_stays_rgb(file):
    shapes = body(zoo_shapes(*ZOO["R50-FPN"][2:]), "backbone.bottom_up.")
    conv1 = np.arange(64 * 3 * 49, dtype=np.float32).reshape(64, 3, 7, 7)
    arrays = {**zeros(shapes), "stem.conv1.weight": conv1}
    turned = detectron2.to_torchvision(arrays)[0]["backbone.body.conv1.weight"]
    np.testing.assert_array_equal(turned, conv1[:, ::-1])
    arrays["stem.fc.weight"] = np.zeros((1000, 2048), np.float32)
    kept = detectron2.to_torchvision(arrays)[0]["backbone.body.conv1.weight"]
    np.testing.assert_array_equal(kept, conv1)
    path = file({n: a.shape for n, a in arrays.items()})
    assert passes(pretrained.check_backbone, path, "bccd_r50_fpn:weights=timm")
    assert not passes(pretrained.check_backbone, path, "coco_r50_fpn")


def test_detectrons_own_detector_needs_unaligned_rois(file):
    names = {caffe2_name(n): s for n, s in DETECTORS["R50-FPN"][0].items()}
    path = file(names)
    with pytest.raises(ValueError, match="aligned: found True, expected False"):
        pretrained.check_detector(path, config_of("coco_r50_fpn"), set_by_flag=())
    config = config_of("coco_r50_fpn")
    config["model"]["roi_align"]["aligned"] = False
    pretrained.check_detector(path, config, set_by_flag=())


def test_arrays_of_nobody_known_pass(file):
    path = file({"my.layer": (3, 3)})
    assert families.families(path) == ()
    assert all(passes(pretrained.check_backbone, path, e) for e in EXPERIMENTS)


def test_a_run_is_compared_with_its_own_configuration(caplog):
    """Pixels, stride and epsilon must agree; anchors may be changed on purpose."""
    old, new = config_of("coco_r50_fpn"), config_of("bccd_r50_fpn")
    with pytest.raises(ValueError) as caught:
        pretrained.check_run("runs/a", old, new, set_by_flag=())
    text = str(caught.value)
    assert "init_from=runs/a" in text
    assert "model.backbone.norm_eps: found 0.001, expected 1e-05" in text
    assert "model.anchors" not in text
    same = config_of("coco_r50_fpn")
    pretrained.check_run("runs/a", old, same, set_by_flag=())
    assert not caplog.records[1:]
    caplog.clear()
    same["model"]["anchors"] = dict(sizes=(8.0, 16.0, 32.0, 64.0, 128.0))
    pretrained.check_run("runs/a", old, same, set_by_flag=())
    assert "model.anchors.sizes: found (8.0" in caplog.text
    pretrained.check_run(
        "runs/a",
        old,
        new,
        set_by_flag=("model.pixel_mean", "model.backbone.norm_eps"),
    )
