"""MMDetection: names and shapes from its published scheme, values one by one.

No file of its zoo is at hand: the names below follow its modules (`rpn_head.rpn_conv`,
`neck.fpn_convs`, `roi_head.bbox_head.shared_fcs`), the shapes those of the networks.
"""

import json
import pathlib
import pickle
import sys
import types
import zipfile

import jax
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.training import config as configs
from frcnn_jax.training import trained
from frcnn_jax.weights import families, files, mmdetection, torchvision, tree, zoo
from tests.weights.pth import write_pth

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
ZOO = {  # settings: depth, groups, width of a group, kind
    "r50_fpn": (50, 1, 64, "FPN"),
    "r101_fpn": (101, 1, 64, "FPN"),
    "x101_32x4d_fpn": (101, 32, 4, "FPN"),
    "x101_64x4d_fpn": (101, 64, 4, "FPN"),
    "r50_caffe_fpn": (50, 1, 64, "FPN"),
    "r101_caffe_fpn": (101, 1, 64, "FPN"),
    "r50_caffe_c4": (50, 1, 64, "C4"),
    "r50_caffe_dc5": (50, 1, 64, "DC5"),
}
CONFIG = {  # a line of the text that a file carries
    True: "img_norm_cfg = dict(\n    mean=[103.53, 116.28, 123.675], "
    "std=[1.0, 1.0, 1.0], to_rgb=False)",
    False: "img_norm_cfg = dict(\n    mean=[123.675, 116.28, 103.53], "
    "std=[58.395, 57.12, 57.375], to_rgb=True)",
}


