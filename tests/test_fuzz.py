"""Damaged files of every format that is read: a result, or an error that names them.

Each case is a small good file, changed `COUNT` times by a seeded generator: bytes
flipped, cut out, repeated, cut off; numbers, quotes and brackets of texts replaced.
"""

import json
import pathlib
import pickle
import shutil
import warnings

import cv2
import numpy as np
import pytest

from frcnn_jax.data import images, named, proposal_files, recognise
from frcnn_jax.data.sources import records, shapes
from frcnn_jax.data.sources import tfds as prepared
from frcnn_jax.evaluation import files as result_files
from frcnn_jax.weights import files as weight_files
from tests.data import layouts

COUNT = 600
TOKENS = (
    *(b"0", b"-1", b"1e999", b"NaN", b"1.5", b"99999999999999999999", b"null", b"true"),
    *(b"{}", b"[]", b'""', b"\x00", b"\xff", b"\xc3\x28", b"..", b"/", b"\\", b"\n"),
    *(b",", b";", b"<", b">", b"&lt;", b'"', b"'", b"]", b"}", b"!!python/object:x.y"),
)


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """One to four changes somewhere in the bytes."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        a, b = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        b = min(b, a + int(rng.integers(1, 64)))
        match rng.integers(0, 7):
            case 0:  # some bits
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            case 1:
                data[rng.integers(len(data))] = int(rng.integers(256))
            case 2:
                del data[a:b]
            case 3:
                data[a:a] = data[a:b]
            case 4:
                del data[max(1, a) :]
            case 5:
                data[a:b] = TOKENS[rng.integers(len(TOKENS))]
            case _:
                data[a:a] = TOKENS[rng.integers(len(TOKENS))]
    return bytes(data)


def of_layout(layout, file):
    """A case: a set's folder, the file in it to damage, and reading all of it."""

    def make(root):
        layout(root)
        data = dict(name="auto", root=str(root), train_split="auto", eval_split="auto")
        data, _ = recognise.resolve(data)
        options = {k: v for k, v in data.items() if not k.endswith(("split", "name"))}

        def read(_):
            split = data["train_split"].partition("[")[0]
            named.load_source(data["name"], split=split, **options)

        return root / file, read

    return make


def of_recognition(layout, file):
    """The same, but only looked at."""

    def make(root):
        layout(root)
        return root / file, lambda _: recognise.recognise(str(root))

    return make


def of_image(suffix):
    def make(root):
        return layouts.image(root / f"a{suffix}"), lambda p: images.load_image(str(p))

    return make


def of_size(suffix):
    def make(root):
        return layouts.image(root / f"a{suffix}"), lambda p: images.image_size(str(p))

    return make


ARRAYS = dict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.zeros(4, np.int64))


def npz_weights(root):
    weight_files.write_npz(root / "w.npz", ARRAYS)
    return root / "w.npz", weight_files.read_arrays


def safetensors(root):
    weight_files.write_safetensors(root / "w.safetensors", ARRAYS)
    return root / "w.safetensors", weight_files.read_arrays


def of_golden(name):
    def make(root):
        shutil.copy(pathlib.Path(__file__).parent / "goldens" / name, root)
        return root / name, weight_files.read_arrays

    return make


def pkl(root):
    (root / "w.pkl").write_bytes(pickle.dumps(dict(model=ARRAYS), 2))
    return root / "w.pkl", weight_files.read_arrays


def proposals(root):
    found = {"1": proposal_files.Scored(np.ones((2, 4)), np.ones(2))}
    proposal_files.write(root / "p.npz", found)
    return root / "p.npz", proposal_files.read


def annotations(root):
    layouts.text(root / "a.json", layouts.coco(layouts.VAL))
    return root / "a.json", result_files.read_annotations


def detections(root):
    truth = json.loads(layouts.coco(layouts.VAL))
    row = dict(image_id=1, category_id=1, bbox=[1.0, 2.0, 3.0, 4.0], score=0.5)
    layouts.text(root / "d.json", json.dumps([row] * 3))
    return root / "d.json", lambda p: result_files.read_detections(p, truth)


