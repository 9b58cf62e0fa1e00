"""Sources in memory, and what happens to bad boxes."""

import numpy as np
import pytest

from frcnn_jax.data import source


def example(image_id, n=1):
    return source.Example(
        image=np.zeros((8, 9, 3), np.uint8),
        image_id=image_id,
        boxes=np.tile(np.float32([1, 2, 5, 6]), (n, 1)),
        classes=np.ones(n, np.int32),
        ignore=np.zeros(n, bool),
    )


def test_a_list_is_a_source():
    s = source.Source([example(4), example(9)], ("cat", "dog"))
    assert len(s) == 2 and s[1].image_id == 9
    assert s.category_ids == (1, 2)
    assert [e.image_id for e in s] == [4, 9]
    assert len(source.subset(s, slice(1, None))) == 1
    with pytest.raises(ValueError, match="2 classes but 1 category_ids"):
        source.Source([], ("cat", "dog"), (7,))


def test_image_ids_are_the_sources_own_integers_or_positions_from_one():
    assert source.image_ids(source.Source([example(4), example(9)], ("a",))) == [4, 9]
    named = source.Source([example("x"), example("y")], ("a",))
    assert source.image_ids(named) == [1, 2]
    mixed = source.Source([example(7), example("y")], ("a",))
    assert source.image_ids(mixed) == [1, 2]


def clean(*boxes, **options):
    report = []
    labels = [f"box {i}" for i in range(len(boxes))]
    found, keep = source.clean_boxes(
        np.array(boxes, np.float64).reshape(-1, 4),
        (50, 100),
        labels,
        "a.xml",
        report,
        **options,
    )
    return found[keep].tolist(), keep.tolist(), report


def test_good_boxes_are_left_alone():
    assert clean([0, 0, 100, 50], [1.5, 2, 3, 4]) == (
        [[0, 0, 100, 50], [1.5, 2, 3, 4]],
        [True, True],
        [],
    )
    assert clean() == ([], [], [])


@pytest.mark.parametrize(
    "box, why",
    [
        ([5, 5, 5, 9], "no area"),
        ([5, 5, 9, 5], "no area"),
        ([9, 5, 5, 9], "no area"),
        ([float("nan"), 5, 9, 9], "not finite"),
        ([1, 5, float("inf"), 9], "not finite"),
        ([100, 5, 120, 9], "outside the image of 100x50"),
        ([5, -9, 8, 0], "outside the image of 100x50"),
    ],
)
def test_bad_boxes_are_dropped_and_reported(box, why):
    found, keep, report = clean([1, 1, 2, 2], box)
    assert found == [[1, 1, 2, 2]] and keep == [True, False]
    assert report == [f"a.xml: dropped box 1: {why}"]


def test_boxes_reaching_outside_are_clipped_and_counted():
    found, keep, report = clean([-3, -4, 200, 300], [1, 1, 2, 2], [90, 40, 101, 49])
    assert found == [[0, 0, 100, 50], [1, 1, 2, 2], [90, 40, 100, 49]]
    assert report == ["a.xml: clipped 2 boxes to the image of 100x50"]


def test_min_size_is_exclusive():
    found, keep, _ = clean([1, 1, 2, 5], [1, 1, 2.5, 5], min_size=1.0)
    assert keep == [False, True]
