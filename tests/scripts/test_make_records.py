"""Records as a user writes them."""

from frcnn_jax.data.sources import tfds
from tests.data.sources import test_voc
from tests.scripts.test_scripts import last_json, script


def test_written_and_read(tmp_path):
    boxes = {"a": test_voc.xml(("cat", 1, 1, 30, 20)), "b": test_voc.xml()}
    root = test_voc.make(tmp_path / "set", boxes)
    test_voc.make(tmp_path / "set", {"c": test_voc.xml()}, split="val")
    done = script(
        *("make_records", "--config=experiments/bccd_r50_fpn.py"),
        *(f"--config.data.root={root}", f"--output={tmp_path / 'out'}"),
    )
    assert last_json(done)["images"] == {"train": 2, "val": 1}
    source = tfds.load(split="train", root=str(tmp_path / "out"))
    assert source.classes == ("cat",)
    assert source[0].boxes.tolist() == [[0, 0, 30, 20]]
