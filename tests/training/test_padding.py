"""The same image on any canvas, in any company: losses, gradients and detections."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.models.build import anchor_pyramid
from frcnn_jax.training.state import init_variables
from frcnn_jax.training.step import (
    image_keys,
    image_losses,
    predict_step,
    propose_step,
)
from tests.training import small

KEY = jax.random.key(0)
SIZE = 40, 57  # of the image; its extent is 64 x 64
CANVASES = (64, 64), (96, 128)


def on_canvas(seed, canvas, company):
    """The first image of `small.batch(seed)`, garbage around it, beside another one."""
    batch = small.batch(seed)
    rng = np.random.default_rng(seed + canvas[0])
    image = rng.integers(0, 256, (2, *canvas, 3), np.uint8)
    image[0, : SIZE[0], : SIZE[1]] = batch.image[0, : SIZE[0], : SIZE[1]]
    size = np.array([SIZE, canvas], np.int32)
    index = np.array([7, company], np.int32)
    return batch._replace(image=image, image_size=size, index=index)


@functools.cache
def network(rounding="none", parity=False, dtype="float32"):
    """A small detector with random biases, and its configuration."""
    c = small.config().to_dict()
    c["model"]["anchors"] |= dict(rounding=rounding)
    c["model"]["rpn"] |= dict(depth=2)
    c["postprocess"] |= dict(score=0.0)
    for group in (*c["proposals"].values(), c["rpn_targets"]):
        group["exclude_padding"] = not parity
    c["model"]["dtype"] = dtype
    model = models.build_detector(num_classes=3, **c["model"])
    variables = init_variables(KEY, (*CANVASES[0], 3), model=model)
    rng = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(variables)
    leaves = [(x + rng.normal(0, 0.1, x.shape)).astype(dtype) for x in leaves]
    return model, tree.unflatten(leaves), c


def of_first(tree):
    return jax.tree.map(lambda x: np.asarray(x)[0], tree)


@pytest.mark.parametrize("parity", [False, True], ids=["ours", "torchvision"])
def test_detections_are_those_of_the_smallest_canvas(parity):
    """With `parity` anchors of the extent take part, strides follow from it."""
    model, variables, c = network("torchvision" if parity else "none", parity)
    predict = jax.jit(partial(predict_step, model=model, config=c))
    propose = jax.jit(partial(propose_step, model=model, config=c))
    batches = [on_canvas(0, canvas, i) for i, canvas in enumerate(CANVASES)]
    one, two = (of_first(predict(variables, batch)) for batch in batches)
    assert one.valid.sum() > 3
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    one, two = (of_first(propose(variables, batch)) for batch in batches)
    np.testing.assert_array_equal(one.valid, two.valid)
    np.testing.assert_allclose(one.boxes, two.boxes, rtol=1e-4, atol=1e-3)


def losses_and_gradient(batch, dtype="float32"):
    """The losses of the first image, and the gradient of their sum."""
    model, variables, c = network(dtype=dtype)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def run(variables, batch):
        def compute(model):
            keys = image_keys(KEY, jnp.int32(3), batch.index)
            return image_losses(model, batch, keys, c)[0]

        terms: Any = model.apply(variables, method=compute)
        first = {name: x[0] for name, x in terms.items()}
        return sum(first.values()), first

    gradient, terms = run(variables, batch)
    return terms, gradient["params"]


def test_losses_and_gradients_are_those_of_the_smallest_canvas():
    """Given its keys: the draws, too."""
    compare_gradients("float32", 1e-3)


@pytest.mark.slow
def test_gradients_in_double_precision_are_those_of_the_smallest_canvas():
    with jax.enable_x64(True):
        compare_gradients("float64", 1e-5)


def compare_gradients(dtype, tolerance):
    batches = [on_canvas(0, canvas, i) for i, canvas in enumerate(CANVASES)]
    (one, by_one), (two, by_two) = (losses_and_gradient(b, dtype) for b in batches)
    for name, value in one.items():
        assert value > 0
        np.testing.assert_allclose(value, two[name], rtol=1e-5, err_msg=name)

    def close(path, a, b):
        scale = np.sqrt((np.asarray(a) ** 2).mean())
        np.testing.assert_allclose(a, b, atol=tolerance * scale, err_msg=str(path))

    jax.tree_util.tree_map_with_path(close, by_one, by_two)


def test_torchvisions_strides_follow_from_the_extent():
    """A map of 13 x 13 cells of stride 64 under an extent of 800: 800 // 13 = 61."""
    sizes = {4: (208, 208), 64: (13, 13)}
    options: Any = dict(strides=(4, 64), sizes=(32.0, 512.0), rounding="torchvision")
    alone = anchor_pyramid({4: (200, 200), 64: (13, 13)}, **options)
    extent = {4: (jnp.int32(200),) * 2, 64: (jnp.int32(13),) * 2}
    found = jax.jit(lambda e: anchor_pyramid(sizes, extent=e, **options))(extent)
    k = 3
    np.testing.assert_array_equal(found[-169 * k :], alone[-169 * k :])
    level = np.asarray(found)[: 208 * 208 * k].reshape(208, 208, k, 4)
    expected = np.asarray(alone)[: 200 * 200 * k].reshape(200, 200, k, 4)
    np.testing.assert_array_equal(level[:200, :200], expected)
