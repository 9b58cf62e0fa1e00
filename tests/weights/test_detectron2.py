"""Detectron2's zoo: names and shapes from its published scheme, values one by one.

No file of the zoo is at hand: the names below follow its modules (`res2.0.conv1.norm`,
`fpn_lateral2`, `rpn_head.anchor_deltas`, ...), the shapes those of the networks.
"""

import importlib
import pickle

import jax
import numpy as np
import pytest

from frcnn_jax import models, weights
from frcnn_jax.weights import detectron2, torchvision, tree

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
ZOO = {  # file: our experiment, its argument, depth, groups x width, kind
    "R50-C4": ("coco_r50_c4", "", 50, 64, 1, "C4"),
    "R50-DC5": ("coco_r50_dc5", "", 50, 64, 1, "DC5"),
    "R50-FPN": ("coco_r50_fpn", "", 50, 64, 1, "FPN"),
    "R101-FPN": ("coco_r50_fpn", "depth=101", 101, 64, 1, "FPN"),
    "X101-32x8d-FPN": ("coco_r50_fpn", "x101", 101, 256, 32, "FPN"),
}


def norm(name, c):
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.norm.{kind}": (c,) for kind in kinds}


def conv(name, o, i, k):
    return {f"{name}.weight": (o, i, k, k), **norm(name, o)}


