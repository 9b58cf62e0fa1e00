"""Pictures: what can be said of them without eyes."""

import numpy as np
import pytest

from frcnn_jax.evaluation import draw

NAMES = ("cat", "dog", "fish")


def gray(height=200, width=300):
    return np.full((height, width, 3), 90, np.uint8)


def has(picture, shade):
    return (picture == np.array(shade)).all(-1)


def test_draw_marks_the_box_and_leaves_the_image():
    image = gray()
    boxes = np.array([[100.0, 80.0, 200.0, 160.0]])
    picture = draw.draw(image, boxes, np.array([2]), np.array([0.5]), names=NAMES)
    assert (image == 90).all() and picture.shape == image.shape
    shade = has(picture, draw.color(2))
    # Pixels 100..199 and 80..159 belong to the box: its border is drawn on them.
    assert shade[80:160, 100].all() and shade[80:160, 199].all()
    assert shade[80, 100:200].all() and shade[159, 100:200].all()
    assert not shade[90:150, 110:190].any()
    assert shade[65:80].any() and not shade[:50].any()  # the label stands on the box


def test_draw_nothing_gives_a_copy():
    image = gray()
    for scores in (None, np.zeros(0)):
        picture = draw.draw(image, np.zeros((0, 4)), np.zeros(0, int), scores)
        assert (picture == image).all() and picture is not image


def test_draw_takes_views_of_other_layouts():
    image = np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3)[::-1, :, ::-1]
    boxes, classes = np.array([[10.0, 20.0, 40.0, 50.0]]), np.array([1])
    for side in (0, 120):
        got = draw.draw(image, boxes, classes, min_side=side)
        plain = draw.draw(np.ascontiguousarray(image), boxes, classes, min_side=side)
        assert (got == plain).all()


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 300, 200],
        [0, 0, 4, 4],
        [296, 0, 300, 4],
        [0, 196, 4, 200],
        [296, 196, 300, 200],
        [-50, -50, 900, 900],
        [400, 400, 500, 500],
        [100, 100, 100, 100],
    ],
)
def test_draw_label_stays_inside_whole(box):
    # In the middle a label has a known number of pixels of paper and ink.
    def label_pixels(box):
        args = np.array([box], float), np.array([3]), np.array([0.5])
        bare = draw.draw(gray(), *args[:2], names=(" ",) * 3)
        full = draw.draw(gray(), *args, names=("aquarium",) * 3)
        return int((full != bare).any(-1).sum()), full

    middle, _ = label_pixels([130, 90, 170, 110])
    border, picture = label_pixels(box)
    assert picture.shape == (200, 300, 3)
    assert border > 0.6 * middle  # some of it may lie on the box's own line


def test_draw_better_score_lies_on_top():
    boxes = np.array([[50.0, 60, 150, 160], [50.0, 60, 150, 160]])
    for scores, top in (([0.9, 0.2], 1), ([0.2, 0.9], 2)):
        picture = draw.draw(gray(), boxes, np.array([1, 2]), np.array(scores))
        assert has(picture, draw.color(top))[100, 50]


def test_draw_labels_of_equal_boxes_do_not_cover_each_other():
    boxes = np.tile([[100.0, 80.0, 200.0, 160.0]], (4, 1))
    classes = np.array([1, 2, 3, 4])
    picture = draw.draw(gray(), boxes, classes, np.linspace(0.9, 0.6, 4))
    alone = draw.draw(gray(), boxes[:1], classes[:1], np.array([0.9]))
    paper = has(alone, draw.color(1)).sum()
    for c in (1, 2, 3, 4):
        assert has(picture, draw.color(c)).sum() > 0.2 * paper


def test_draw_label_of_the_best_is_never_covered():
    # Far more labels than the picture has room for.
    boxes, classes = np.tile([[5.0, 5.0, 55.0, 55.0]], (30, 1)), np.arange(1, 31)
    names = tuple(f"class {c}" for c in classes)
    scores = np.linspace(0.99, 0.5, 30)
    crowd = draw.draw(gray(60, 60), boxes, classes, scores, names=names)
    alone = draw.draw(gray(60, 60), boxes[:1], classes[:1], scores[:1], names=names)
    paper = has(alone, draw.color(1))
    rows = paper.mean(1) > 0.4  # those of the label, and of the box's lower line
    rows[40:] = False
    assert paper[rows].sum() > 200
    same = (crowd == alone).all(-1)
    assert same[rows][paper[rows]].all()


