"""Tables with one box a line."""

import cv2
import numpy as np
import pytest

from frcnn_jax.data.sources import csv

HEADER = "image,x1,y1,x2,y2,label"
ROWS = ["b.png,1,2,30,20,cat", "a.png,,,,,", "b.png,5.5,6,7,8,ant"]


def make(folder, lines, name="train.csv"):
    for image in ("a", "b"):
        cv2.imwrite(str(folder / f"{image}.png"), np.zeros((40, 60, 3), np.uint8))
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder)


def test_lines_of_one_image_belong_together(tmp_path):
    source = csv.load(split="train", root=make(tmp_path, [HEADER, *ROWS]))
    assert source.classes == ("ant", "cat")
    assert [e.image_id for e in source] == ["b.png", "a.png"]
    np.testing.assert_array_equal(source[0].boxes, [[1, 2, 30, 20], [5.5, 6, 7, 8]])
    assert source[0].classes.tolist() == [2, 1]
    assert source[1].boxes.shape == (0, 4)
    assert source.report == []


def test_other_names_splits_and_conventions(tmp_path):
    lines = [
        "\ufefffilename;width;kind;xmin;ymin;xmax;ymax;difficult;split",
        "a.png;60;dog;1;1;60;40;1;val",
        "b.png;60;cow;3;3;9;9;0;train",
    ]
    source = csv.load(
        split="val",
        root=make(tmp_path, lines, "all.csv"),
        annotations="all.csv",
        columns=dict(label="kind"),
        convention="voc",
        delimiter=";",
    )
    assert source.classes == ("cow", "dog") and len(source) == 1
    np.testing.assert_array_equal(source[0].boxes, [[0, 0, 60, 40]])
    assert source[0].ignore.tolist() == [True]


def test_bad_boxes_are_reported(tmp_path):
    root = make(tmp_path, [HEADER, "a.png,70,1,80,9,cat"])
    source = csv.load(split="train", root=root)
    (line,) = source.report
    assert line.startswith("a.png: dropped cat (70, 1, 80, 9): outside")


@pytest.mark.parametrize(
    "lines, options, message",
    [
        ([HEADER, "a.png,1,2,x,4,cat"], {}, "line 2: box .*expected four numbers"),
        ([HEADER, "a.png,1,2,,4,cat"], {}, "line 2: box .*expected four numbers"),
        (["a.png,1,2,3,4,cat"], {}, "no column image or filename.*is no header"),
        ([HEADER], dict(columns=dict(label="k")), "no column k, but image, x1"),
        ([HEADER], dict(columns=dict(lable="k")), "'lable' is none of .*: map one"),
        ([HEADER, '"' + "a" * 200_000], {}, r"line \d: field larger .*data.delimiter"),
        ([HEADER, *ROWS], dict(classes=("cat",)), "label 'ant' is not one of cat"),
        (
            [HEADER + ",split", ROWS[0] + ",val"],
            {},
            "no split 'train' in its .* but val: set",
        ),
        ([HEADER, "c.png,1,2,3,4,cat"], {}, "no image file .*c.png"),
        ([HEADER], dict(annotations="x.csv"), "no annotation file .*x.csv"),
    ],
)
def test_mistakes_are_named(tmp_path, lines, options, message):
    root = make(tmp_path, lines)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        csv.load(split="train", root=root, **options)
