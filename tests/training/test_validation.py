import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.evaluation import recall as host
from frcnn_jax.training import devices
from frcnn_jax.training.state import init_variables
from frcnn_jax.training.step import image_keys, predict_step, train_losses
from frcnn_jax.training.validation import means, recall, validate_step
from frcnn_jax.types import Proposals
from tests.training import small

KEY = jax.random.key(0)
WEIGHTS = dict(rpn_cls=1.0, rpn_box=2.0, roi_cls=1.0, roi_box=1.0)


@functools.cache
def setup():
    c = small.config().to_dict()
    c["postprocess"]["score"] = 0.01
    model = models.build_detector(num_classes=3, **c["model"])
    variables = init_variables(KEY, (*small.CANVAS, 3), model=model)
    step = partial(validate_step, model=model, config=c)
    return c, model, variables, step, jax.jit(partial(step, axis_name=None))


def padded(batch):
    """Three images and one that fills up the batch, with what would be noticed."""
    return batch._replace(
        valid=np.array([True, True, True, False]),
        image=np.where(np.arange(4)[:, None, None, None] == 3, 255, batch.image),
    )


@pytest.mark.slow
def test_losses_are_those_of_training_on_the_valid_images_alone():
    c, model, variables, _, validate = setup()
    batch = padded(small.batch(0, images=4))
    found, sums = validate(variables, batch, KEY)
    result = means([sums], WEIGHTS)

    three = jax.tree.map(lambda x: jnp.asarray(x[:3]), batch)
    keys = image_keys(KEY, jnp.int32(0), three.index)
    expected = jax.jit(partial(model.apply, config=c, method=train_losses))(
        variables, three, keys
    )
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-5, err_msg=name)
    total = sum(WEIGHTS[k] * float(v) for k, v in expected.items())
    np.testing.assert_allclose(result["total"], total, rtol=1e-5)
    assert 0 < result["roi_positive"] <= 0.25 and 0 <= result["fg_accuracy"] <= 1
    assert 0 <= result["proposal_AR20"] <= 1 and "images" not in result

    alone = jax.jit(partial(predict_step, model=model, config=c))(variables, batch)
    assert alone.valid.any()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), alone, found)


@pytest.mark.slow
def test_two_devices_and_two_batches_give_the_same_means():
    _, _, variables, step, validate = setup()
    batch = padded(small.batch(0, images=4))
    _, whole = validate(variables, batch, KEY)
    run = devices.parallel(step, in_axes=(None, 0, None), out_axes=(0, None))
    variables, key = devices.replicated((variables, KEY))
    _, sums = run(variables, devices.shard(batch), key)
    one, two = means([whole], WEIGHTS), means([sums, sums], WEIGHTS)
    assert one == pytest.approx(two, rel=1e-4)


def test_means_without_objects_have_no_recall():
    names = ("rpn_cls", "images", "objects", "proposal_AR100")
    sums = dict.fromkeys(names, 0.0) | dict(sampled=0.0, positive=0.0, correct=0.0)
    result = means([sums | dict(images=2.0, rpn_cls=3.0)], WEIGHTS)
    assert result == dict(rpn_cls=1.5, total=1.5, roi_positive=0.0, fg_accuracy=0.0)


def test_recall_is_that_of_the_proposals_script(rng):
    """Against `evaluation.recall`, invalid rows are left out."""
    start = rng.uniform(0, 60, (156, 2))
    boxes = np.concatenate([start, start + rng.uniform(5, 40, (156, 2))], 1)
    gt, proposals = np.float32(boxes[:6]), np.float32(boxes[6:])
    proposals[120] = gt[0]  # found among the 150, not among the 100
    objects, valid = np.arange(6) != 2, np.arange(150) < 140
    found = recall(
        Proposals(*map(jnp.array, (proposals, np.zeros(150, np.float32), valid))),
        jnp.array(gt),
        jnp.array(objects),
    )
    expected = host.evaluate([(gt[objects], proposals[:140])], counts=(100, 150))
    assert found["objects"] == 5
    for n in (100, 150):
        np.testing.assert_allclose(
            found[f"proposal_AR{n}"] / 5, expected[f"AR@{n}"], rtol=1e-5
        )
    assert 0 < expected["AR@100"] < expected["AR@150"] < 1
