"""With only the wheel: a name is loaded from a server on loopback, and predicts."""

import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from frcnn_jax import models
from frcnn_jax.training import config as configs
from frcnn_jax.weights import torchvision, zoo
from tests.training.test_trained import server  # noqa: F401
from tests.weights.pth import write_pth

ROOT = pathlib.Path(__file__).parents[2]
NAME = "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"
CODE = """
import importlib.util, json, sys
import numpy as np
import frcnn_jax
assert frcnn_jax.__file__.startswith(sys.argv[1]), frcnn_jax.__file__
assert importlib.util.find_spec("experiments") is None
from frcnn_jax.weights import zoo
zoo.TABLE = tuple(
    e._replace(url=sys.argv[2], digest="", mib=0.0) if e.name == sys.argv[3] else e
    for e in zoo.TABLE
)
from frcnn_jax.detector import load
detector = load(sys.argv[3])
found = detector([np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)])
print(json.dumps([found.boxes.shape, bool(np.isfinite(found.boxes).all()),
                  detector.classes[:2], float(found.scores.max())]))
"""


def drawn(settings):
    """A state dict of random weights with mild norms."""
    config = configs.from_json(zoo.settings(settings)).to_dict()
    model = models.build_detector(num_classes=90, **config["model"])
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)

    def draw(path, x):
        name = jax.tree_util.keystr(path)
        if "var" in name or "scale" in name:
            return np.ones(x.shape, np.float32)
        fan_in = np.prod(x.shape[:-1]) if len(x.shape) > 1 else 1e4
        return np.float32(rng.normal(0, (2 / fan_in) ** 0.5, x.shape))

    return torchvision.export_detector(jax.tree_util.tree_map_with_path(draw, shapes))


@pytest.mark.slow
def test_a_name_is_loaded_and_predicts(server, tmp_path):  # noqa: F811
    if not (ROOT / "pyproject.toml").is_file() or not (ROOT / "frcnn_jax").is_dir():
        pytest.skip("needs the repository, to make the wheel of it")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--wheel-dir", str(tmp_path), str(ROOT)),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert "frcnn_jax/weights/zoo.csv" in names
    found = [n for n in names if n.startswith("frcnn_jax/weights/settings/")]
    assert len(found) == len(zoo.all_settings())
    write_pth(server.folder / "x.pth", drawn("torchvision_mobilenet_v3_320"))
    done = subprocess.run(
        [
            *(sys.executable, "-c", CODE, str(tmp_path / "installed")),
            *(f"{server.url}/x.pth", NAME),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    assert last.startswith('[[1, 100, 4], true, ["person", "bicycle"], '), last
    assert "downloading x.pth" in done.stderr
