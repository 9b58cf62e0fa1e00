"""Trained detectors by name: where their files are, and what the files need.

`TABLE` is `zoo.csv`, a row for each; `python -m frcnn_jax.weights` prints it. The names
are those that their makers use, after `torchvision/`, `detectron2/` or `mmdetection/`.
Of Mask and Keypoint R-CNN the box branch is read.

Digests are what the makers publish: torchvision and MMDetection put the first digits of
SHA-256 into a file's name, Detectron2 those of MD5 (its MODEL_ZOO.md says so). AP is
box AP on COCO val2017 in %, for keypoint detectors of the class person. A row's
`settings` are a configuration in the folder of that name, made from `experiments/` by
`tests/weights/make_settings.py`: what prediction reads of it is that of the file, the
length of training is that of the recipe's shortest form.

Sources: torchvision 0.29 (`models/detection/*_rcnn.py`), Detectron2 (`MODEL_ZOO.md`,
`model_zoo/model_zoo.py`), MMDetection (`configs/faster_rcnn/metafile.yml` and README).
"""

import csv
import difflib
import importlib.resources
import io
import json
from typing import Any, NamedTuple

from frcnn_jax.weights import coco

PACKAGE = "frcnn_jax.weights"


class Entry(NamedTuple):
    """A row of the table: `digest` and `mib` as for `download.fetch`."""

    name: str
    settings: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # in COCO
    ap: float
    licence: str
    mib: float
    digest: str
    url: str

    @property
    def family(self) -> str:
        """Whose it is: "torchvision", "detectron2" or "mmdetection"."""
        return self.name.partition("/")[0]


def _read() -> tuple[Entry, ...]:
    text = (importlib.resources.files(PACKAGE) / "zoo.csv").read_text()
    found = []
    for row in csv.DictReader(io.StringIO(text)):
        count = 1 if row["classes"] == "person" else len(coco.CLASSES)
        entry: dict[str, Any] = dict(
            row, classes=coco.CLASSES[:count], category_ids=coco.IDS[:count]
        )
        entry.update(ap=float(row["ap"]), mib=float(row["mib"] or 0))
        found.append(Entry(**entry))
    return tuple(found)


TABLE = _read()


def find(name: str) -> Entry | None:
    """The row of a name; None where no row has it."""
    return next((entry for entry in TABLE if entry.name == name), None)


def similar(name: str) -> list[str]:
    """Up to three names that are nearly `name`.

    >>> similar("detectron2/faster_rcnn_R50_FPN_3x")[0]
    'detectron2/faster_rcnn_R_50_FPN_3x'
    """
    names = [entry.name for entry in TABLE]
    whole = difflib.get_close_matches(name, names, 3, 0.5)
    return whole or [n for n in names if name and name in n][:3]


def settings(name: str) -> dict[str, Any]:
    """A configuration of the folder `settings`, as JSON has it (lists for tuples)."""
    folder = importlib.resources.files(PACKAGE) / "settings"
    return json.loads((folder / f"{name}.json").read_text())


def all_settings() -> list[str]:
    """The names of the folder `settings`."""
    folder = importlib.resources.files(PACKAGE) / "settings"
    return sorted(f.name.removesuffix(".json") for f in folder.iterdir())
