r"""The photographs of the package deepforest as a table of boxes.

    pip download --no-deps deepforest==2.1.0
    python scripts/bench/deepforest.py --wheel=deepforest-2.1.0-py3-none-any.whl \
        --output=TREES

The wheel is not installed. Leaves `train.csv`, `test.csv` and four pictures in
`--output`; every box is of the class `tree`. The last line on stdout is a JSON object.
"""

import csv
import json
import pathlib
import xml.etree.ElementTree as ElementTree
import zipfile

from absl import app, flags

WHEEL = flags.DEFINE_string("wheel", None, "deepforest's wheel.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "A folder.", required=True)
SPLITS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", "OSBS_029"),
    "test": ("2019_YELL_2_541000_4977000_image_crop", "SOAP_061"),
}


def boxes(text: bytes) -> list[list[float]]:
    """`(x1, y1, x2, y2)` of every object of an annotation."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    return [
        [float(node.findtext(name, "nan")) for name in corners]
        for node in ElementTree.fromstring(text).iter("bndbox")
    ]


def main(_):
    output, counts = pathlib.Path(OUTPUT.value), {}
    output.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(WHEEL.value) as wheel:
        for split, names in SPLITS.items():
            rows = []
            for name in names:
                picture = f"{name}.png"
                pixels = wheel.read(f"deepforest/data/{picture}")
                (output / picture).write_bytes(pixels)
                found = boxes(wheel.read(f"deepforest/data/{name}.xml"))
                rows += [[picture, *box, "tree"] for box in found]
            with (output / f"{split}.csv").open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["image", "x1", "y1", "x2", "y2", "label"])
                table.writerows(rows)
            counts[split] = len(rows)
            print(f"{split}: {len(names)} pictures, {len(rows)} trees")
    print(json.dumps(counts))


if __name__ == "__main__":
    app.run(main)
