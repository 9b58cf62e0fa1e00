"""Reads hostile files in a process of limited memory; one line of JSON for each.

python -m tests.hostile FOLDER: the files that `test_security.py` has made there.
"""

import json
import pathlib
import resource
import sys

import numpy as np

from frcnn_jax.data import images, pipeline, proposal_files
from frcnn_jax.data.sources import coco, csv, voc, yolo
from frcnn_jax.data.sources import tfds as prepared
from frcnn_jax.weights import files as weight_files

READERS = dict(
    weights=weight_files.read_arrays,
    proposals=proposal_files.read,
    image=lambda path: images.load_image(str(path)),
    size=lambda path: images.image_size(str(path)),
    coco=lambda path: coco.load(split="a", root=str(path)),
    voc=lambda path: voc.load(split="a", root=str(path)),
    yolo=lambda path: yolo.load(split="a", root=str(path)),
    csv=lambda path: csv.load(split="a", root=str(path)),
    tfds=lambda path: list(prepared.load(split="a", root=str(path))),
    records=lambda path: list(
        pipeline.eval_dataset(
            prepared.load(split="a", root=str(path)),
            **dict(batch_size=1, short_side=8, max_side=8, canvas=(8, 8)),
        )
    ),
)
LIMIT = 3 << 29  # bytes beyond what the process has when it begins


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    text = pathlib.Path("/proc/self/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def main(folder: str) -> None:
    images.resize(np.zeros((9, 9, 3), np.uint8), (3, 3))  # what it loads is loaded
    limit = status("VmSize") + LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sorted(pathlib.Path(folder).iterdir()):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = status("VmRSS")
        try:
            READERS[path.name.split("_")[0]](path)
            error = None
        except Exception as raised:
            error = type(raised).__name__, str(raised)
        grown = status("VmHWM") - before
        print(json.dumps(dict(name=path.name, error=error, grown=grown)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
