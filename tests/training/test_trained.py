"""A detector by its name, its file, its URL: loaded and handed to what takes a run."""

import functools
import http.server
import json
import threading

import jax
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.training import published, trained
from frcnn_jax.weights import coco, download, hub, torchvision, zoo
from tests.training import small
from tests.weights.pth import write_pth

MODEL = dict(
    backbone=dict(name="resnet", depth=10, norm_eps=0.0),
    fpn=dict(channels=4),
    rpn=dict(channels=4),
    box_head=dict(widths=(5, 6)),
    anchors=dict(rounding="torchvision"),
    roi_align=dict(aligned=False),
)


@functools.cache
def state_dict(rows=91):
    """What torchvision's model of this shape would save."""
    model = models.build_detector(num_classes=rows - 1, **MODEL)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: np.float32(rng.uniform(0.5, 1, x.shape)), shapes)
    return torchvision.export_detector(drawn)


@pytest.fixture
def settings(monkeypatch):
    """Every configuration of the table is a small one, and fits the small file."""
    config = small.config()
    config.model = MODEL
    text = config.to_json()
    monkeypatch.setattr(zoo, "settings", lambda name: json.loads(text))
    monkeypatch.setattr(trained.families, "_depth", lambda names: 50)
    return text


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("FRCNN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.folder, server.url = folder, f"http://127.0.0.1:{server.server_port}"
        serve = functools.partial(server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()
        yield server
        server.shutdown()


def named(monkeypatch, url, **changes):
    entry = zoo.TABLE[0]._replace(url=url, digest="", mib=0.0, **changes)
    monkeypatch.setattr(zoo, "TABLE", (entry, *zoo.TABLE[1:]))
    return entry.name


def test_a_name_is_downloaded_and_has_coco_s_classes(server, settings, monkeypatch):
    write_pth(server.folder / "x.pth", state_dict())
    name = named(monkeypatch, f"{server.url}/x.pth")
    for source in (name, f"{server.url}/x.pth", server.folder / "x.pth"):
        found = trained.load(source)
        assert found.meta.classes == coco.CLASSES
        assert found.meta.category_ids == coco.IDS
        head = found.variables["params"]["box_head"]["class_logits"]
        rows = state_dict()["roi_heads.box_predictor.cls_score.bias"]
        np.testing.assert_array_equal(head["bias"], rows[[0, *coco.IDS]])
    assert download.place(f"{server.url}/x.pth").is_file()


def test_a_keypoint_detector_has_one_class_and_its_own_annotations(
    server, settings, monkeypatch
):
    more = {"roi_heads.keypoint_head.0.weight": np.zeros((2, 2), np.float32)}
    write_pth(server.folder / "x.pth", {**state_dict(2), **more})
    one = dict(classes=("person",), category_ids=(1,))
    found = trained.load(named(monkeypatch, f"{server.url}/x.pth", **one))
    assert (found.meta.classes, found.meta.category_ids) == (("person",), (1,))
    assert "person_keypoints" in found.meta.config.data.annotations


def test_a_name_whose_file_is_of_another_family_is_an_error(
    server, settings, monkeypatch
):
    wrong = json.loads(settings)
    wrong["model"]["pixel_std"] = [1.0, 1.0, 1.0]
    monkeypatch.setattr(zoo, "settings", lambda name: wrong)
    write_pth(server.folder / "x.pth", state_dict())
    name = named(monkeypatch, f"{server.url}/x.pth")
    with pytest.raises(ValueError, match="model.pixel_std: found"):
        trained.load(name)


def test_what_is_left_out_is_named(server, settings, monkeypatch, caplog):
    more = {"roi_heads.mask_predictor.mask_fcn_logits.bias": np.zeros(2, np.float32)}
    path = write_pth(server.folder / "x.pth", {**state_dict(), **more})
    caplog.set_level("INFO")
    trained.load(path)
    assert "left out are 1 arrays" in caplog.text
    assert "roi_heads.mask_predictor.mask_fcn_logits.bias" in caplog.text


def test_a_file_of_your_own_needs_the_names_of_its_classes(settings, tmp_path):
    path = write_pth(tmp_path / "mine.pth", {"model": state_dict(4)})
    with pytest.raises(ValueError, match="has 3 classes, whose names it does not say"):
        trained.load(path)
    with pytest.raises(ValueError, match="has 3 classes, found 2 names"):
        trained.load(path, classes=("a", "b"))
    found = trained.load(path, classes=("a", "b", "c"))
    assert found.meta.classes == ("a", "b", "c")
    assert found.meta.category_ids == (1, 2, 3)


@pytest.mark.parametrize(
    "source, message",
    [
        ("torchvision/fasterrcnn_resnet50", "did you mean torchvision/fasterrcnn_resn"),
        ("gone.pth", "gone.pth: no such file, run or name"),
        ("detectron2/yolo", "python -m frcnn_jax.weights"),
        ("runs/never", "no checkpoint at .*runs/never"),
    ],
)
def test_what_is_not_there_is_named(source, message):
    with pytest.raises(FileNotFoundError, match=message):
        trained.load(source)


def test_names_that_nobody_knows_are_shown(tmp_path):
    arrays = {f"encoder.{i}.weight": np.zeros(2, np.float32) for i in range(5)}
    path = write_pth(tmp_path / "x.pth", arrays)
    with pytest.raises(ValueError) as error:
        trained.load(path)
    assert "encoder.0.weight, encoder.1.weight, encoder.2.weight;" in str(error.value)
    for whose in ("torchvision", "Detectron2", "MMDetection"):
        assert whose in str(error.value)


def test_a_network_without_a_configuration_is_named(tmp_path, monkeypatch):
    path = write_pth(tmp_path / "x.pth", state_dict())  # ten layers, neither 50 nor 101
    with pytest.raises(ValueError, match="has no configuration: write a checkpoint"):
        trained.load(path)


def test_names_of_a_hub_are_files_or_published_folders(tmp_path, settings, monkeypatch):
    path = write_pth(tmp_path / "x.pth", state_dict())
    asked = []

    def fetch(name):
        asked.append(name)
        return path if name.endswith("x.pth") else folder / name.rpartition("/")[2]

    monkeypatch.setattr(hub, "fetch", fetch)
    found = trained.load("hf:me/mine/x.pth")
    folder = tmp_path / "published"
    published.write(folder, found.variables, found.meta)
    again = trained.load("hf:me/mine")
    assert asked == [
        *("hf:me/mine/x.pth", "hf:me/mine/frcnn_jax.json"),
        "hf:me/mine/model.safetensors",
    ]
    assert again.where == folder and again.meta.classes == found.meta.classes
    jax.tree.map(np.testing.assert_array_equal, again.variables, found.variables)
    assert again.meta.config.model == found.meta.config.model
    with pytest.raises(ValueError, match="has its own classes"):
        trained.load(folder, classes=("a",))


def test_a_published_folder_that_was_changed_is_refused(tmp_path, settings):
    path = write_pth(tmp_path / "x.pth", state_dict())
    found, folder = trained.load(path), tmp_path / "published"
    about = published.write(folder, found.variables, found.meta)
    arrays = folder / "model.safetensors"
    data = arrays.read_bytes()
    arrays.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="is not the file that was published"):
        trained.load(folder)
    arrays.write_bytes(data)
    for wrong in ({**about, "format": 9}, {"format": 1}, [], {**about, "step": "x"}):
        (folder / "frcnn_jax.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="frcnn_jax.json is damaged"):
            trained.load(folder)


def test_where_results_of_a_source_go(tmp_path):
    assert trained.folder_of(tmp_path) == tmp_path
    assert trained.folder_of("hf:me/mine/x.pth").as_posix() == "runs/me_mine_x"
    assert not trained.is_run("torchvision/fasterrcnn_resnet50_fpn")
    assert not trained.is_run("https://host/x.pth") and not trained.is_run("x.pkl")
    assert trained.is_run(tmp_path) and trained.is_run("runs/never")
