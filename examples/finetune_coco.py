"""From a trained checkpoint to your own COCO folder with your own classes.

python -m examples.finetune_coco runs/demo                        # makes a folder
python -m examples.finetune_coco runs/demo MY_FOLDER runs/mine    # takes yours

    MY_FOLDER/annotations/instances_train.json   MY_FOLDER/train/*.jpg
    MY_FOLDER/annotations/instances_val.json     MY_FOLDER/val/*.jpg

Everything is kept but the two last layers, which the classes determine. The folder made
here holds the demo's pictures with two categories, so that circles and squares are
wanted, triangles and stars are background.

Not measured yet.
"""

import json
import pathlib
import sys
from typing import Any

from experiments import common
from frcnn_jax.data import images
from frcnn_jax.data.example import decode
from frcnn_jax.data.sources import shapes
from frcnn_jax.training import checkpoint
from frcnn_jax.training.loop import train_and_evaluate
from frcnn_jax.training.metrics import log_to_stderr

CATEGORIES = {"circle": dict(id=7, name="ball"), "square": dict(id=3, name="box")}


def make_folder(folder: str, *, train: int = 60, val: int = 60, size: int = 128):
    """Writes pictures of shapes as a COCO data set: images and two JSON files."""
    root = pathlib.Path(folder)
    for split, count in (("train", train), ("val", val)):
        entries, annotations = [], []
        for example in shapes.load(split=split, num_images=count, size=size, seed=1):
            name, i = f"{example.image_id:06d}.png", example.image_id
            images.save_image(root / split / name, decode(example))
            entries.append(dict(id=i, file_name=name, height=size, width=size))
            for (x1, y1, x2, y2), c in zip(
                example.boxes.tolist(), example.classes, strict=True
            ):
                if category := CATEGORIES.get(shapes.CLASSES[c - 1]):
                    w, h = x2 - x1, y2 - y1
                    annotations.append(
                        dict(id=len(annotations) + 1, image_id=i, iscrowd=0)
                        | dict(category_id=category["id"], bbox=[x1, y1, w, h])
                        | dict(area=w * h)
                    )
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        content = dict(images=entries, annotations=annotations)
        file.write_text(json.dumps(content | dict(categories=[*CATEGORIES.values()])))


def main(
    source: str, folder: str = "", workdir: str = "runs/finetuned", steps: int = 150
) -> dict:
    """Fine-tunes `source` on the folder, at a quarter of its rate; the metrics."""
    if not folder:
        folder = "runs/coco_shapes"
        make_folder(folder)
    config: Any = checkpoint.read_meta(checkpoint.find(source)).config
    config.init_from = source
    sides = {k: config.data[k] for k in ("short_side", "max_side", "canvas")}
    config.data = common.data(
        "coco",
        root=folder,
        train_split="train",
        eval_split="val",
        max_boxes=100,
        **sides,
    )
    config.total_steps = config.eval_every = config.checkpoint_every = steps
    config.optimizer.learning_rate /= 4
    return train_and_evaluate(config, workdir)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 4):
        sys.exit(__doc__)
    log_to_stderr()
    print(json.dumps(main(*sys.argv[1:])))  # pyright: ignore[reportArgumentType]
