"""supervision, SAHI and FiftyOne themselves, with our detections: make test-tools."""

import pathlib

import numpy as np
import pytest

from frcnn_jax.data.images import save_image
from frcnn_jax.evaluation import files
from frcnn_jax.records import records
from frcnn_jax.types import Detections

pytestmark = [
    pytest.mark.tools,
    pytest.mark.filterwarnings("ignore"),  # of packages that are not ours
]


class Bright:
    """Finds one box around the bright pixels of an image; as a `Detector` does."""

    classes, category_ids = ("lamp", "star"), (4, 9)

    def __call__(self, images):
        boxes = np.zeros((len(images), 3, 4), np.float32)
        valid = np.zeros((len(images), 3), bool)
        for i, image in enumerate(images):
            y, x = np.nonzero(np.asarray(image).max(-1) > 200)
            if len(y):
                boxes[i, 0] = x.min(), y.min(), x.max() + 1, y.max() + 1
                valid[i, 0] = True
        scores = np.where(valid, 0.75, 0).astype(np.float32)
        return Detections(boxes, scores, np.where(valid, 2, 0).astype(np.int32), valid)


def scene(x, y, size=(120, 160)):
    image = np.zeros((*size, 3), np.uint8)
    image[y : y + 10, x : x + 20] = 255
    return image


def test_supervision_draws_and_tracks():
    sv = pytest.importorskip("supervision")
    trackers = pytest.importorskip("trackers")  # where supervision's ByteTrack is now
    tracker = trackers.ByteTrackTracker(minimum_consecutive_frames=1)
    seen = []
    for step in range(5):
        image = scene(20 + 3 * step, 30)
        found = records(Bright()([image]), [image], Bright())[0].to_supervision()
        assert found.class_id.tolist() == [1]
        assert found.data["class_name"].tolist() == ["star"]
        np.testing.assert_array_equal(
            found.xyxy, [[20 + 3 * step, 30, 40 + 3 * step, 40]]
        )
        tracked = tracker.update(found)
        seen += tracked.tracker_id.tolist()
        drawn = sv.BoxAnnotator().annotate(image.copy(), tracked)
        drawn = sv.LabelAnnotator().annotate(drawn, tracked)
        assert (drawn != image).any()
    confirmed = [number for number in seen if number >= 0]  # -1 before the second
    assert len(confirmed) >= 4 and len(set(confirmed)) == 1
    nothing = np.zeros((50, 50, 3), np.uint8)
    empty = records(Bright()([nothing]), [nothing], Bright())[0].to_supervision()
    assert len(empty) == 0


def test_sahi_slices_a_large_image(tmp_path):
    pytest.importorskip("sahi")
    from sahi.predict import get_prediction, get_sliced_prediction

    from examples.sahi_detector import SahiDetector

    image = scene(500, 300, (400, 700))
    image[40:50, 60:80] = 255
    model = SahiDetector(model=Bright(), confidence_threshold=0.5)
    assert model.category_mapping == {"4": "lamp", "9": "star"}
    sides = dict(slice_height=200, slice_width=200, overlap_height_ratio=0.2)
    sides["perform_standard_pred"] = False  # on the whole image besides
    result = get_sliced_prediction(image, model, **sides, verbose=0)
    boxes = sorted(p.bbox.to_xyxy() for p in result.object_prediction_list)
    assert boxes == [[60, 40, 80, 50], [500, 300, 520, 310]]
    first = result.object_prediction_list[0]
    assert (first.category.id, first.category.name) == (9, "star")
    whole = get_prediction(image, model)
    assert [p.bbox.to_xyxy() for p in whole.object_prediction_list] == [
        [60, 40, 520, 310]
    ]
    result.export_visuals(str(tmp_path))
    assert list(tmp_path.iterdir())
    shy = SahiDetector(model=Bright(), confidence_threshold=0.9)
    assert not get_prediction(image, shy).object_prediction_list


def test_fiftyone_s_model_gives_its_labels():
    """Without the database, which is a download of its own."""
    fo = pytest.importorskip("fiftyone")
    from examples.fiftyone_detector import FiftyOneDetector

    model = FiftyOneDetector(Bright())
    assert isinstance(model, fo.Model)
    one, nothing = model.predict_all([scene(20, 30), np.zeros((9, 9, 3), np.uint8)])
    assert isinstance(one, fo.Detections) and not nothing.detections
    (label,) = one.detections
    assert label.label == "star" and label.confidence == 0.75
    np.testing.assert_allclose(label.bounding_box, [20 / 160, 0.25, 0.125, 10 / 120])
    assert model.predict(scene(0, 0)).detections[0].bounding_box[:2] == [0, 0]


@pytest.fixture
def fiftyone(tmp_path, monkeypatch):
    fo = pytest.importorskip("fiftyone")
    try:
        fo.list_datasets()
    except Exception as error:
        pytest.skip(f"FiftyOne's database does not start: {error}")
    return fo


def test_fiftyone_applies_a_detector_and_reads_our_files(fiftyone, tmp_path):
    fo = fiftyone
    from examples.fiftyone_detector import FiftyOneDetector

    paths = []
    for i, at in enumerate(((20, 30), (60, 40))):
        paths.append(str(tmp_path / "images" / f"{i}.png"))
        save_image(pathlib.Path(paths[-1]), scene(*at))
    data = fo.Dataset()
    data.add_samples([fo.Sample(filepath=p) for p in paths])
    data.apply_model(FiftyOneDetector(Bright()), label_field="found", batch_size=2)
    label = data.first().found.detections[0]
    assert label.label == "star" and label.confidence == pytest.approx(0.75)
    np.testing.assert_allclose(label.bounding_box, [20 / 160, 0.25, 0.125, 10 / 120])
    data.delete()

    box = dict(bbox=[20.0, 30.0, 20.0, 10.0], category_id=9, image_id=1)
    truth = dict(
        images=[dict(id=1, file_name="0.png", height=120, width=160)],
        categories=[dict(id=4, name="lamp"), dict(id=9, name="star")],
        annotations=[dict(box, id=1, area=200.0, iscrowd=0)],
    )
    files.write_annotations(tmp_path / "annotations_val.json", truth)
    files.write_detections(tmp_path / "detections_val.json", [dict(box, score=0.5)])
    import fiftyone.utils.coco as fouc

    read = fo.Dataset.from_dir(
        dataset_type=fo.types.COCODetectionDataset,
        data_path=str(tmp_path / "images"),
        labels_path=str(tmp_path / "annotations_val.json"),
        include_id=True,
    )
    fouc.add_coco_labels(
        *(read, "found", str(tmp_path / "detections_val.json")),
        categories=truth["categories"],
    )
    first = read.first()
    assert first.found.detections[0].label == "star"
    assert first.found.detections[0].confidence == 0.5
    read.delete()
