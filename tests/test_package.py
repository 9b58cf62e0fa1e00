"""The package as a whole: what importing it loads, and the manners of its functions."""

import inspect
import subprocess
import sys

import pytest

import frcnn_jax

PURE = [
    frcnn_jax.boxes,
    frcnn_jax.anchors,
    frcnn_jax.matching,
    frcnn_jax.nms,
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
