"""Bootstrap intervals against numbers that can be told without them."""

import math

import numpy as np
import pytest

from frcnn_jax.evaluation import intervals


def truth(n, objects=1):
    boxes = [
        dict(id=1 + i * objects + j, image_id=i, category_id=1, bbox=[20 * j, 0, 9, 9])
        for i in range(n)
        for j in range(objects)
    ]
    for box in boxes:
        box.update(area=81, iscrowd=0)
    return dict(
        images=[dict(id=i, width=100, height=100) for i in range(n)],
        annotations=boxes,
        categories=[dict(id=1, name="a")],
    )


def scored(scores):
    """One detection an image, on its first object."""
    return [
        dict(image_id=i, category_id=1, bbox=[0, 0, 9, 9], score=s)
        for i, s in enumerate(scores)
    ]


def mean_score(annotations, detections):
    """A metric whose draws NumPy gives in one line."""
    assert len(annotations["images"]) == len(detections)
    assert {d["image_id"] for d in detections} == {
        a["id"] for a in annotations["images"]
    }
    return float(np.mean([d["score"] for d in detections]))


def test_the_interval_is_that_of_numpy():
    scores = np.random.default_rng(1).uniform(size=30)
    low, high = intervals.interval(
        truth(30), scored(scores), draws=500, metric=mean_score
    )
    rng = np.random.default_rng(0)
    draws = [scores[rng.integers(0, 30, 30)].mean() for _ in range(500)]
    assert (low, high) == pytest.approx(np.percentile(draws, (2.5, 97.5)))
    # The central limit: 1.96 standard errors on either side of the mean.
    error = 1.96 * scores.std() / math.sqrt(30)
    assert low == pytest.approx(scores.mean() - error, abs=0.3 * error)
    assert high == pytest.approx(scores.mean() + error, abs=0.3 * error)


def test_a_difference_pairs_the_images():
    scores = np.random.default_rng(1).uniform(size=30)
    ours, theirs = [scored(scores + 0.25)], [scored(scores)]
    found = intervals.difference(truth(30), ours, theirs, draws=50, metric=mean_score)
    assert found == pytest.approx((0.25, 0.25, 0.25))


def test_a_difference_draws_seeds_on_each_side():
    ours = [scored([s] * 4) for s in (0.0, 1.0)]
    theirs = [scored([s] * 4) for s in (0.2, 0.2)]
    mean, low, high = intervals.difference(
        truth(4), ours, theirs, draws=400, metric=mean_score
    )
    # Of two runs a draw takes both, or one of them twice: 0, 0.5 or 1 less 0.2.
    assert (mean, low, high) == pytest.approx((0.3, -0.2, 0.8))


def test_average_precision_is_the_metric():
    half = [scored([0.9])[0] | dict(image_id=i) for i in range(0, 8, 2)]
    mean, low, high = intervals.difference(truth(8), [half], [[]], draws=40)
    assert mean == pytest.approx(51 / 101)  # recall 1/2 at precision 1, 101 points
    assert 0 <= low < mean < high <= 1
    assert intervals.interval(truth(8), scored([0.9] * 8), draws=5) == (1.0, 1.0)


def test_without_a_run_or_an_object():
    with pytest.raises(ValueError, match="of one run or more"):
        intervals.difference(truth(2), [], [[]])
    assert all(map(math.isnan, intervals.interval(truth(2, 0), [], draws=3)))
