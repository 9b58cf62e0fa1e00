"""A data format of your own in one file: one line of text an image.

    photos/1.jpg 48,240,195,371,dog 8,12,352,498,person
    photos/2.jpg

`FOLDER/train.txt` and `FOLDER/val.txt` hold such lines, `FOLDER/classes.txt` a class a
line, paths are below FOLDER. A data source is a module with `load(*, split, ...)`; its
keyword arguments are leaves of the group `data`:

    python scripts/train.py --config=experiments/bccd_r50_fpn.py --workdir=runs/mine \\
        --config.data.name=examples.my_dataset --config.data.root=FOLDER
    python scripts/check_dataset.py ...     # the same options: look before you train

Alone it prints what it reads:

    python -m examples.my_dataset FOLDER
"""

import pathlib
import sys

from frcnn_jax.data.source import Source
from frcnn_jax.data.sources.dicts import from_dicts


def load(*, split: str, root: str, classes: tuple[str, ...] = ()) -> Source:
    """The images of `root/<split>.txt`; `classes` in place of `classes.txt`.

    Raises ValueError for a line that is not as above. Paths, sizes, boxes without area
    and unknown names are looked after by `from_dicts`.
    """
    folder = pathlib.Path(root)
    names = classes or (folder / "classes.txt").read_text().split("\n")
    lines = (folder / f"{split}.txt").read_text().splitlines()
    return from_dicts(
        [_example(line, f"{split}.txt:{i}") for i, line in enumerate(lines, start=1)],
        root=root,
        classes=[name for name in names if name],
    )


def _example(line: str, where: str) -> dict:
    image, *objects = line.split()
    boxes, labels = [], []
    for item in objects:
        *box, label = item.split(",")
        if len(box) != 4:
            raise ValueError(f"{where}: {item!r}, expected x1,y1,x2,y2,class")
        boxes.append([float(x) for x in box])
        labels.append(label)
    return dict(image=image, boxes=boxes, labels=labels, id=image)


if __name__ == "__main__":
    for split in ("train", "val"):
        source = load(split=split, root=sys.argv[1])
        count = sum(len(example.boxes) for example in source.examples)
        print(f"{split}: {len(source)} images, {count} boxes of {source.classes}")
        print("\n".join(source.report))
