"""TFDS: array_record that is really written and read, and TFDS's own mock data."""

import os
import pickle
import subprocess
import sys
import types
from unittest import mock

import cv2
import numpy as np
import pytest
import tensorflow_datasets
from tensorflow_datasets.object_detection import coco as tfds_coco
from tensorflow_datasets.testing import mocking

from frcnn_jax.data import pipeline
from frcnn_jax.data.example import decode
from frcnn_jax.data.source import Example, Source
from frcnn_jax.data.sources import coco, records, shapes, tfds, voc
from tests.data.sources import test_voc


@pytest.fixture
def source(tmp_path, rng):
    """Three files of several sizes; crowds, areas, and an image without objects."""
    examples = []
    for i, (h, w) in enumerate([(40, 60), (37, 53), (61, 20)]):
        path = tmp_path / f"{i}.jpg"
        cv2.imwrite(str(path), rng.integers(0, 255, (h, w, 3), np.uint8))
        low = rng.integers(0, 10, (i, 2))
        boxes = np.concatenate([low, low + rng.integers(1, 9, (i, 2))], axis=1)
        examples.append(
            Example(
                image=str(path),
                image_id=100 + i,
                boxes=boxes.astype(np.float32),
                classes=np.arange(1, i + 1, dtype=np.int32),
                ignore=np.arange(i) == 1,
                size=(h, w),
                area=np.arange(i, dtype=np.float32) + 0.5,
            )
        )
    return Source(examples, ("ant", "bee"), (3, 17))


def assert_same(a, b):
    assert a.image_id == b.image_id and a.size == b.size
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.classes, b.classes)
    np.testing.assert_array_equal(a.ignore, b.ignore)
    np.testing.assert_array_equal(decode(a), decode(b))


def test_what_is_written_is_read(source, tmp_path):
    folder = records.write({"train": source, "val": source}, tmp_path / "out")
    assert len(list(folder.glob("*.array_record*"))) == 2
    found = tfds.load(split="val", root=str(tmp_path / "out"))
    assert (found.classes, found.category_ids) == (source.classes, (3, 17))
    assert len(found) == 3
    for a, b in zip(source, found, strict=True):
        assert_same(a, b)
        np.testing.assert_array_equal(a.area, b.area)
        with open(a.image, "rb") as file:
            assert b.image == file.read()
    assert coco.to_coco(found)["annotations"] == coco.to_coco(source)["annotations"]
    assert [e.image_id for e in found.examples[1:]] == [101, 102]
    assert_same(pickle.loads(pickle.dumps(found))[1], source[1])


def test_a_name_that_is_not_utf8_is_written_readably(tmp_path):
    file = tmp_path / os.fsdecode(b"\xff\xe9.png")
    file.write_bytes(cv2.imencode(".png", np.full((8, 9, 3), 7, np.uint8))[1].tobytes())
    box, none = np.float32([[1, 2, 5, 6]]), np.zeros(1, bool)
    example = Example(str(file), str(file), box, np.int32([1]), none, (8, 9))
    records.write({"train": Source([example], ("cat",))}, tmp_path / "out")
    (read,) = tfds.load(split="train", root=str(tmp_path / "out"))
    written = records._record(example, 1, ("cat",))
    assert written["image/filename"] == r"\xff\xe9.png"
    np.testing.assert_allclose(read.boxes, box, atol=1e-5)
    assert read.image == file.read_bytes()


def test_batches_of_records(source, tmp_path):
    records.write({"train": source}, tmp_path / "out")
    data = pipeline.build(
        "tfds",
        root=str(tmp_path / "out"),
        **dict(batch_size=3, eval_batch_size=3, seed=0, train_split="train"),
        **dict(eval_split="train[:2]", short_side=16, max_side=32, canvas=(16, 32)),
    )
    assert sorted(next(data.train_batches()).index) == [0, 1, 2]
    assert len(data.eval) == 2


def test_a_broken_picture_is_named(source, tmp_path):
    broken = source[0]._replace(image=b"nothing", image_id=5)
    with pytest.raises(ValueError, match="cannot decode the image 5"):
        decode(broken)


def test_drawn_pictures_are_kept_to_the_pixel(tmp_path):
    drawn = shapes.load(split="val", num_images=2, size=64)
    records.write({"val": drawn}, tmp_path)
    found = tfds.load(split="val", root=str(tmp_path))
    assert found[0].area is None
    for a, b in zip(drawn, found, strict=True):
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
        np.testing.assert_array_equal(a.image, decode(b))


