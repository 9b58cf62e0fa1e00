"""The package as a whole: what importing it loads, and the manners of its functions."""

import inspect
import operator
import subprocess
import sys

import pytest

import frcnn_jax
from frcnn_jax.ops import soft_nms

PURE = [
    frcnn_jax.boxes,
    frcnn_jax.anchors,
    frcnn_jax.matching,
    frcnn_jax.nms,
    soft_nms,
    frcnn_jax.roi_align,
    frcnn_jax.targets,
    frcnn_jax.losses,
    frcnn_jax.proposals,
]


def public_functions():
    for module in PURE:
        for name, function in vars(module).items():
            if (
                inspect.isfunction(function)
                and not name.startswith("_")
                and function.__module__ == module.__name__
            ):
                yield pytest.param(function, id=f"{module.__name__}.{name}")


def test_import_loads_only_the_pure_layer():
    code = (
        "import sys, frcnn_jax; "
        "print([m for m in ('flax', 'optax', 'orbax', 'absl', 'ml_collections', "
        "'grain', 'tensorflow', 'tensorflow_datasets', 'cv2') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("function", list(public_functions()))
def test_public_function_has_manners(function):
    assert inspect.getdoc(function), "no docstring"
    parameters = list(inspect.signature(function).parameters.values())
    names = [p.name for p in parameters]
    assert "rng" not in names
    if "key" in names:
        assert names[0] == "key"
    for p in parameters:
        assert p.annotation is not inspect.Parameter.empty or p.name == "cells", p
        # The usual ratios may be left out or follow the sizes.
        optional = p.default not in (inspect.Parameter.empty, None)
        if optional and p.name != "aspect_ratios":
            assert p.kind is inspect.Parameter.KEYWORD_ONLY, f"{p} is not keyword-only"


# What other programs call: names, order and defaults of the arguments. `...` stands
# for more that may be given by name.
PINNED = {
    "boxes.iou": "a, b",
    "boxes.encode": "boxes, anchors, *, stds=(1.0, 1.0, 1.0, 1.0)",
    "boxes.decode": "deltas, anchors, *, stds=(1.0, 1.0, 1.0, 1.0), ...",
    "anchors.pyramid": "...",
    "nms.nms": "boxes, scores, valid=None, *, iou_threshold, ...",
    "roi_align.roi_align": (
        "features, rois, *, stride, output_size=7, sampling_ratio=2, aligned=True, ..."
    ),
    "targets.rpn_targets": (
        "key, anchors, gt_boxes, gt_valid, gt_ignore=None, image_size=None, "
        "valid=None, places=None, ..."
    ),
    "losses.rpn_loss": (
        "objectness_logits, box_deltas, labels, target_deltas, *, normalizer=None, "
        "beta=0.1111111111111111, ..."
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_names_that_users_rely_on(name):
    function = operator.attrgetter(name)(frcnn_jax)
    found = inspect.signature(function).parameters
    pinned = eval(f"inspect.signature(lambda {PINNED[name].replace('...', '**_')}: 0)")
    more = pinned.parameters.get("_")
    pinned = {k: p for k, p in pinned.parameters.items() if k != "_"}
    positional = [k for k, p in found.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if name != "anchors.pyramid":
        assert positional == [
            k for k, p in pinned.items() if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
    assert {k: found[k].default for k in pinned} == {
        k: p.default for k, p in pinned.items()
    }
    assert more or found.keys() == pinned.keys()
