"""Our functions against torchvision's answers, committed in tests/goldens.

`tests/goldens/make_goldens.py` says how they were made; torch is not needed here.
Selections (labels, kept boxes, levels) must be equal; numbers may differ by
float32 rounding, as stated in the line that compares.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import losses, proposals
from frcnn_jax.ops import anchors, boxes, matching, nms, roi_align, roi_pool

GOLDENS = pathlib.Path(__file__).parent / "goldens"
SIZES = {  # arrays in each file: a file that lost a case fails
    "boxes": 25,
    "anchors": 10,
    "matching": 14,
    "nms": 20,
    "roi_align": 72,
    "roi_align_adaptive": 48,
    "roi_extent": 192,
    "roi_pool": 21,
    "multilevel": 13,
    "proposals": 30,
    "detections": 20,
    "losses": 40,
}


@functools.cache
def load(name):
    """{"case": {"array": value}} of one file; scalars as numpy's."""
    cases = {}
    with np.load(GOLDENS / f"{name}.npz") as file:
        for key in file.files:
            if key != "versions":
                case, array = key.split("/")
                value = file[key]
                value = jnp.asarray(value) if value.ndim else value[()]
                cases.setdefault(case, {})[array] = value
    return cases


def every(name):
    """Parametrises a test over the cases of one file."""
    return pytest.mark.parametrize("case", load(name))


def close(ours, theirs, *, rtol=0.0, atol=0.0):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=rtol, atol=atol)


def equal(ours, theirs):
    np.testing.assert_array_equal(np.asarray(ours), theirs)


def test_the_files_are_complete():
    found = {p.stem for p in GOLDENS.glob("*.npz")}
    # Whole models are test_torchvision_golden.py's, a few have a test of their own.
    found = {n for n in found if not n.startswith("torchvision_")}
    assert found - {"backbones", "positions", "resize"} == set(SIZES)
    for name, size in SIZES.items():
        with np.load(GOLDENS / f"{name}.npz") as file:
            assert str(file["versions"]).startswith("torch 2.15.0")
            assert len(file.files) == 1 + size
    assert sum(p.stat().st_size for p in GOLDENS.glob("*.npz")) < 2e6


# -- Boxes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou"])
def test_pairwise_overlaps(name):
    case = load("boxes")["pairwise"]
    close(getattr(boxes, name)(case["a"], case["b"]), case[name], atol=2e-6)


def test_area_and_boxes_without_area():
    case = load("boxes")["pairwise"]
    close(boxes.area(case["a"]), case["area"], rtol=1e-6)
    case = load("boxes")["empty"]
    equal(boxes.iou(case["a"], case["b"]), case["iou"])


@pytest.mark.parametrize("case", ["coder_unit", "coder_weighted"])
def test_encode_and_decode(case):
    case = load("boxes")[case]
    stds = tuple(case["stds"].tolist())
    encoded = boxes.encode(case["gt_boxes"], case["anchors"], stds=stds)
    close(encoded, case["encoded"], rtol=1e-5, atol=1e-5)
    decoded = boxes.decode(case["deltas"], case["anchors"], stds=stds)
    close(decoded, case["decoded"], rtol=2e-6, atol=1e-3)  # pixels, up to 10^4


def test_clip():
    case = load("boxes")["clip"]
    equal(boxes.clip(case["boxes"], case["image_size"]), case["clipped"])


# -- Anchors and matching --------------------------------------------------------------


