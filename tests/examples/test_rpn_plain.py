"""The example without any framework learns, and needs jax and numpy alone."""

import subprocess
import sys

import numpy as np
import pytest

from examples import rpn_plain_jax


def test_pictures_show_what_their_boxes_say():
    images, boxes, valid = rpn_plain_jax.pictures(np.random.default_rng(0), 20)
    assert images.shape == (20, 64, 64, 3) and valid[:, 0].all()
    assert not valid.all() and not boxes[~valid].any()
    for image, rows, of_object in zip(images, boxes, valid, strict=True):
        last = rows[of_object][-1]  # nothing was drawn over it
        cx, cy = (last[:2] + last[2:]) / 2
        assert np.abs(image[int(cy), int(cx)]).min() >= 0.6 - 1e-6
        assert (last >= 0).all() and (last <= 64).all() and (last[2:] > last[:2]).all()


def test_loss_falls():
    losses, recall = rpn_plain_jax.main(steps=15)
    assert losses[-1] < 0.5 * losses[0]
    assert 0 <= recall <= 1


@pytest.mark.slow
def test_proposals_find_the_objects():
    assert rpn_plain_jax.main()[1] > 0.6


def test_it_imports_nothing_but_the_pure_layer():
    code = (
        "import sys, examples.rpn_plain_jax\n"
        "print(sorted({'flax', 'optax', 'grain', 'cv2', 'absl', 'orbax'} & "
        "{name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
