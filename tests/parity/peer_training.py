"""torchvision's R50-FPN trained by a shared recipe, for compare_training.py.

    .venv-peer/bin/python tests/parity/peer_training.py SHARED/recipe.json WORKDIR

Runs where torch and torchvision are (`make peer`). Keeps WORKDIR/last.pth and goes on
from it; leaves detections.json (COCO format, original pixels) and times.json.
"""
# pyright: reportMissingImports=false

import functools
import json
import os
import pathlib
import sys
import time

import numpy as np
import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d


def build(recipe, num_classes):
    """The model of the recipe, its weights loaded, its frozen layers frozen."""
    group, data = recipe["model"], recipe["data"]
    body = group["backbone"]
    norm = functools.partial(FrozenBatchNorm2d, eps=body.get("norm_eps", 1e-5))
    backbone = resnet_fpn_backbone(
        backbone_name=f"resnet{body.get('depth', 50)}",
        weights=None,
        norm_layer=norm,
        trainable_layers=5,
    )
    if body.get("stride_in_1x1"):
        for stage in (backbone.body.layer2, backbone.body.layer3, backbone.body.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    sizes = group.get("anchors", {}).get("sizes", (32, 64, 128, 256, 512))
    rpn, roi = recipe["rpn_targets"], recipe["roi_targets"]
    train, test = recipe["proposals"]["train"], recipe["proposals"]["eval"]
    post = recipe["postprocess"]
    model = FasterRCNN(
        backbone,
        num_classes=num_classes + 1,
        min_size=data["short_side"],
        max_size=data["max_side"],
        image_mean=[
            m / 255 for m in group.get("pixel_mean", (123.675, 116.28, 103.53))
        ],
        image_std=[s / 255 for s in group.get("pixel_std", (58.395, 57.12, 57.375))],
        rpn_anchor_generator=AnchorGenerator(
            tuple((int(s),) for s in sizes), ((0.5, 1.0, 2.0),) * len(sizes)
        ),
        rpn_pre_nms_top_n_train=train["pre_nms"],
        rpn_pre_nms_top_n_test=test["pre_nms"],
        rpn_post_nms_top_n_train=train["post_nms"],
        rpn_post_nms_top_n_test=test["post_nms"],
        rpn_nms_thresh=test["nms_iou"],
        rpn_fg_iou_thresh=rpn["fg_iou"],
        rpn_bg_iou_thresh=rpn["bg_iou"],
        rpn_batch_size_per_image=rpn["num_samples"],
        rpn_positive_fraction=rpn["fg_fraction"],
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_score_thresh=post["score"],
        box_nms_thresh=post["nms_iou"],
        box_detections_per_img=post["max_detections"],
        box_fg_iou_thresh=roi["fg_iou"],
        box_bg_iou_thresh=roi["bg_iou"],
        box_batch_size_per_image=roi["num_samples"],
        box_positive_fraction=roi["fg_fraction"],
    )
    with np.load(recipe["initial"]) as file:
        state = {name: torch.from_numpy(file[name]) for name in file.files}
    model.load_state_dict(state)
    frozen = [f.replace("backbone/", "backbone.body.", 1) for f in recipe["frozen"]]
    for name, parameter in model.named_parameters():
        if any(name.startswith(f"{f}.") for f in frozen):
            parameter.requires_grad_(False)
    return model


def rate(recipe, step):
    """The learning rate of a step, counted from 0, as training.optimizer has it."""
    o, total = recipe["optimizer"], recipe["total_steps"]
    others = dict(name="sgd", bias_rate=1.0, clip_norm=0.0)
    if wrong := {k: o[k] for k, v in others.items() if o.get(k, v) != v}:
        raise ValueError(f"optimizer {wrong}: only {others} is compared")
    if o.get("schedule", "step") != "step":
        raise ValueError(f"schedule={o['schedule']!r}: only 'step' is compared")
    value, warmup = o["learning_rate"], o.get("warmup_steps", 0)
    if reference := o.get("reference_batch", 0):
        value *= recipe["batch_size"] / reference
    if step < warmup:
        factor = o.get("warmup_factor", 1e-3)
        value *= factor + (1 - factor) * step / warmup
    for boundary in o.get("boundaries", (0.7, 0.9)):
        if step >= (boundary * total if boundary <= 1 else boundary):
            value *= o.get("decay", 0.1)
    return value


class Examples:
    """The images and boxes of a split; images are kept as bytes."""

    def __init__(self, file):
        found = json.loads(pathlib.Path(file).read_text())
        self.ids = sorted(c["id"] for c in found["categories"])
        self.images = found["images"]
        self.boxes = {image["id"]: ([], []) for image in self.images}
        for a in found["annotations"]:
            if not a.get("iscrowd"):
                x, y, w, h = a["bbox"]
                boxes, labels = self.boxes[a["image_id"]]
                boxes.append([x, y, x + w, y + h])
                labels.append(self.ids.index(a["category_id"]) + 1)
        self.cache = {}

    def __getitem__(self, i):
        image = self.images[i]
        if i not in self.cache:
            with Image.open(image["path"]) as opened:
                self.cache[i] = np.asarray(opened.convert("RGB"))
        pixels = torch.from_numpy(self.cache[i].copy()).permute(2, 0, 1) / 255
        boxes, labels = self.boxes[image["id"]]
        target = dict(
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
        )
        return pixels, target


def mirrored(pixels, target):
    width, boxes = pixels.shape[-1], target["boxes"].clone()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return pixels.flip(-1), dict(target, boxes=boxes)


def batch_of(examples, recipe, step):
    """The examples of a step: an own permutation an epoch, drawn from the seed."""
    n, size = len(examples.images), recipe["batch_size"]
    found = []
    for at in range(step * size, (step + 1) * size):
        order = np.random.default_rng([recipe["seed"], at // n]).permutation(n)
        example = examples[int(order[at % n])]
        flip = np.random.default_rng([recipe["seed"], 1, at]).random() < 0.5
        found.append(mirrored(*example) if flip and recipe["data"]["flip"] else example)
    return [list(x) for x in zip(*found, strict=True)]


def save(path, **values):
    """Whole or not at all."""
    torch.save(values, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def train(model, recipe, examples, workdir):
    """Seconds a step, over all steps of all calls."""
    o = recipe["optimizer"]
    chosen = [p for p in model.parameters() if p.requires_grad]
    # Ours decays kernels, and biases where it is told to.
    decays = [p.ndim > 1 or o.get("decay_biases", False) for p in chosen]
    optimizer = torch.optim.SGD(
        [
            dict(
                params=[p for p, d in zip(chosen, decays, strict=True) if d == decay],
                weight_decay=o["weight_decay"] if decay else 0.0,
            )
            for decay in (True, False)
        ],
        lr=0.0,
        momentum=o["momentum"],
    )
    last, start, seconds = workdir / "last.pth", 0, 0.0
    if last.exists():
        kept = torch.load(last, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        start, seconds = kept["step"], kept["seconds"]
        print(f"torchvision: going on from step {start}", file=sys.stderr)
    model.train()
    for step in range(start, recipe["total_steps"]):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step)
        torch.manual_seed(recipe["seed"] * 1_000_003 + step)
        losses = model(*batch_of(examples, recipe, step))
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"step {step + 1}: {losses}")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seconds += time.perf_counter() - began
        done = step + 1
        if done % recipe["log_every"] == 0 or done == 1:
            print(
                f"torchvision: step {done}/{recipe['total_steps']} loss "
                f"{total.item():.3f} {seconds / done:.2f} s a step",
                file=sys.stderr,
                flush=True,
            )
        if done % recipe["checkpoint_every"] == 0 or done == recipe["total_steps"]:
            save(
                last,
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                step=done,
                seconds=seconds,
            )
    return seconds / recipe["total_steps"]


@torch.no_grad()
def detect(model, examples):
    """COCO-format detections of every image."""
    model.eval()
    results = []
    for i, image in enumerate(examples.images):
        (found,) = model([examples[i][0]])
        for box, score, label in zip(
            found["boxes"].tolist(),
            found["scores"].tolist(),
            found["labels"].tolist(),
            strict=True,
        ):
            x1, y1, x2, y2 = box
            results.append(
                dict(
                    image_id=image["id"],
                    category_id=examples.ids[label - 1],
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    score=score,
                )
            )
    return results


def main():
    torch.set_num_threads(os.cpu_count() or 1)
    recipe = json.loads(pathlib.Path(sys.argv[1]).read_text())
    workdir, folder = pathlib.Path(sys.argv[2]), pathlib.Path(recipe["folder"])
    workdir.mkdir(parents=True, exist_ok=True)
    examples = Examples(folder / "train.json")
    model = build(recipe, len(examples.ids))
    seconds = train(model, recipe, examples, workdir)
    found = detect(model, Examples(folder / "eval.json"))
    (workdir / "detections.json").write_text(json.dumps(found))
    (workdir / "times.json").write_text(json.dumps(dict(seconds_a_step=seconds)))


if __name__ == "__main__":
    main()