@every("anchors")
def test_anchors(case):
    case = load("anchors")[case]
    h, w = case["image_size"].tolist()
    strides = case["strides"].tolist()
    pyramid = functools.partial(
        anchors.pyramid,
        [(h // s, w // s) for s in strides],
        strides,
        case["sizes"].tolist(),
        case["aspect_ratios"].tolist(),
        cells=anchors.rounded_cell_anchors,
    )
    equal(jax.jit(pyramid)(), case["anchors"])


@every("matching")
def test_matching(case):
    case = load("matching")[case]
    padded = np.concatenate([case["gt_boxes"], np.full((3, 4), np.nan)])
    ours = matching.match(
        case["boxes"],
        jnp.asarray(padded, jnp.float32),
        jnp.arange(len(padded)) < len(case["gt_boxes"]),
        fg_iou=float(case["fg_iou"]),
        bg_iou=float(case["bg_iou"]),
        force_best=bool(case["force_best"]),
    )
    equal(ours.labels, case["labels"])
    positive = case["labels"] == 1
    equal(ours.gt_index[positive], case["gt_index"][positive])


# -- Non-maximum suppression -----------------------------------------------------------


def thresholds(case):
    return sorted(int(k.removeprefix("keep_")) for k in case if k.startswith("keep_"))


@every("nms")
def test_nms(case):
    case = load("nms")[case]
    args = [case[name] for name in ("boxes", "scores", "classes") if name in case]
    function = nms.classwise_nms if "classes" in case else nms.nms
    for threshold in thresholds(case):
        kept = np.flatnonzero(function(*args, iou_threshold=threshold / 10))
        equal(kept, np.sort(case[f"keep_{threshold}"]))


@every("nms")
def test_nms_indices_have_their_order(case):
    case = load("nms")[case]
    for threshold in {5, 7}.intersection(thresholds(case)):
        theirs = case[f"keep_{threshold}"][:50]
        index, valid = nms.nms_indices(
            case["boxes"],
            case["scores"],
            classes=case.get("classes"),
            iou_threshold=threshold / 10,
            max_output=50,
        )
        equal(index[: len(theirs)], theirs)
        assert valid.sum() == len(theirs)


# -- Pooling ---------------------------------------------------------------------------


def check_pooling(function, case, *, rtol=0.0, atol=0.0):
    """Values and the gradient into the features."""

    @jax.jit
    def both(features, cotangent):
        values, pullback = jax.vjp(function, features)
        return values, pullback(cotangent)[0]

    values, gradient = both(case["features"], case["cotangent"])
    close(values, case["values"], rtol=rtol, atol=atol)
    close(gradient, case["gradient"], rtol=rtol, atol=atol)


@every("roi_align")
def test_roi_align(case):
    case = load("roi_align")[case]
    function = functools.partial(
        roi_align.roi_align,
        rois=case["rois"],
        stride=int(case["stride"]),
        output_size=tuple(case["output_size"].tolist()),
        sampling_ratio=int(case["sampling_ratio"]),
        aligned=bool(case["aligned"]),
    )
    check_pooling(function, case, rtol=1e-5, atol=1e-5)


@every("roi_align_adaptive")
def test_roi_align_with_a_number_of_samples_that_depends_on_the_roi(case):
    case = load("roi_align_adaptive")[case]
    options = dict(
        rois=case["rois"],
        stride=int(case["stride"]),
        output_size=tuple(case["output_size"].tolist()),
        aligned=bool(case["aligned"]),
    )
    assert roi_align.rois_beyond(**options, max_samples=1) > 5
    assert roi_align.rois_beyond(**options, max_samples=100) == 0
    function = functools.partial(
        roi_align.roi_align, **options, sampling_ratio=0, max_samples=100
    )
    check_pooling(function, case, rtol=1e-5, atol=1e-5)


@every("roi_extent")
def test_pooling_up_to_the_extent_of_the_image(case):
    name, case = case, load("roi_extent")[case]
    options = dict(
        rois=case["rois"],
        stride=int(case["stride"]),
        output_size=tuple(case["output_size"].tolist()),
    )
    if name.startswith("pool"):
        pool, tolerance = roi_pool.roi_pool, {}
    else:
        pool, tolerance = roi_align.roi_align, dict(rtol=1e-5, atol=1e-5)
        options.update(
            sampling_ratio=int(case["sampling_ratio"]),
            aligned=bool(case["aligned"]),
            max_samples=100,
        )

    def function(features):
        return pool(features, **options, extent=tuple(case["extent"].tolist()))

    check_pooling(function, case, **tolerance)


@every("roi_pool")
def test_roi_pool(case):
    case = load("roi_pool")[case]
    function = functools.partial(
        roi_pool.roi_pool,
        rois=case["rois"],
        stride=int(case["stride"]),
        output_size=tuple(case["output_size"].tolist()),
    )
    check_pooling(function, case)  # exact: values are copied, gradients are eighths


def test_multilevel_roi_align():
    case = load("multilevel")["fpn"]
    strides = tuple(case["strides"].tolist())
    equal(roi_align.roi_levels(case["rois"], strides), case["levels"])

    def function(features):
        return roi_align.multilevel_roi_align(
            features,
            case["rois"],
            output_size=4,
            sampling_ratio=2,
            aligned=False,
        )

    @jax.jit
    def both(features, cotangent):
        values, pullback = jax.vjp(function, features)
        return values, pullback(cotangent)[0]

    features = {s: case[f"features_{s}"] for s in strides}
    values, gradients = both(features, case["cotangent"])
    close(values, case["values"], atol=2e-5)
    for s in strides:
        close(gradients[s], case[f"gradient_{s}"], atol=2e-5)


# -- Proposals and detections ----------------------------------------------------------


@every("proposals")
def test_proposals(case):
    case = load("proposals")[case]
    select = functools.partial(
        proposals.select_proposals,
        level_sizes=tuple(case["level_sizes"].tolist()),
        pre_nms=int(case["pre_nms"]),
        post_nms=int(case["post_nms"]),
        nms_iou=float(case["nms_iou"]),
        exclude_padding=False,
    )
    names = ("anchors", "objectness_logits", "box_deltas", "image_size")
    ours = jax.jit(select)(*(case[name] for name in names))
    count = len(case["boxes"])
    equal(ours.valid, np.arange(case["post_nms"]) < count)
    close(ours.boxes[:count], case["boxes"], rtol=2e-6, atol=2e-5)
    close(ours.scores[:count], case["scores"], atol=1e-6)


@every("detections")
def test_detections(case):
    case = load("detections")[case]
    postprocess = functools.partial(
        proposals.postprocess,
        score=float(case["score"]),
        nms_iou=float(case["nms_iou"]),
        max_detections=int(case["max_detections"]),
    )
    padding = [(3, 0), (0, 0), (0, 0)]  # three RoIs in front that are not valid
    rois, logits, deltas = (
        jnp.pad(x, padding[: x.ndim], constant_values=jnp.nan)
        for x in (case["rois"], case["class_logits"], case["class_deltas"])
    )
    valid = jnp.arange(len(rois)) >= 3
    ours = jax.jit(postprocess)(rois, valid, logits, deltas, case["image_size"])
    count = len(case["boxes"])
    equal(ours.valid, np.arange(case["max_detections"]) < count)
    equal(ours.classes[:count], case["classes"])
    close(ours.boxes[:count], case["boxes"], rtol=2e-6, atol=2e-5)
    close(ours.scores[:count], case["scores"], atol=1e-6)


# -- Losses ----------------------------------------------------------------------------


def term_and_gradient(function, index, argument, *args):
    """One term of a pair of losses, and its gradient by one positional argument."""
    term = jax.value_and_grad(lambda *a: function(*a)[index], argument)
    return jax.jit(term)(*args)


def test_rpn_loss():
    case = load("losses")["rpn"]
    names = ("objectness_logits", "box_deltas", "labels", "target_deltas")
    args = [case[name] for name in names]
    loss = functools.partial(losses.rpn_loss, beta=1 / 9)
    cls, by_logits = term_and_gradient(loss, 0, 0, *args)
    box, by_deltas = term_and_gradient(loss, 1, 1, *args)
    close(cls, case["cls"], rtol=1e-6)
    close(box, case["box"], rtol=1e-6)
    close(by_logits, case["cls_by_objectness_logits"], atol=1e-8)
    close(by_deltas, case["box_by_box_deltas"], atol=1e-8)


def test_detector_loss():
    case = load("losses")["detector"]
    names = ("class_logits", "class_deltas", "labels", "target_deltas")
    args = [case[name] for name in names]
    loss = functools.partial(losses.detector_loss, beta=1 / 9)
    cls, by_logits = term_and_gradient(loss, 0, 0, *args)
    box, by_deltas = term_and_gradient(loss, 1, 1, *args)
    close(cls, case["cls"], rtol=1e-6)
    close(box, case["box"], rtol=1e-6)
    close(by_logits, case["cls_by_class_logits"], atol=1e-8)
    close(by_deltas, case["box_by_class_deltas"], atol=1e-8)


@pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
def test_iou_losses(name):
    case = load("losses")[name]
    function = getattr(losses, f"{name}_loss")
    b, targets = case["boxes"], case["targets"]
    close(function(b, targets), case["loss"], atol=2e-6)
    gradient = jax.jit(jax.grad(lambda x: function(x, targets).sum()))(b)
    close(gradient, case["gradient"], atol=2e-6)


@pytest.mark.parametrize("name", ["focal", "focal_other"])
def test_sigmoid_focal_loss(name):
    case = load("losses")[name]
    function = functools.partial(
        losses.sigmoid_focal_loss,
        targets=case["targets"],
        alpha=float(case["alpha"]),
        gamma=float(case["gamma"]),
    )
    close(function(case["logits"]), case["loss"], rtol=2e-6, atol=1e-9)
    gradient = jax.grad(lambda x: function(x).sum())(case["logits"])
    close(gradient, case["gradient"], rtol=5e-6, atol=1e-8)