def test_a_voc_folder(tmp_path):
    xml = test_voc.xml(("dog", 1, 1, 60, 40), ("cat", 11, 21, 30, 35, 1))
    root = test_voc.make(tmp_path / "voc", {"a": xml, "b": test_voc.xml()})
    written = voc.load(split="train", root=root)
    records.write({"train": written}, tmp_path / "out", name="my_voc")
    read = tfds.load(split="train", dataset="my_voc", root=str(tmp_path / "out"))
    for a, b in zip(written, read, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        assert a.ignore.tolist() == b.ignore.tolist()


def test_nothing_needs_tensorflow():
    code = (
        "import sys, tempfile\n"
        "from frcnn_jax.data.sources import records, shapes, tfds; "
        "d = tempfile.mkdtemp(); "
        "records.write({'a': shapes.load(split='val', num_images=1)}, d); "
        "print(len(tfds.load(split='a', root=d)[0].image) > 0, "
        "'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("True False\n"), done.stderr


def test_mistakes_are_named(source, tmp_path):
    other = Source([], ("ant",))
    with pytest.raises(ValueError, match="different classes"):
        records.write({"a": source, "b": other}, tmp_path / "out")
    records.write({"a": source}, tmp_path / "out")
    with pytest.raises(FileExistsError, match="is there already"):
        records.write({"a": source}, tmp_path / "out")
    records.write({"a": source}, tmp_path / "out", name="second")
    with pytest.raises(FileNotFoundError, match="holds 2 prepared data sets"):
        tfds.load(split="a", root=str(tmp_path / "out"))
    assert len(tfds.load(split="a", dataset="second", root=str(tmp_path / "out"))) == 3
    with pytest.raises(ValueError, match="nope"):
        tfds.load(split="nope", dataset="second", root=str(tmp_path / "out"))


def test_what_is_not_prepared_says_the_command(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        tfds.load(split="train", dataset="voc/2007", root=str(tmp_path))
    command = (
        f"tfds.builder('voc/2007', data_dir='{tmp_path}', file_format='array_record')"
        '.download_and_prepare()"'
    )
    assert str(raised.value).endswith(command)


# ------------------------------------------------------- TFDS's own builders, mocked


def mocked(name, tmp_path, split):
    """`load` on the features of TFDS's builder, with what its mock draws for them."""

    def fake(self, split, **_):
        # Sequences of one example must be equally long: ten here.
        draw = mocking.RandomFakeGenerator(
            self.info.features, num_examples=4, constant_dynamic_shape=True
        )
        return [draw[i] for i in range(4)]

    stub = types.SimpleNamespace(int64=np.int64)  # all that coco takes of TensorFlow
    with mock.patch.object(tfds_coco, "tf", stub):
        builder = tensorflow_datasets.builder(
            name, data_dir=tmp_path, file_format="array_record"
        )
        builder.data_path.mkdir(parents=True)
        builder.info.write_to_directory(builder.data_dir)
    with tensorflow_datasets.testing.mock_data(
        data_dir=str(tmp_path),
        policy=tensorflow_datasets.testing.MockPolicy.USE_FILES,
        as_data_source_fn=fake,
    ):
        return tfds.load(split=split, dataset=name), fake(builder, split)


def expected_boxes(raw, size, first):
    """Boxes of a record in pixels, one by one; `first` is what the first pixel is."""
    h, w = size
    out = []
    for y1, x1, y2, x2 in raw["objects"]["bbox"].astype(np.float64):
        box = [x1 * w - first, y1 * h - first, x2 * w, y2 * h]
        if box[2] > box[0] and box[3] > box[1] and min(box[2], box[3]) > 0:
            out.append([max(0.0, v) for v in box])
    return np.array(out).reshape(-1, 4)


def test_voc_2007(tmp_path):
    source, raw = mocked("voc/2007", tmp_path, "train")
    assert source.classes == voc.CLASSES
    assert len(source) == len(raw) == 4
    ignored = []
    for example, record in zip(source, raw, strict=True):
        size = record["image"].shape[:2]
        np.testing.assert_allclose(
            example.boxes, expected_boxes(record, size, first=1), atol=1e-3
        )
        assert np.isin(example.classes, record["objects"]["label"] + 1).all()
        ignored += example.ignore.tolist()
    assert 0 < sum(ignored) < len(ignored) and any(
        "no area" in line for line in source.report
    )


def test_coco_2017(tmp_path):
    source, raw = mocked("coco/2017", tmp_path, "validation")
    assert len(source.classes) == 80
    assert source.category_ids[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13)
    assert len(source.category_ids) == 80 and source.category_ids[-1] == 90
    for example, record in zip(source, raw, strict=True):
        size = record["image"].shape[:2]
        assert example.image_id == record["image/id"]
        np.testing.assert_allclose(
            example.boxes, expected_boxes(record, size, first=0), atol=1e-3
        )
        assert example.area is not None and len(example.area) == len(example.boxes)


def test_a_builder_without_boxes(tmp_path):
    with pytest.raises(
        ValueError, match="mnist has no boxes: its features are image, label"
    ):
        mocked("mnist", tmp_path, "train")


@pytest.mark.prepare
def test_tfds_prepares_voc_and_we_read_what_it_wrote(tmp_path, monkeypatch, rng):
    pytest.importorskip("tensorflow", reason="`make test-prepare` brings it")
    devkit = tmp_path / "extracted" / "VOCdevkit" / "VOC2007"
    for split in ("train", "val", "test"):
        annotations = {}
        for i in range(3):
            low = rng.integers(1, 20, 2)
            box = (*low, *(low + rng.integers(2, 20, 2)))
            text = test_voc.xml(("dog", *box, i % 2), ("cat", 1, 1, 60, 40))
            more = "<pose>Left</pose><truncated>0</truncated>"
            annotations[f"{split}{i}"] = text.replace(
                "<difficult>", more + "<difficult>"
            )
        test_voc.make(devkit, annotations, split=split, suffix=".jpg")
    monkeypatch.setattr(
        tensorflow_datasets.download.DownloadManager,
        "download_and_extract",
        lambda self, urls: {name: str(tmp_path / "extracted") for name in urls},
    )
    builder = tensorflow_datasets.builder(
        "voc/2007", data_dir=str(tmp_path / "out"), file_format="array_record"
    )
    builder.download_and_prepare()
    for split, ours in (("train", "train"), ("validation", "val"), ("test", "test")):
        read = tfds.load(split=split, dataset="voc/2007", root=str(tmp_path / "out"))
        expected = voc.load(split=ours, root=str(devkit), classes="voc")
        assert read.classes == expected.classes
        found = {e.image_id: e for e in read}
        for example in expected:
            assert_same(found.pop(example.image_id), example)
        assert not found
