"""Every layout is recognised, resolved, and read to the same boxes."""

import pathlib
import unicodedata

import numpy as np
import pytest

from frcnn_jax.data import folders, named, recognise, splits
from frcnn_jax.data.source import Example, Source
from frcnn_jax.data.sources import csv
from tests.data import layouts


def resolved(folder, **given):
    data = dict(name="auto", root=str(folder), train_split="auto", eval_split="auto")
    return recognise.resolve(data | given)


def read(data):
    """`{image's name: boxes with labels}` of both splits, and the reports."""
    options = {k: v for k, v in data.items() if not k.endswith(("_split", "name"))}
    found, report = [], []
    for split in (data["train_split"], data["eval_split"]):
        source = named.load_source(data["name"], split=split, **options)
        assert source.classes == layouts.CLASSES
        names = [splits.source_name(pathlib.Path(e.image).name) for e in source]
        for end in ("_png", "_jpg", " (1)"):
            names = [n.removesuffix(end) for n in names]
        boxes = [
            [
                (source.classes[c - 1], *box)
                for c, box in zip(e.classes, e.boxes.tolist(), strict=True)
            ]
            for e in source
        ]
        found.append(dict(zip(names, boxes, strict=True)))
        report += source.report
    return found, report


@pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda f: f.__name__)
def test_every_layout_is_read(layout, tmp_path):
    expected = layout(tmp_path)
    data, lines = resolved(tmp_path)
    assert data["name"] == expected.name
    assert (data["train_split"], data["eval_split"]) == expected[1:3]
    assert str(tmp_path) in lines[0] and expected.name in lines[0]
    (train, evaluation), _ = read(data)
    if expected.train is None:
        everything = sorted(layouts.NAMES)
        assert sorted([*train, *evaluation]) == everything
        assert (len(train), len(evaluation)) == (8, 2)
    else:
        assert sorted(train) == sorted(expected.train)
        assert sorted(evaluation) == sorted(expected.eval)
    for name, boxes in (train | evaluation).items():
        truth = layouts.TRUTH[name]
        assert [b[0] for b in boxes] == [b[0] for b in truth], name
        np.testing.assert_allclose(
            [b[1:] for b in boxes], [b[1:] for b in truth], atol=1e-4, err_msg=name
        )


def test_what_was_recognised_is_never_auto(tmp_path):
    layouts.voc_tool(tmp_path)
    data, _ = resolved(tmp_path, group="x", flip=True)
    assert data == dict(
        name="voc",
        root=str(tmp_path),
        train_split="all[:80%]",
        eval_split="all[80%:]",
        annotations="labels_voc",
        group="x",
        flip=True,
    )
    assert recognise.resolve(data) == (data, [])  # and again, when resumed


def test_given_leaves_and_splits_stay(tmp_path):
    layouts.csv_tensorflow(tmp_path)
    given = dict(annotations="data/pets_labels.csv", eval_split="all[:2]")
    data, _ = resolved(tmp_path, **given)
    assert data["annotations"] == "data/pets_labels.csv"
    assert (data["train_split"], data["eval_split"]) == ("all[:80%]", "all[:2]")


