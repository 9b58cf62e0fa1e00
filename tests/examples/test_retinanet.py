"""The one-stage example: its losses by hand, its detections, what it learns."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import retinanet


def test_detect_finds_what_is_planted():
    a = int(jnp.argmax(retinanet.ANCHORS[:, 2] == 60))  # any anchor inside the image
    logits = jnp.full((len(retinanet.ANCHORS), 4), -9.0).at[a, 2].set(3.0)
    found = jax.jit(retinanet.detect)(logits, jnp.zeros((len(logits), 4)))
    assert found.valid.tolist() == [True] + [False] * 19
    assert found.classes[0] == 3
    expected = jnp.clip(retinanet.ANCHORS[a], 0, 128)
    np.testing.assert_allclose(found.boxes[0], expected, atol=1e-4)


def test_padded_objects_change_nothing():
    params = retinanet.RetinaNet().init(jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    image = jax.random.normal(jax.random.key(1), (1, 128, 128, 3))
    boxes = jnp.array([[[10.0, 10, 40, 50], [jnp.nan] * 4]])
    classes, valid = jnp.array([[2, 99]]), jnp.array([[True, False]])
    step = jax.jit(jax.value_and_grad(retinanet.loss_fn))
    loss, grads = step(params, image, boxes, classes, valid)
    other = step(params, image, jnp.nan_to_num(boxes), classes, valid)[0]
    assert loss == other and np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.slow
def test_it_learns():
    assert retinanet.main()["AP50"] > 0.8


def test_it_is_short():
    text = pathlib.Path(retinanet.__file__).read_text()
    assert len(text.splitlines()) < 150