def biased(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def resnet(at, depth, width, groups, stages=(2, 3, 4, 5)):
    """`res2` to `res5` of bottlenecks."""
    shapes = {}
    for s in stages:
        w, out, before = width * 2 ** (s - 2), 256 * 2 ** (s - 2), 128 * 2 ** (s - 2)
        for i in range(BLOCKS[depth][s - 2]):
            block, x = f"{at}res{s}.{i}", out if i else (64 if s == 2 else before)
            if i == 0:
                shapes |= conv(f"{block}.shortcut", out, x, 1)
            shapes |= conv(f"{block}.conv1", w, x, 1)
            shapes |= conv(f"{block}.conv2", w, w // groups, 3)
            shapes |= conv(f"{block}.conv3", out, w, 1)
    return shapes


def zoo_shapes(depth, width, groups, kind):
    rpn, roi = "proposal_generator.rpn_head", "roi_heads."
    at = "backbone.bottom_up." if kind == "FPN" else "backbone."
    stages = (2, 3, 4) if kind == "C4" else (2, 3, 4, 5)
    shapes = conv(f"{at}stem.conv1", 64, 3, 7)
    shapes |= resnet(at, depth, width, groups, stages)
    c, k = {"C4": (1024, 15), "DC5": (2048, 15), "FPN": (256, 3)}[kind]
    if kind == "FPN":
        for s in (2, 3, 4, 5):
            shapes |= biased(f"backbone.fpn_lateral{s}", 256, 2 ** (s + 6), 1, 1)
            shapes |= biased(f"backbone.fpn_output{s}", 256, 256, 3, 3)
    shapes |= biased(f"{rpn}.conv", c, c, 3, 3)
    shapes |= biased(f"{rpn}.objectness_logits", k, c, 1, 1)
    shapes |= biased(f"{rpn}.anchor_deltas", 4 * k, c, 1, 1)
    if kind == "C4":
        shapes |= resnet(roi, depth, width, groups, (5,))
    else:
        shapes |= biased(f"{roi}box_head.fc1", 1024, 49 * c)
        shapes |= biased(f"{roi}box_head.fc2", 1024, 1024)
    last = 2048 if kind == "C4" else 1024
    shapes |= biased(f"{roi}box_predictor.cls_score", 81, last)
    shapes |= biased(f"{roi}box_predictor.bbox_pred", 320, last)
    return shapes


EXTRA = {  # older files hold these as well
    "pixel_mean": (3, 1, 1),
    "pixel_std": (3, 1, 1),
    "proposal_generator.anchor_generator.cell_anchors.0": (15, 4),
}


def zeros(shapes):
    return {n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()}


def variables_of(num_classes=80, **parts):
    model = models.build_detector(num_classes=num_classes, **parts)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


@pytest.mark.parametrize("name", ZOO)
def test_every_array_of_the_zoo_has_its_place_and_shape(name):
    """Both ways: nothing of the file is left, nothing of the model is missing."""
    experiment, arg, *network = ZOO[name]
    module = importlib.import_module(f"experiments.{experiment}")
    parts = module.get_config(arg).model.to_dict()
    model = tree.flatten(variables_of(**parts))
    arrays = zeros({**zoo_shapes(*network), **EXTRA})
    assert detectron2.recognises(arrays)
    found, _, ignored = detectron2.to_torchvision(arrays)
    assert sorted(ignored) == sorted(EXTRA)
    places = torchvision.places(model)
    assert {place.name for place in places.values()} == set(found)
    for key, (name, layout) in places.items():
        if found[name].size < 5e6:
            value = torchvision._from_torch(found[name], layout, model, None)
            assert value.shape == model[key].shape, name


SMALL = dict(
    backbone=dict(name="resnet", depth=10),
    fpn=dict(channels=4),
    rpn=dict(channels=4),
    box_head=dict(widths=(5, 6)),
)


@pytest.fixture(scope="module")
def small():
    """A model, and the arrays of its file in the scheme of Detectron2."""
    rng = np.random.default_rng(0)
    shapes = conv("backbone.bottom_up.stem.conv1", 64, 3, 7)
    for s in (2, 3, 4, 5):
        block, c = f"backbone.bottom_up.res{s}.0", 16 * 2**s
        x = 64 if s == 2 else c // 2
        if s > 2:
            shapes |= conv(f"{block}.shortcut", c, x, 1)
        shapes |= conv(f"{block}.conv1", c, x, 3) | conv(f"{block}.conv2", c, c, 3)
        shapes |= biased(f"backbone.fpn_lateral{s}", 4, c, 1, 1)
        shapes |= biased(f"backbone.fpn_output{s}", 4, 4, 3, 3)
    rpn, roi = "proposal_generator.rpn_head", "roi_heads."
    shapes |= biased(f"{rpn}.conv", 4, 4, 3, 3)
    shapes |= biased(f"{rpn}.objectness_logits", 3, 4, 1, 1)
    shapes |= biased(f"{rpn}.anchor_deltas", 12, 4, 1, 1)
    shapes |= biased(f"{roi}box_head.fc1", 5, 196) | biased(f"{roi}box_head.fc2", 6, 5)
    shapes |= biased(f"{roi}box_predictor.cls_score", 3, 6)
    shapes |= biased(f"{roi}box_predictor.bbox_pred", 8, 6)
    arrays = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return variables_of(2, **SMALL), arrays


def write(path, arrays, **extra):
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Zoo", **extra}))
    return path


def test_values_of_a_detector(small, tmp_path):
    variables, arrays = small
    file = write(tmp_path / "x.pkl", arrays)
    loaded, report = torchvision.load_detector(file, variables)
    assert len(report) == len(arrays)
    params, stats = loaded["params"], loaded["batch_stats"]
    at = "backbone.bottom_up.res3.0"
    conv1 = arrays["backbone.bottom_up.stem.conv1.weight"]  # [o, bgr, h, w]
    np.testing.assert_array_equal(
        params["backbone"]["conv1"]["kernel"], conv1.transpose(2, 3, 1, 0)[:, :, ::-1]
    )
    block = params["backbone"]["layer2"]["block0"]
    np.testing.assert_array_equal(
        block["shortcut"]["kernel"][0, 0], arrays[f"{at}.shortcut.weight"][:, :, 0, 0].T
    )
    np.testing.assert_array_equal(
        stats["backbone"]["layer2"]["block0"]["bn2"]["var"],
        arrays[f"{at}.conv2.norm.running_var"],
    )
    np.testing.assert_array_equal(
        params["fpn"]["lateral32"]["bias"], arrays["backbone.fpn_lateral5.bias"]
    )
    head, of = params["box_head"], "roi_heads.box_predictor"
    score, box = arrays[f"{of}.cls_score.weight"], arrays[f"{of}.bbox_pred.weight"]
    # Classes 0 and 1, background 2 there; background 0, classes 1 and 2 here.
    np.testing.assert_array_equal(head["class_logits"]["kernel"].T, score[[2, 0, 1]])
    np.testing.assert_array_equal(head["class_deltas"]["kernel"].T, box)
    fc1, kernel = arrays["roi_heads.box_head.fc1.weight"], head["fc1"]["kernel"]
    channel, y, x = 3, 5, 2
    assert fc1[1, channel * 49 + y * 7 + x] == kernel[(y * 7 + x) * 4 + channel, 1]
    lines = "\n".join(report)
    assert "cls_score.weight (background from last to first) (3, 6) -> " in lines
    assert "stem.conv1.weight (BGR to RGB) (64, 3, 7, 7) -> params/backbone" in lines


def test_what_does_not_fit_is_named_as_in_the_file(small, tmp_path):
    variables, arrays = small
    name = "backbone.bottom_up.res5.0.conv2.weight"
    missing = {k: v for k, v in arrays.items() if k != name}
    with pytest.raises(ValueError, match="not in the file: .*layer4.0.conv2.weight"):
        torchvision.load_detector(write(tmp_path / "x.pkl", missing), variables)
    more = {**arrays, "roi_heads.other_head.deconv.weight": np.zeros((2, 2))}
    with pytest.raises(ValueError, match="not in the model: roi_heads.other_head"):
        torchvision.load_detector(write(tmp_path / "x.pkl", more), variables)
    wrong = {**arrays, name: arrays[name][:3]}
    with pytest.raises(ValueError, match="res5.0.conv2.weight has shape"):
        torchvision.load_detector(write(tmp_path / "x.pkl", wrong), variables)


@pytest.mark.parametrize("branch", ["mask_head", "keypoint_head"])
def test_of_mask_and_keypoint_rcnn_the_box_branch_is_read(small, tmp_path, branch):
    variables, arrays = small
    ours, _ = torchvision.load_detector(write(tmp_path / "x.pkl", arrays), variables)
    of_branch = f"roi_heads.{branch}.deconv.weight"
    more = {**arrays, of_branch: np.zeros((2, 2), np.float32)}
    file = write(tmp_path / "x.pkl", more)
    loaded, report = torchvision.load_detector(file, variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, ours)
    assert f"ignored {of_branch}" in report


def caffe2_name(name):
    """A name of Detectron2 -> of Caffe2, from its published blobs."""
    name = name.replace("backbone.bottom_up.", "").replace("backbone.", "")
    name = name.replace("proposal_generator.rpn_head.", "").replace("roi_heads.", "")
    name = name.replace("box_head.", "").replace("box_predictor.", "")
    branches = dict(shortcut="1", conv1="2a", conv2="2b", conv3="2c")
    kinds = dict(weight="s", bias="b", running_mean="rm", running_var="riv")
    if name.startswith("res"):
        stage, block, layer, *rest = name.split(".")
        tail = "w" if rest == ["weight"] else f"bn_{kinds[rest[-1]]}"
        return f"{stage}_{block}_branch{branches[layer]}_{tail}"
    if name.startswith("stem"):
        rest = name.split(".")[2:]
        return "conv1_w" if rest == ["weight"] else f"res_conv1_bn_{kinds[rest[-1]]}"
    layer, kind = name.rsplit(".", 1)
    if layer.startswith("fpn_lateral"):
        s = int(layer[-1])
        layer = f"fpn_inner_res{s}_0_sum" + ("_lateral" if s < 5 else "")
    layers = dict(
        conv="conv_rpn_fpn2",
        objectness_logits="rpn_cls_logits_fpn2",
        anchor_deltas="rpn_bbox_pred_fpn2",
        fc1="fc6",
        fc2="fc7",
    )
    layer = layers.get(layer, layer)
    if layer.startswith("fpn_output"):
        layer = f"fpn_res{layer[-1]}_0_sum"
    return f"{layer}_{kind[0]}"


def test_caffe2_names_background_first_and_norms_that_only_scale(small, tmp_path):
    variables, arrays = small
    ours, _ = torchvision.load_detector(write(tmp_path / "x.pkl", arrays), variables)
    blobs = {}
    for name, array in arrays.items():
        if "running" in name:  # fused into scale and bias
            continue
        if "cls_score" in name:
            array = array[[2, 0, 1]]
        if "bbox_pred" in name:
            array = np.concatenate([np.ones_like(array[:4]), array])
        blobs[caffe2_name(name)] = array
        blobs[f"{caffe2_name(name)}_momentum"] = array
    file = tmp_path / "c.pkl"
    file.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "text"}, 2))
    loaded, _ = torchvision.load_detector(file, variables)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], ours["params"])
    stats = loaded["batch_stats"]["backbone"]["layer1"]["block0"]["bn1"]
    scale = 1 / np.sqrt(np.float64(stats["var"]) + 1e-5)
    np.testing.assert_allclose(scale, 1, rtol=1e-7)
    assert not stats["mean"].any()


def test_imagenet_weights_of_the_zoo_fill_a_backbone(small, tmp_path):
    variables, arrays = small
    kinds = {"s": "gamma", "b": "beta", "rm": "running_mean", "riv": "running_var"}
    blobs = {"fc1000_w": np.zeros((3, 3)), "conv1_b": np.zeros(64)}
    for name, array in arrays.items():
        if "bottom_up" in name:
            blob, _, kind = caffe2_name(name).rpartition("bn_")
            blobs[f"{blob}bn_{kinds[kind]}" if blob else kind] = array
    file = tmp_path / "R-10.pkl"
    file.write_bytes(pickle.dumps(blobs, 2))
    start = jax.tree.map(lambda x: np.full(x.shape, -1, np.float32), variables)
    loaded = weights.load_backbone(file, start)
    full, _ = torchvision.load_detector(write(tmp_path / "x.pkl", arrays), variables)
    for collection in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal,
            loaded[collection]["backbone"],
            full[collection]["backbone"],
        )
    assert (loaded["params"]["box_head"]["fc1"]["kernel"] == -1).all()