def test_two_formats_are_an_error_that_names_the_flag(tmp_path):
    layouts.voc_tool(tmp_path)
    layouts.csv_tabs(tmp_path)
    with pytest.raises(ValueError, match=r"one format: csv .*voc .*=csv\|voc"):
        resolved(tmp_path)
    data, _ = resolved(tmp_path, name="csv", images="pictures")
    assert data["annotations"] == "boxes.tsv" and data["images"] == "pictures"


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(flipp=True), "data.flipp: neither the pipeline nor the source 'yolo'"),
        (dict(delimiter=";"), "data.delimiter: neither .*there are .*labels"),
        (dict(name="yollo"), "no data source 'yollo': there are coco"),
        (dict(root=""), "data.root is empty"),
        (dict(root="nowhere"), "no folder nowhere: set data.root"),
    ],
)
def test_mistakes_are_named(tmp_path, given, message):
    layouts.yolo_roboflow(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        resolved(tmp_path, **given)


def test_a_folder_of_nothing_says_what_is_in_it(tmp_path):
    layouts.image(tmp_path / "a.png")
    layouts.text(tmp_path / "b.json", "{}")
    with pytest.raises(FileNotFoundError, match="coco.*1 images; others: b.json"):
        resolved(tmp_path)


def test_splits_that_cannot_be_told(tmp_path):
    with pytest.raises(ValueError, match="has the splits a, b: say .*train_split"):
        folders.choose_splits(["a", "b"])
    with pytest.raises(ValueError, match="2007_train, 2012_train"):
        folders.choose_splits(["2007_train", "2012_train"])
    assert folders.choose_splits(["trainval", "val", "test"])[:2] == (
        "trainval",
        "test",
    )


def test_what_the_reports_say(tmp_path):
    layouts.yolo_roboflow(tmp_path / "yolo")
    _, report = read(resolved(tmp_path / "yolo")[0])
    assert f"{tmp_path}/yolo/data.yaml: nc is 3 but there are 2 names" in report[0]
    layouts.csv_semicolon(tmp_path / "csv")
    _, report = read(resolved(tmp_path / "csv")[0])
    assert "boxes.csv: read as cp1252, it is no utf-8" in report[0]
    layouts.coco_roboflow(tmp_path / "coco")
    _, report = read(resolved(tmp_path / "coco")[0])
    assert "left out category 0 'pets', Roboflow's root" in report[0]
    layouts.csv_no_finding(tmp_path / "none")
    _, report = read(resolved(tmp_path / "none")[0])
    assert any("1 lines have a label but no box ('No finding'): " in r for r in report)
    layouts.voc_shapes(tmp_path / "voc")
    _, report = read(resolved(tmp_path / "voc")[0])
    assert any("12 rotated boxes or polygons have the upright box" in r for r in report)


# ---------------------------------------------------------------------------- splits


def of_names(*names):
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    return Source([Example(f"set/{n}", i, *none) for i, n in enumerate(names)], ("a",))


def shared(names, **options):
    source = of_names(*names)
    parts = [splits.share(source, *p, **options) for p in ((0, 80), (80, 100))]
    return [{pathlib.Path(e.image).name for e in part} for part in parts]


def test_a_hash_of_names_is_the_same_in_any_order():
    names = [f"{i}.jpg" for i in range(50)]
    train, val = shared(names)
    assert (len(train), len(val)) == (40, 10) and not train & val
    assert shared(names[::-1]) == [train, val]
    # The last ten by SHA-256: for i in $(seq 0 49); do printf $i | sha256sum; ...; sort
    assert val == {f"{i}.jpg" for i in (2, 5, 6, 15, 20, 24, 31, 32, 33, 40)}


def test_augmented_copies_stay_together():
    names = [f"p{i}_jpg.rf.{k}a0{i}.jpg" for i in range(10) for k in range(3)]
    train, val = shared(names)
    assert (len(train), len(val)) == (24, 6)
    assert {n.split(".")[0] for n in val}.isdisjoint(n.split(".")[0] for n in train)


def test_frames_of_a_video_stay_together():
    names = [f"video{i}/{k:03d}.jpg" for i in range(5) for k in range(4)]
    source = of_names(*names)
    part = splits.share(source, 80, 100, group=r"(video\d)/", root="set")
    assert len({e.image.split("/")[1] for e in part}) == 1 and len(part) == 4
    assert "80% to 100% by a hash of 5 names" in part.report[0]
    with pytest.raises(ValueError, match="data.group='\\(' is no regular"):
        splits.share(source, 80, 100, group="(")


def test_two_images_are_one_for_each():
    assert [len(part) for part in shared(["a.jpg", "b.jpg"])] == [1, 1]
    with pytest.raises(ValueError, match="a split of 80% to 20%"):
        splits.share(of_names("a.jpg"), 80, 20)


def test_parts_of_one_split_are_read_once(tmp_path, monkeypatch):
    layouts.csv_tabs(tmp_path)
    calls, load = [], csv.load

    def counted(**kwargs):
        calls.append(kwargs["split"])
        return load(**kwargs)

    monkeypatch.setattr(csv, "load", counted)
    options = dict(root=str(tmp_path), annotations="boxes.tsv", images="pictures")
    a, b = named.load_splits("csv", "all[:80%]", "all[80%:]", **options)
    assert calls == ["all"]
    whole = named.load_source("csv", split="all", **options)
    ids = sorted(e.image_id for part in (a, b) for e in part)
    assert ids == sorted(e.image_id for e in whole) and len(a) and len(b)


@pytest.mark.parametrize(
    "files, said",
    [
        ({"pets.zip": ""}, "unpack pets.zip$"),
        ({"a.png": "", "b.png": ""}, "images but no annotations"),
        ({"a.png": "", "a.txt": "0 .5 .5 .1 .1"}, "no class names: write them into "),
        ({"a.png": "", "a.txt": "cat 0.0 0 -1.5 2 4 9 9"}, "a.txt and its like .* are"),
        ({"a.csv": "a.jpg,1,2,3,4,cat"}, "a.csv has no line with the names of its"),
        (
            {"a.csv": "pic,left,top,right,bottom,kind"},
            "a.csv has the columns pic, left",
        ),
        ({"a.csv": "x;region_shape_attributes;y;z;w"}, "a.csv is of VGG Image Annot"),
        ({"a.json": '{"shape_attributes": 1, "region_attributes": 2}'}, "is of VGG Im"),
        (
            {"a.json": '[{"result": [{"rectanglelabels": []}]}]'},
            "of Label Studio's own",
        ),
        ({"a.ndjson": '{"data_row": {}}'}, "a.ndjson is of Labelbox"),
        ({"a.jsonl": '{"data_row": {}}'}, "a.jsonl is of Labelbox"),
        ({"a.manifest": '{"source-ref": "s3://a.jpg"}'}, "SageMaker.*: convert it to"),
        ({"a.odgt": '{"ID": "1", "gtboxes": []}'}, "of CrowdHuman.*: convert it to"),
        (
            {"a.json": '[{"image_id": 1, "bbox": [], "score": 1}]'},
            "of a detector's results, which is not read: give the annotations",
        ),
        (
            {"data/train-0.parquet": "PAR1"},
            "train-0.parquet is Parquet, .*data.name=hf",
        ),
        (
            {"train.tfrecord": "x"},
            "train.tfrecord is TFRecord, which is not read: conv",
        ),
        ({"gt.txt": "1,1,912,484,97,109,0,7,1"}, r"gt.txt \('1,1,912,4.* of no format"),
        ({"n/dog_1": "<annotation><object></object>"}, "n/dog_1 .*rename them to .xml"),
        (
            {"metadata.csv": "file_name,label\na.png,cat"},
            "file_name, label, none of th",
        ),
        (
            {"_classes.csv": "filename,cat,dog,ant,bee\na.png,1,0,0,1"},
            "none of them fo",
        ),
        (
            {"project.csv": 'id,image,label,a,b\n1,a,"[{""rectanglelabels"": 1}]",,'},
            "project.csv is of Label Studio's own kind",
        ),
        (
            {"a.xml": '<annotations><image id="0" name="a"><box label="x"/></image>'},
            "a.xml is of CVAT's own kind, which is not read: export it as COCO JSON",
        ),
        (
            {"a.json": '[{"image": "a", "annotations": [{"coordinates": 1}]}]'},
            "a.json is of Create ML, which is not read: export it as COCO JSON",
        ),
    ],
)
def test_what_is_not_read_is_named_with_the_cure(files, said, tmp_path):
    for name, content in files.items():
        layouts.text(tmp_path / name, content)
    with pytest.raises(FileNotFoundError, match=said):
        resolved(tmp_path)


def test_names_in_another_unicode_form_are_found():
    """macOS writes a letter and its accent, other machines one character."""
    apart, one = (unicodedata.normalize(form, "bär 1.jpg") for form in ("NFD", "NFC"))
    assert apart != one
    for there, asked in ((apart, one), (one, apart)):
        folder = folders.Folder(pathlib.Path(), (f"images/{there}",))
        pictures = folders.Pictures(folder)
        assert pictures.find(asked) == f"images/{there}"
        assert pictures.of_stem(asked[:-4]) == f"images/{there}"


def test_a_score_in_a_label_file_is_named(tmp_path):
    layouts.yolo_darknet(tmp_path)
    file = tmp_path / "obj_train_data" / "img 0.txt"
    file.write_text("0 0.5 0.5 0.1 0.1 0.93\n")
    with pytest.raises(ValueError, match="6 numbers, .*is the sixth a score"):
        read(resolved(tmp_path)[0])


def test_xml_of_an_encoding_that_nobody_knows_is_named(tmp_path):
    layouts.voc_latin(tmp_path)
    file = tmp_path / "img 0.xml"
    file.write_bytes(file.read_bytes().replace(b"ISO-8859-1", b"klingon-1"))
    with pytest.raises(ValueError, match="img 0.xml: it declares the unknown encoding"):
        read(resolved(tmp_path)[0])


def test_a_table_without_labels_has_one_class(tmp_path):
    layouts.image(tmp_path / "a.png")
    layouts.image(tmp_path / "b.png")
    file, header = tmp_path / "boxes.csv", "image,xmin,ymin,xmax,ymax"
    layouts.text(file, f"{header}\na.png,1,2,9,8\nb.png,,,,\n")
    data, _ = resolved(tmp_path)
    assert data["classes"] == ("object",)
    given = dict(root=str(tmp_path), annotations="boxes.csv", classes=("car",))
    source = named.load_source("csv", split="all", **given)
    assert source.classes == ("car",) and [len(e.boxes) for e in source] == [1, 0]
    layouts.text(file, f"{header},kind\na.png,1,2,9,8,x\n")
    with pytest.raises(FileNotFoundError, match="has the columns image, .* kind"):
        resolved(tmp_path)  # which class a box is of is not guessed


def one_column(folder, *boxes, header="image,bbox,label"):
    layouts.image(folder / "a.png")  # 60 x 40 pixels
    lines = [header, *(f'a.png,"{box}",cat' for box in boxes)]
    layouts.text(folder / "boxes.csv", "\n".join(lines) + "\n")


def test_what_the_numbers_of_one_column_are_is_told_from_all_of_them(tmp_path):
    one_column(tmp_path, "[1, 2, 30, 20]", "(10 20 40 38)")  # 20 + 38 is outside
    data, lines = resolved(tmp_path)
    assert data["convention"] == "xyxy" and "as xywh 1 of 2 boxes are none" in lines[0]
    one_column(tmp_path, "[1, 2, 30, 20]", "[10, 20, 5.5, 10]")
    data, _ = resolved(tmp_path)
    assert data["convention"] == "xywh"


@pytest.mark.parametrize(
    "boxes, said",
    [
        (["[1, 2, 30, 20]"], "all 1 boxes would be right as xywh and as xyxy"),
        (["[.1, .2, .3, .4]"], "no number is above 1: they seem to be shares"),
        (["[9, 9, 5, 5]", "[30, 20, 50, 30]"], "1 as xywh and 1 as xyxy would lie"),
        (["[]"], "there is no box"),
    ],
)
def test_numbers_of_one_column_that_nothing_tells(boxes, said, tmp_path):
    one_column(tmp_path, *boxes)
    with pytest.raises(
        ValueError, match=f"column 'bbox'.*{said}.*data.convention=xywh"
    ):
        resolved(tmp_path)
    data, _ = resolved(tmp_path, name="csv", convention="xywh")
    assert data["convention"] == "xywh" and data["annotations"] == "boxes.csv"


@pytest.mark.parametrize("box", ["[1, 2, 3]", "1-2-3-4", "cat", "[1, 2, 3, 4, 5]"])
def test_what_is_no_box_is_named(box, tmp_path):
    one_column(tmp_path, box)
    with pytest.raises(ValueError, match="boxes.csv, line 2: box .*expected four"):
        resolved(tmp_path)


def test_labels_of_several_boxes_are_as_many(tmp_path):
    layouts.image(tmp_path / "a.png")
    content = 'image,boxes,labels\na.png,"[[1,2,9,8],[3,4,9,9]]","[\'cat\']"\n'
    layouts.text(tmp_path / "boxes.csv", content)
    with pytest.raises(ValueError, match="line 2: 2 boxes and the labels .*one for"):
        resolved(tmp_path)


def test_the_devkits_years_below_their_archives(tmp_path):
    for archive, year in (("trainval_06-Nov-2007", 2007), ("test", 2012)):
        base = tmp_path / archive / "VOCdevkit" / f"VOC{year}"
        layouts.voc_devkit(base)
    data = dict(name="voc", root=str(tmp_path))
    for split in ("2007_train", "2012_train"):
        assert len(named.load_source(split=split, **data)) == len(layouts.TRAIN)
    with pytest.raises(FileNotFoundError, match="and below, and found .*name the year"):
        named.load_source(split="train", **data)
