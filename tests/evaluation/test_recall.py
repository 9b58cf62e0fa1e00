import itertools

import numpy as np
import pytest

from frcnn_jax.evaluation import recall


def boxes(*rows):
    return np.array(rows, float).reshape(-1, 4)


def random_boxes(rng, n):
    start = rng.uniform(0, 30, (n, 2))
    return np.concatenate([start, start + rng.uniform(5, 25, (n, 2))], 1)


def slow_iou(a, b):
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    area = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return w * h / (area - w * h)


def slow_covered(objects, proposals):
    pairs = [
        (slow_iou(o, p), i, j)
        for (i, o), (j, p) in itertools.product(
            enumerate(objects), enumerate(proposals)
        )
    ]
    found, used = np.zeros(len(objects)), set()
    taken = set()
    for iou, i, j in sorted(pairs, reverse=True):
        if i not in taken and j not in used:
            found[i] = iou
            taken.add(i)
            used.add(j)
    return found


@pytest.mark.parametrize("g, p", [(1, 1), (4, 9), (7, 3), (3, 0), (0, 5)])
def test_each_proposal_covers_one_object(g, p, rng):
    objects, proposals = random_boxes(rng, g), random_boxes(rng, p)
    expected = slow_covered(objects, proposals)
    np.testing.assert_allclose(recall.covered(objects, proposals), expected)


def test_recall_worked_on_paper():
    """Four objects, covered at 1, 0.8, 0.6 and not at all; the 1 comes third."""
    objects = boxes((0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10), (60, 0, 70, 10))
    proposals = boxes((20, 0, 28, 10), (40, 0, 46, 10), (0, 0, 10, 10))
    result = recall.evaluate([(objects, proposals)], counts=(1, 2, 3))
    assert result["curves"]["1"] == [0.25] * 7 + [0] * 3
    assert result["curves"]["2"] == [0.5] * 3 + [0.25] * 4 + [0] * 3
    assert result["curves"]["3"] == [0.75] * 3 + [0.5] * 4 + [0.25] * 3
    assert result["AR@3"] == pytest.approx((0.75 * 3 + 0.5 * 4 + 0.25 * 3) / 10)
    assert (result["R50@3"], result["R70@3"]) == (0.75, 0.5)
    assert (result["objects"], result["proposals"]) == (4, 3.0)


def test_images_weigh_by_their_objects():
    found = (boxes((0, 0, 5, 5), (9, 9, 12, 12)), boxes((0, 0, 5, 5), (9, 9, 12, 12)))
    missed = (boxes((0, 0, 5, 5)), boxes())
    empty = (boxes(), boxes((0, 0, 5, 5)))
    result = recall.evaluate([found, missed, empty], counts=(100,))
    assert result["AR@100"] == pytest.approx(2 / 3)
    assert (result["objects"], result["proposals"]) == (3, 1.0)


def test_no_object_at_all_gives_no_number():
    result = recall.evaluate([(boxes(), boxes())], counts=(10,))
    assert result["AR@10"] is None and result["curves"]["10"] == [None] * 10
    assert " - " in recall.format_table({"x": result})
    assert recall.evaluate([], counts=(10,))["AR@10"] is None


def test_table_and_plot_have_a_row_and_a_line_for_each_set(rng):
    objects = random_boxes(rng, 6)
    near, far = objects + rng.normal(0, 1, (6, 4)), random_boxes(rng, 6)
    results = {
        name: recall.evaluate([(objects, p)], counts=(3, 6))
        for name, p in (("near", near), ("as long a name", far))
    }
    table = recall.format_table(results).splitlines()
    assert [line.rsplit(maxsplit=11)[0] for line in table[1:]] == [
        *("near 3", "near 6", "as long a name 3", "as long a name 6")
    ]
    assert len({len(line) for line in table}) == 1
    picture = recall.plot(results)
    assert picture.shape == (360, 720, 3)
    colours = {tuple(c) for c in picture.reshape(-1, 3).tolist()}
    assert {(200, 40, 40), (40, 90, 200)} <= colours
