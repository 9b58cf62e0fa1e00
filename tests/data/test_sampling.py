"""The order of training: every visit once, one bucket a batch, repeats as asked."""

import collections

import numpy as np
import pytest

from frcnn_jax.data import pipeline, sampling
from frcnn_jax.data.source import Example, Source, subset


def order(n=7, batch_size=3, buckets=None, repeats=None, seed=0):
    return sampling.Order(
        np.ones(n) if repeats is None else np.array(repeats, float),
        np.zeros(n, int) if buckets is None else np.array(buckets),
        batch_size,
        seed,
    )


def slow_stream(o, epochs):
    """Walks the epochs one by one and fills a queue for every bucket."""
    queues = collections.defaultdict(list)
    for e in range(epochs):
        epoch = o.epoch(e)
        for i, repeat in zip(epoch.index, epoch.repeat, strict=True):
            bucket = int(o.buckets[i])
            queues[bucket].append((e, int(i), int(repeat)))
            if len(queues[bucket]) == o.batch_size:
                yield bucket, queues.pop(bucket)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(n=2, batch_size=5),
        dict(n=9, batch_size=4, buckets=[0, 1, 2, 0, 1, 0, 0, 0, 1]),
        dict(n=6, batch_size=2, repeats=[1, 2.5, 0.5, 0, 3, 1]),
        dict(n=5, batch_size=3, buckets=[1, 1, 3, 1, 1], repeats=[1, 1.2, 1, 0.4, 2]),
    ],
)
def test_any_batch_is_what_walking_the_stream_gives(options):
    o = order(**options)
    expected = list(slow_stream(o, 12))
    numbers = list(range(len(expected)))
    assert len(numbers) > 3
    for k in [*numbers, *numbers[::-3]]:  # in any order
        bucket, visits = order(**options)[k] if k % 4 == 0 else o[k]
        assert (bucket, [tuple(v) for v in visits]) == expected[k]


def test_an_epoch_visits_everything_once_in_an_order_of_its_own():
    o = order(50, buckets=np.arange(50) % 3)
    orders = [o.epoch(e).index.tolist() for e in range(4)]
    assert all(sorted(x) == list(range(50)) for x in orders)
    assert len({tuple(x) for x in orders}) == 4
    assert orders[0] != order(50, seed=1).epoch(0).index.tolist()
    assert orders[0] == order(50).epoch(0).index.tolist()  # whatever the buckets


def test_memory_of_epochs_is_bounded():
    o = order()
    for k in range(200):
        o[k]
    assert len(o._cache) < 12


def test_repeats_are_exact_on_average_and_even():
    wanted = np.array([1, 2.5, 0.25, 0, 3.75, 0.5])
    counts = np.zeros((400, 6))
    for e in range(400):
        epoch = order(6, repeats=wanted).epoch(e)
        counts[e] = np.bincount(epoch.index, minlength=6)
        assert len(epoch.index) == 8
        for i in range(6):  # visits of one epoch are told apart
            mine = epoch.repeat[epoch.index == i]
            assert sorted(mine) == list(range(len(mine)))
    assert (np.abs(counts - wanted) < 1).all()
    np.testing.assert_allclose(counts.mean(0), wanted, atol=0.1)


def make(classes, ignore=None):
    examples = [
        Example(
            np.zeros((20, 20, 3), np.uint8),
            i,
            np.tile(np.float32([1, 1, 9, 9]), (len(c), 1)),
            np.array(c, np.int32),
            np.array(ignore or [False] * len(c))[: len(c)].astype(bool),
        )
        for i, c in enumerate(classes)
    ]
    return Source(examples, ("a", "b", "c"))


def test_repeat_factors_by_hand():
    source = make([[1], [1, 1], [1, 2], [1], []])
    found = sampling.repeat_factors(source, threshold=0.8)
    # f(a) = 4/5, f(b) = 1/5: sqrt(0.8 / 0.2) = 2
    np.testing.assert_allclose(found, [1, 1, 2, 1, 1])
    np.testing.assert_allclose(sampling.repeat_factors(source, threshold=0.0), 1)


def test_class_balanced_by_hand():
    found = sampling.class_balanced(make([[1], [1], [1, 2], []]))
    # three images have objects; a picks one of three, b the third
    np.testing.assert_allclose(found, [0.5, 0.5, 2, 1])
    assert found.sum() == 4


def test_crowds_do_not_count():
    source = make([[1], [2]], ignore=[True])
    assert not sampling.presence(source).any()
    np.testing.assert_array_equal(sampling.class_balanced(source), [1, 1])
    np.testing.assert_array_equal(sampling.repeat_factors(source, threshold=1), [1, 1])


def test_sampling_in_the_pipeline():
    source = make([[1], [1], [1], [1, 2]])
    options = dict(batch_size=5, seed=0, short_side=20, max_side=20, canvas=(20, 20))
    data = pipeline.train_dataset(
        source, sampling=dict(name="repeat_factors", threshold=1.0), **options
    )
    first = collections.Counter(data[0].index.tolist())
    assert first == {0: 1, 1: 1, 2: 1, 3: 2}  # sqrt(1 / 0.25)
    with pytest.raises(ValueError, match="data.sampling.name='rare': expected one of"):
        pipeline.train_dataset(source, sampling=dict(name="rare"), **options)
    for value in (-1, float("nan"), float("inf"), None, "x", ()):
        wrong = dict(name="repeat_factors", threshold=value)
        with pytest.raises(ValueError, match="data.sampling.threshold="):
            sampling.check(wrong)  # before anything is read
    with pytest.raises(TypeError, match="powr"):
        pipeline.train_dataset(
            source, sampling=dict(name="repeat_factors", threshold=1, powr=2), **options
        )


def test_repeats_of_a_source_travel_with_its_parts():
    source = make([[1], [2], [1]])
    source = Source(source.examples, source.classes, repeats=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(sampling.repeats(subset(source, slice(1, 3))), [2, 3])