def of_records(pattern):
    def make(root):
        part = {"a": shapes.load(split="val", num_images=1, size=64)}
        (file,) = records.write(part, root).glob(pattern)
        return file, lambda _: list(prepared.load(split="a", root=str(root)))

    return make


CASES = dict(
    coco=of_layout(layouts.coco_fiftyone, "labels.json"),
    coco_seen=of_recognition(layouts.coco_fiftyone, "labels.json"),
    voc=of_layout(layouts.voc_devkit, "Annotations/img 0.xml"),
    voc_tool=of_layout(layouts.voc_beside, "img 0.xml"),
    voc_list=of_layout(layouts.voc_devkit, "ImageSets/Main/train.txt"),
    voc_seen=of_recognition(layouts.voc_lists, "train.txt"),
    yolo=of_layout(layouts.yolo_ultralytics, "labels/train/img 0.txt"),
    yolo_yaml=of_layout(layouts.yolo_roboflow, "data.yaml"),
    yolo_list=of_layout(layouts.yolo_lists, "a.txt"),
    yolo_names=of_layout(layouts.yolo_label_studio, "classes.txt"),
    csv=of_layout(layouts.csv_tabs, "boxes.tsv"),
    csv_splits=of_layout(layouts.csv_semicolon, "boxes.csv"),
    csv_seen=of_recognition(layouts.csv_semicolon, "boxes.csv"),
    supervisely=of_layout(layouts.supervisely, "train/ann/img 0.png.json"),
    supervisely_meta=of_layout(layouts.supervisely, "meta.json"),
    labelme=of_layout(layouts.labelme, "labels/img 0.json"),
    csv_cells=of_layout(layouts.csv_boxes_of_an_image, "boxes.csv"),
    csv_cells_seen=of_recognition(layouts.csv_one_column, "train.csv"),
    hf=of_layout(layouts.hf_folder, "train/metadata.jsonl"),
    hf_table=of_layout(layouts.hf_table, "train/metadata.csv"),
    voc_shapes=of_layout(layouts.voc_shapes, "img 1.xml"),
    yolo_darknet=of_layout(layouts.yolo_obj, "data/train.txt"),
    tfds=of_records("features.json"),
    tfds_info=of_records("dataset_info.json"),
    jpeg=of_image(".jpg"),
    png=of_image(".png"),
    bmp=of_image(".bmp"),
    tiff=of_image(".tif"),
    webp=of_image(".webp"),
    jpeg_size=of_size(".jpg"),
    png_size=of_size(".png"),
    annotations=annotations,
    detections=detections,
    proposals=proposals,
    npz=npz_weights,
    safetensors=safetensors,
    pth=of_golden("tensors_zip.pth"),
    pth_stream=of_golden("tensors_stream.pth"),
    pkl=pkl,
)


def run(name: str, root: pathlib.Path, count: int, seed: int = 0) -> tuple[int, dict]:
    """How many were refused, and each other end with the bytes that led to it."""
    path, read = CASES[name](root)
    good = path.read_bytes()
    rng = np.random.default_rng([seed, *name.encode()])
    refused, wrong = 0, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(path)
        for _ in range(count):
            path.write_bytes(damaged := mutate(rng, good))
            try:
                read(path)
            except (ValueError, FileNotFoundError) as error:
                refused += 1
                if path.name not in str(error) or isinstance(error, UnicodeError):
                    wrong.setdefault(f"{type(error).__name__}: {error}"[:300], damaged)
            except Exception as error:
                wrong.setdefault(f"{type(error).__name__}: {error}"[:300], damaged)
    return refused, wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_damaged_file_is_read_or_named(name, tmp_path):
    before = cv2.utils.logging.setLogLevel(0)
    try:
        refused, wrong = run(name, tmp_path, COUNT)
    finally:
        cv2.utils.logging.setLogLevel(before)
    assert not wrong, "\n".join(wrong)
    assert refused, f"none of {COUNT} was refused"


@pytest.mark.parametrize("name", ["coco", "csv", "npz", "pth"])
def test_some_damaged_files(name, tmp_path):
    _, wrong = run(name, tmp_path, 60, seed=1)
    assert not wrong, "\n".join(wrong)
