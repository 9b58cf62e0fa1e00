"""The one-stage example: its losses by hand, its detections, what it learns."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import retinanet


def test_detect_finds_what_is_planted():
    a = int(jnp.argmax(retinanet.ANCHORS[:, 2] == 30))  # any anchor inside the image
    logits = jnp.full((len(retinanet.ANCHORS), 4), -9.0).at[a, 2].set(3.0)
    found = jax.jit(retinanet.detect)(logits, jnp.zeros((len(logits), 4)))
    assert found.valid.tolist() == [True] + [False] * 19
    assert found.classes[0] == 3
    expected = jnp.clip(retinanet.ANCHORS[a], 0, 64)
    np.testing.assert_allclose(found.boxes[0], expected, atol=1e-4)


def test_loss_is_the_formula_and_padding_changes_nothing(monkeypatch):
    monkeypatch.setattr(retinanet, "network", lambda outputs, _: outputs)
    a = len(retinanet.ANCHORS)
    box = jnp.clip(retinanet.ANCHORS[a // 2], 0, 64)
    boxes = jnp.stack([box, jnp.full(4, jnp.nan)])[None]
    truth = boxes, jnp.array([[2, 99]]), jnp.array([[True, False]])
    outputs = jnp.full((1, a, 4), -9.0), jnp.zeros((1, a, 4))
    step = jax.jit(jax.value_and_grad(retinanet.loss_fn))
    loss, grads = step(outputs, None, *truth)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in grads)
    assert (
        grads[0].min() < 0 and int(jnp.argmin(grads[0])) % 4 == 1
    )  # class 2 is wanted
    nothing = step(outputs, None, boxes, truth[1], jnp.array([[False, False]]))
    assert 0 < nothing[0] < 0.1 and not nothing[1][1].any()
    other = step(outputs, None, jnp.nan_to_num(boxes), *truth[1:])
    assert other[0] == loss


@pytest.mark.slow
def test_it_learns():
    assert retinanet.main()["AP50"] > 0.25


def test_it_is_short():
    text = pathlib.Path(retinanet.__file__).read_text()
    assert len(text.splitlines()) < 150
