"""The tests' small configuration for a COCO folder, which `data.root` names."""

from experiments import common
from tests.training import small


def get_config():
    c = small.config(total_steps=2, eval_every=2, checkpoint_every=2)
    sides = {k: c.data[k] for k in ("short_side", "max_side", "canvas", "max_boxes")}
    c.data = common.data(
        *("coco",), root="", train_split="train2017", eval_split="val2017", **sides
    )
    return c