def test_draw_truth_is_dashed_thinner_and_under():
    box = np.array([[50.0, 60.0, 250.0, 180.0]])
    none = np.zeros((0, 4)), np.zeros(0, int)
    big = np.full((480, 640, 3), 90, np.uint8)
    dashed = draw.draw(big, *none, truth=box, truth_classes=np.array([2]))
    shade, black = has(dashed, draw.color(2)), has(dashed, (0, 0, 0))
    assert shade[60, 50:250].any() and black[60, 50:250].any()
    assert (shade | black)[60, 50:250].all()
    solid = draw.draw(big, box, np.array([2]))
    assert (solid[120, 50:60] != 90).any(-1).sum() > (dashed[120, 50:60] != 90).any(
        -1
    ).sum()
    white = draw.draw(big, *none, truth=box)
    assert has(white, (255, 255, 255))[60, 50:250].any()
    both = draw.draw(big, box, np.array([2]), truth=box)
    assert (both == solid).all()


def test_draw_min_side_enlarges_picture_and_boxes():
    boxes = np.array([[10.0, 20.0, 30.0, 40.0]])
    small = gray(60, 80)
    picture = draw.draw(small, boxes, np.array([1]), min_side=240)
    assert picture.shape == (240, 320, 3)
    shade = has(picture, draw.color(1))
    assert shade[80:160, 40].all() and shade[80:160, 119].all()
    assert draw.draw(small, boxes, np.array([1]), min_side=30).shape == small.shape


def test_draw_names_and_colors_may_be_missing():
    boxes, classes = np.array([[100.0, 80, 200, 160]]), np.array([5])
    assert has(draw.draw(gray(), boxes, classes, names=NAMES), draw.color(5)).any()
    own = draw.draw(gray(), boxes, np.array([1]), colors=[(1, 2, 3)])
    assert has(own, (1, 2, 3)).any() and not has(own, draw.color(1)).any()


def test_draw_refuses_boxes_that_are_not_finite():
    boxes = np.array([[0.0, 0, 1, 1], [0, 0, np.nan, 1]])
    with pytest.raises(ValueError, match=r"boxes\[1\] is .*nan"):
        draw.draw(gray(), boxes, np.array([1, 1]))


def test_color_is_stable_and_tells_classes_apart():
    # Hue .98, saturation .85, value 1: 1, 1 - .85, 1 - .85 * .88 (.98 * 6 = 5.88).
    assert draw.color(1) == (255, 38, 64)
    colors = np.array([draw.color(c) for c in range(1, 91)])
    assert len(np.unique(colors, axis=0)) == 90
    assert colors.min() >= 0 and colors.max() <= 255
    assert np.abs(np.diff(colors, axis=0)).max(1).min() > 100  # neighbours differ much


def test_sheet_places_images_in_rows_and_keeps_their_shape():
    red = np.full((40, 80, 3), (255, 0, 0), np.uint8)
    blue = np.full((80, 40, 3), (0, 0, 255), np.uint8)
    page = draw.sheet([red, blue, red], columns=2, side=40, gap=4)
    # First row as high as blue (40), second as high as red (20): 4+40+4+20+4 = 72.
    assert page.shape == (72, 92, 3)
    assert has(page[14:34, 4:44], (255, 0, 0)).all()
    assert has(page[4:44, 58:78], (0, 0, 255)).all()
    assert has(page[48:68, 4:44], (255, 0, 0)).all()
    assert has(page, (255, 255, 255)).sum() == 72 * 92 - 3 * 20 * 40
    assert draw.sheet([red], columns=4, side=40, gap=4).shape == (28, 48, 3)


def test_sheet_refuses_no_images():
    with pytest.raises(ValueError, match="at least one"):
        draw.sheet([])