def norm(name, c):
    kinds = ("weight", "bias", "running_mean", "running_var")
    shapes = {f"{name}.{kind}": (c,) for kind in kinds}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def biased(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def stage(at, s, depth, groups, width, out=256, x=None):
    """`layer1` to `layer4` of bottlenecks."""
    shapes, wide = {}, groups * width * 2 ** (s - 1)
    out = out * 2 ** (s - 1)
    for i in range(BLOCKS[depth][s - 1]):
        block, x = f"{at}layer{s}.{i}", out if i else (64 if s == 1 else out // 2)
        if i == 0:
            shapes |= {f"{block}.downsample.0.weight": (out, x, 1, 1)}
            shapes |= norm(f"{block}.downsample.1", out)
        for n, (o, c, k) in enumerate(
            ((wide, x, 1), (wide, wide // groups, 3), (out, wide, 1)), start=1
        ):
            shapes |= {f"{block}.conv{n}.weight": (o, c, k, k)}
            shapes |= norm(f"{block}.bn{n}", o)
    return shapes


def zoo_shapes(depth, groups, width, kind):
    shapes = {"backbone.conv1.weight": (64, 3, 7, 7), **norm("backbone.bn1", 64)}
    for s in (1, 2, 3) if kind == "C4" else (1, 2, 3, 4):
        shapes |= stage("backbone.", s, depth, groups, width)
    c, k = {"C4": (1024, 15), "DC5": (2048, 15), "FPN": (256, 3)}[kind]
    if kind == "FPN":
        for i in range(4):
            shapes |= biased(f"neck.lateral_convs.{i}.conv", 256, 256 * 2**i, 1, 1)
            shapes |= biased(f"neck.fpn_convs.{i}.conv", 256, 256, 3, 3)
    shapes |= biased("rpn_head.rpn_conv", c, c, 3, 3)
    shapes |= biased("rpn_head.rpn_cls", k, c, 1, 1)
    shapes |= biased("rpn_head.rpn_reg", 4 * k, c, 1, 1)
    if kind == "C4":
        shapes |= stage("roi_head.shared_head.", 4, depth, groups, width)
    else:
        shapes |= biased("roi_head.bbox_head.shared_fcs.0", 1024, 49 * c)
        shapes |= biased("roi_head.bbox_head.shared_fcs.1", 1024, 1024)
    last = 2048 if kind == "C4" else 1024
    shapes |= biased("roi_head.bbox_head.fc_cls", 81, last)
    return shapes | biased("roi_head.bbox_head.fc_reg", 320, last)


def variables_of(num_classes=80, **parts):
    model = models.build_detector(num_classes=num_classes, **parts)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def leaves_of(settings):
    config = configs.from_json(zoo.settings(settings)).to_dict()
    return configs.leaves(
        {**config, "model": models.build.with_defaults(config["model"])}
    )


SLOW = [
    name
    if name in ("r50_fpn", "r50_caffe_c4")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in ZOO
]


@pytest.mark.parametrize("name", SLOW)
def test_every_array_of_the_zoo_has_its_place_and_its_configuration(name, monkeypatch):
    caffe = "caffe" in name
    arrays = {
        n: np.broadcast_to(np.float32(0), s) for n, s in zoo_shapes(*ZOO[name]).items()
    }
    assert mmdetection.recognises(arrays)
    found, _, ignored = mmdetection.to_torchvision(arrays, bgr=caffe)
    assert all(n.endswith("num_batches_tracked") for n in ignored)
    config = configs.from_json(zoo.settings(f"mmdetection_{name}")).to_dict()
    model = tree.flatten(variables_of(**config["model"]))
    places = torchvision.places(model)
    assert {place.name for place in places.values()} == set(found)
    for key, (name_there, layout) in places.items():
        if found[name_there].size < 5e6:
            value = torchvision._from_torch(found[name_there], layout, model, None)
            assert value.shape == model[key].shape, name_there
    notes = {"meta": {"config": CONFIG[caffe]}}
    monkeypatch.setattr(families, "read_notes", lambda path: notes)
    family = families._mmdetection(pathlib.Path("x.pth"), arrays)
    assert family.settings == f"mmdetection_{name}"
    assert families.contradictions(family, leaves_of(f"mmdetection_{name}")) == {}
    other = "mmdetection_r50_fpn" if caffe else "mmdetection_r50_caffe_fpn"
    wrong = families.contradictions(family, leaves_of(other))
    assert {"model.pixel_std", "model.backbone.stride_in_1x1"} <= set(wrong)


SMALL = dict(
    backbone=dict(name="resnet", depth=10),
    fpn=dict(channels=4),
    rpn=dict(channels=4),
    box_head=dict(widths=(5, 6)),
)


@pytest.fixture(scope="module")
def small():
    """A model, and the arrays of its file in the scheme of MMDetection."""
    rng = np.random.default_rng(0)
    shapes = {"backbone.conv1.weight": (64, 3, 7, 7), **norm("backbone.bn1", 64)}
    for s in (1, 2, 3, 4):
        block, c = f"backbone.layer{s}.0", 32 * 2**s
        x = 64 if s == 1 else c // 2
        if s > 1:
            shapes |= {f"{block}.downsample.0.weight": (c, x, 1, 1)}
            shapes |= norm(f"{block}.downsample.1", c)
        shapes |= {f"{block}.conv1.weight": (c, x, 3, 3), **norm(f"{block}.bn1", c)}
        shapes |= {f"{block}.conv2.weight": (c, c, 3, 3), **norm(f"{block}.bn2", c)}
        shapes |= biased(f"neck.lateral_convs.{s - 1}.conv", 4, c, 1, 1)
        shapes |= biased(f"neck.fpn_convs.{s - 1}.conv", 4, 4, 3, 3)
    shapes |= biased("rpn_head.rpn_conv", 4, 4, 3, 3)
    shapes |= biased("rpn_head.rpn_cls", 3, 4, 1, 1)
    shapes |= biased("rpn_head.rpn_reg", 12, 4, 1, 1)
    shapes |= biased("roi_head.bbox_head.shared_fcs.0", 5, 196)
    shapes |= biased("roi_head.bbox_head.shared_fcs.1", 6, 5)
    shapes |= biased("roi_head.bbox_head.fc_cls", 3, 6)
    shapes |= biased("roi_head.bbox_head.fc_reg", 8, 6)
    shapes |= biased("roi_head.mask_head.convs.0.conv", 4, 4, 3, 3)
    arrays = {n: np.asarray(rng.normal(size=s), np.float32) for n, s in shapes.items()}
    return variables_of(2, **SMALL), arrays


@pytest.mark.parametrize("caffe", [False, True])
def test_values_of_a_detector(small, tmp_path, caffe):
    variables, arrays = small
    meta = {"config": CONFIG[caffe], "CLASSES": ("cat", "dog"), "epoch": 12}
    file = write_pth(tmp_path / "x.pth", {"state_dict": arrays, "meta": meta})
    loaded, report = torchvision.load_detector(file, variables)
    assert len(report) == len(arrays)
    params, stats = loaded["params"], loaded["batch_stats"]
    conv1 = arrays["backbone.conv1.weight"].transpose(2, 3, 1, 0)
    found = params["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(found, conv1[:, :, ::-1] if caffe else conv1)
    var = stats["backbone"]["layer2"]["block0"]["shortcut_bn"]["var"]
    expected = arrays["backbone.layer2.0.downsample.1.running_var"]
    np.testing.assert_array_equal(var, expected)
    lateral = params["fpn"]["lateral32"]["bias"]
    np.testing.assert_array_equal(lateral, arrays["neck.lateral_convs.3.conv.bias"])
    head, of = params["box_head"], "roi_head.bbox_head"
    score, box = arrays[f"{of}.fc_cls.weight"], arrays[f"{of}.fc_reg.weight"]
    # Classes 0 and 1, background 2 there; background 0, classes 1 and 2 here.
    np.testing.assert_array_equal(head["class_logits"]["kernel"].T, score[[2, 0, 1]])
    np.testing.assert_array_equal(head["class_deltas"]["kernel"].T, box)
    lines = "\n".join(report)
    assert "fc_cls.weight (background from last to first) (3, 6) -> " in lines
    assert "ignored roi_head.mask_head.convs.0.conv.weight" in lines
    assert ("conv1.weight (BGR to RGB)" in lines) == caffe
    rows, names, ids = trained.rows_and_classes(file)
    assert (rows, names, ids) == ((1, 2), ("cat", "dog"), (1, 2))


def test_a_file_of_the_first_version_is_refused(small, tmp_path):
    variables, arrays = small
    old = {n.removeprefix("roi_head."): a for n, a in arrays.items()}
    file = write_pth(tmp_path / "x.pth", {"state_dict": old, "meta": {}})
    with pytest.raises(ValueError, match="x.pth: it is a file of MMDetection 1"):
        torchvision.load_detector(file, variables)


@pytest.mark.parametrize(
    "name, notes, bgr, warned",
    [
        ("x.pth", {"meta": {"config": CONFIG[True]}}, True, False),
        ("caffe.pth", {"meta": {"config": CONFIG[False]}}, False, False),
        ("x.pth", {"meta": {"cfg": "data_preprocessor=dict(bgr_to_rgb=True"}}, 0, 0),
        ("faster_rcnn_r50_caffe_fpn_1x_coco.pth", {}, True, False),
        ("faster_rcnn_r50_fpn_1x_coco.pth", {"meta": 3}, False, False),
        ("x.pth", {}, False, True),
    ],
)
def test_the_order_of_channels_is_found(caplog, name, notes, bgr, warned):
    assert mmdetection.is_bgr(name, notes) == bgr
    assert ("does not say if its network reads BGR" in caplog.text) == warned


def test_pixels_and_classes_of_a_file():
    assert mmdetection.pixels({"meta": {"config": CONFIG[True]}}, bgr=True) == {
        "pixel_mean": (123.675, 116.28, 103.53),
        "pixel_std": (1.0, 1.0, 1.0),
    }
    assert mmdetection.pixels({}, bgr=False) == {}
    third = {"meta": {"dataset_meta": {"classes": ["a", "b"]}}}
    assert mmdetection.classes(third) == ("a", "b")
    for odd in ({}, {"meta": 1}, {"meta": {"CLASSES": 3, "dataset_meta": [1]}}):
        assert mmdetection.classes(odd) == ()


def test_notes_are_texts_and_numbers(tmp_path):
    meta = {"config": "text", "CLASSES": ("a",), "epoch": 12}
    tree = {"state_dict": {"a": np.float32([1])}, "meta": meta, "optimizer": {}}
    assert files.read_notes(write_pth(tmp_path / "x.pth", tree)) == {"meta": meta}
    np.savez(tmp_path / "x.npz", a=1)
    assert files.read_notes(tmp_path / "x.npz") == {}
    assert json.dumps(meta)


class HistoryBuffer:
    """Pickled as MMEngine's, with a history and functions of the class."""

    def least(self):
        pass

    def __init__(self):
        self.values, self.how = np.zeros(3), {"min": HistoryBuffer.least}


def test_the_history_of_a_run_is_passed_over_and_not_called(tmp_path, monkeypatch):
    name = "mmengine.logging.history_buffer"
    module = types.ModuleType(name)
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setattr(HistoryBuffer, "__module__", name)
    monkeypatch.setattr(HistoryBuffer.least, "__module__", name)
    monkeypatch.setattr(HistoryBuffer.least, "__qualname__", "HistoryBuffer.least")
    for parent in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    hub = pickle.dumps({"loss": HistoryBuffer()}, 2)
    assert b"getattr" in hub
    first = write_pth(tmp_path / "x.pth", {"state_dict": {"a": np.float32([1])}})
    with zipfile.ZipFile(first) as archive:
        tensors, numbers = (archive.read(f"x/{n}") for n in ("data.pkl", "data/0"))
    # {"hub": ..., and the rest}: the two pickles as items of one dict.
    both = b"\x80\x02}X\x03\x00\x00\x00hub" + hub[2:-1] + b"s"
    both += b"X\x01\x00\x00\x00m" + tensors[2:-1] + b"s."
    with zipfile.ZipFile(tmp_path / "y.pth", "w") as archive:
        archive.writestr("x/data.pkl", both)
        archive.writestr("x/data/0", numbers)
    notes = files.read_notes(tmp_path / "y.pth")
    assert type(notes["hub"]["loss"]).__name__ == "_Inert"
