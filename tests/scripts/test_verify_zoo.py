"""Names are evaluated against a set on loopback, and the page says who was."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from frcnn_jax.data.images import save_image
from tests.training.test_trained import MODEL, server, state_dict  # noqa: F401
from tests.weights.pth import write_pth

ROOT = pathlib.Path(__file__).parents[2]
# The script with a table of small detectors.
CODE = """
import json, pathlib, runpy, sys
from frcnn_jax.weights import zoo
settings, *rows = json.loads(pathlib.Path({table!r}).read_text())
entry = zoo.TABLE[0]
zoo.TABLE = tuple(
    entry._replace(name=n, url=u, digest="", mib=0.0, ap=ap) for n, u, ap in rows
)
zoo.settings = lambda name: settings
script = {script!r}
sys.argv = [script, *sys.argv[1:]]
runpy.run_path(script, run_name="__main__")
"""


def test_the_page_is_what_the_table_and_the_results_say(tmp_path):
    page = tmp_path / "zoo.md"
    script = ROOT / "scripts" / "verify_zoo.py"
    done = subprocess.run(
        [sys.executable, str(script), f"--page={page}", "--results=docs/zoo.json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert page.read_text() == (ROOT / "docs" / "zoo.md").read_text(), (
        "run python scripts/verify_zoo.py --page=docs/zoo.md"
    )


def settings_of(classes):
    """A small configuration for COCO's layout."""
    from tests.training import small

    config = small.config()
    config.model = MODEL
    config.data = dict(
        name="coco",
        root="",
        annotations="annotations/instances_{split}.json",
        images="{split}",
        **dict(train_split="train2017", eval_split="val2017"),
        **dict(short_side=64, max_side=64, canvas=(64, 64), max_boxes=6, flip=True),
    )
    return json.loads(config.to_json())


@pytest.mark.slow
def test_names_are_evaluated_and_written_down(server, tmp_path):  # noqa: F811
    from frcnn_jax.weights import coco

    write_pth(server.folder / "x.pth", state_dict())
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    save_image(tmp_path / "coco" / "val2017" / "1.jpg", image)
    names = zip(coco.IDS, coco.CLASSES, strict=True)
    truth = dict(
        images=[dict(id=1, file_name="1.jpg", height=64, width=64)],
        categories=[dict(id=i, name=name) for i, name in names],
        annotations=[
            dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9], area=81, iscrowd=0)
        ],
    )
    place = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    place.parent.mkdir()
    place.write_text(json.dumps(truth))
    rows = [
        ("torchvision/good", f"{server.url}/x.pth", 0.0),
        ("torchvision/other", f"{server.url}/x.pth?again", 30.0),
        ("torchvision/gone", f"{server.url}/gone.pth", 30.0),
    ]
    table = tmp_path / "table.json"
    table.write_text(json.dumps([settings_of(coco.CLASSES), *rows]))
    code = CODE.format(table=str(table), script=str(ROOT / "scripts/verify_zoo.py"))
    done = subprocess.run(
        [
            *(sys.executable, "-c", code, f"--coco={tmp_path / 'coco'}"),
            *(f"--page={tmp_path / 'zoo.md'}", f"--results={tmp_path / 'zoo.json'}"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert "gone.pth could not be downloaded (HTTP status 404" in done.stderr
    results = json.loads((tmp_path / "zoo.json").read_text())
    assert set(results) == {"torchvision/good", "torchvision/other"}
    ours = results["torchvision/good"]
    assert ours["verdict"] == ("verified" if ours["ours"] <= 0.1 else "differs")
    assert results["torchvision/other"]["verdict"] == "differs"
    assert ours["images"] == 1 and ours["minutes"] >= 0
    page = (tmp_path / "zoo.md").read_text()
    assert "torchvision/gone`" in page and "| not verified |" in page
    assert "| differs (" in page
    assert json.loads(done.stdout.splitlines()[-1])["torchvision/gone"] is None
