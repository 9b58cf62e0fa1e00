"""Write tests/goldens/*.npz: what torchvision answers to small fixed questions.

One deep thing: one function for each file, and no more.

The files are committed and read by tests/test_goldens.py, so torch is needed only to
make them again (byte for byte the same with the same versions):

    make peer
    .venv-peer/bin/python tests/goldens/make_goldens.py

The committed files come from torch 2.15.0 and torchvision 0.29.2, on a CPU, with
numpy 2.4.6. Needs those three only. Each file holds inputs and answers of one module
under the names `case/array`, and the versions under `versions`. Arrays are laid out as
in frcnn_jax: features [h, w, c], pooled RoIs [r, oh, ow, c], class 0 is background.
Inputs with ties in a score that torch leaves unordered are avoided.
"""
# pyright: reportMissingImports=false

import argparse
import pathlib
import sys
from typing import Any

import numpy as np
import torch
import torchvision
from torchvision import ops
from torchvision.models.detection import (
    _utils,
    anchor_utils,
    image_list,
    roi_heads,
    rpn,
)

GOLDENS = pathlib.Path(__file__).parent
VERSIONS = f"torch {torch.__version__}, torchvision {torchvision.__version__}"


def tensor(array, grad=False):
    return torch.tensor(np.asarray(array, np.float32), requires_grad=grad)


def save(name, cases):
    """Writes {"case": {"array": value}} as one compressed file of 32-bit arrays."""
    arrays: dict[str, Any] = {"versions": np.array(VERSIONS)}
    for case, values in cases.items():
        for key, value in values.items():
            value = np.asarray(value.detach() if torch.is_tensor(value) else value)
            narrow = {"f": np.float32, "i": np.int32}.get(value.dtype.kind)
            arrays[f"{case}/{key}"] = value if narrow is None else value.astype(narrow)
    GOLDENS.mkdir(exist_ok=True)
    np.savez_compressed(GOLDENS / f"{name}.npz", **arrays)
    size = (GOLDENS / f"{name}.npz").stat().st_size
    print(f"{name:10} {len(arrays) - 1:3} arrays {size:7} bytes", file=sys.stderr)


def random_boxes(rng, n, *, image_size, sizes):
    """Boxes with log-uniform sides, centred in the image: some cross its border."""
    h, w = image_size
    side = np.exp(rng.uniform(*np.log(sizes), (n, 2)))
    centre = rng.uniform(0, 1, (n, 2)) * [w, h]
    return np.concatenate([centre - side / 2, centre + side / 2], 1).astype(np.float32)


def clustered_boxes(rng, n, *, objects, image_size, sizes, jitter):
    """Noisy copies of few boxes, as a detector makes them."""
    boxes = random_boxes(rng, objects, image_size=image_size, sizes=sizes)
    copies = boxes[rng.integers(objects, size=n)]
    side = (copies[:, 2:] - copies[:, :2])[:, [0, 1, 0, 1]]
    return (copies + rng.normal(0, jitter, (n, 4)) * side).astype(np.float32)


def boxes(rng):
    a = random_boxes(rng, 14, image_size=(60, 80), sizes=(3, 60))
    special = [
        [0, 0, 10, 10],
        [0, 0, 10, 10],
        [2, 3, 6, 9],
        [10, 0, 20, 10],
        [90, 90, 95, 99],
    ]
    a = np.concatenate(
        [a, np.array(special, np.float32)]
    )  # equal, nested, touching, far
    b = np.concatenate(
        [a[:3] + 1.5, a[-5:], random_boxes(rng, 5, image_size=(60, 80), sizes=(5, 50))]
    )
    ta, tb = tensor(a), tensor(b)
    yield (
        "pairwise",
        dict(
            a=a,
            b=b,
            area=ops.box_area(ta),
            iou=ops.box_iou(ta, tb),
            giou=ops.generalized_box_iou(ta, tb),
            diou=ops.distance_box_iou(ta, tb),
            ciou=ops.complete_box_iou(ta, tb),
        ),
    )
    point = [[5.0, 5, 5, 5], [3, 1, 3, 9]]  # no area: iou 0 with any box that has one
    yield "empty", dict(a=point, b=b, iou=ops.box_iou(tensor(point), tb))

    anchors = random_boxes(rng, 40, image_size=(300, 400), sizes=(8, 300))
    gt = random_boxes(rng, 40, image_size=(300, 400), sizes=(4, 350))
    deltas = rng.normal(0, 1.5, (40, 4))
    deltas[:6, 2:] = rng.uniform(3, 30, (6, 2))  # beyond the bound on tw, th
    for name, weights in (
        ("unit", (1.0, 1.0, 1.0, 1.0)),
        ("weighted", (10.0, 10.0, 5.0, 5.0)),
    ):
        coder = _utils.BoxCoder(weights)
        scaled = deltas * weights
        yield (
            f"coder_{name}",
            dict(
                anchors=anchors,
                gt_boxes=gt,
                stds=1 / np.array(weights),
                encoded=coder.encode_single(tensor(gt), tensor(anchors)),
                deltas=scaled,
                decoded=coder.decode_single(tensor(scaled), tensor(anchors)),
            ),
        )
    image_size = (200, 250)
    clipped = ops.clip_boxes_to_image(tensor(anchors), image_size)
    yield "clip", dict(boxes=anchors, image_size=image_size, clipped=clipped)


def anchors(rng):
    del rng

    def generate(image_size, strides, sizes, aspect_ratios):
        h, w = image_size
        maps = [torch.zeros(1, 1, h // s, w // s) for s in strides]
        images = image_list.ImageList(torch.zeros(1, 3, h, w), [image_size])
        generator = anchor_utils.AnchorGenerator(sizes, aspect_ratios)
        return dict(
            image_size=image_size,
            strides=strides,
            sizes=sizes,
            aspect_ratios=aspect_ratios[0],
            anchors=generator(images, maps)[0],
        )

    ratios = (0.5, 1.0, 2.0)
    yield (
        "fpn",
        generate(
            (128, 192),
            (4, 8, 16, 32, 64),
            tuple((s,) for s in (32, 64, 128, 256, 512)),
            (ratios,) * 5,
        ),
    )
    yield "c4", generate((80, 112), (16,), ((32, 64, 128, 256, 512),), (ratios,))


def matching(rng):
    grid = np.stack(np.meshgrid(np.arange(0, 96, 8), np.arange(0, 64, 8)), -1).reshape(
        -1, 1, 2
    )
    half = np.array([[4, 4], [8, 8], [16, 8], [8, 16], [20, 20]])
    anchors = np.concatenate([grid - half, grid + half], -1).reshape(-1, 4)
    gt = np.concatenate(
        [random_boxes(rng, 8, image_size=(64, 96), sizes=(6, 60)), anchors[77:78] + 4.0]
    )
    # Exactly at the thresholds, far from the rest: 7/10, 3/10, 1/2.
    exact = np.array([[200, 200, 210, 210], [300, 200, 310, 210], [400, 200, 410, 210]])
    parts = exact[[0, 0, 1, 1, 2, 2]] - [[0, 0, x, 0] for x in (3, 0, 7, 1, 5, 2)]
    # The best anchor of one box overlaps a second box more.
    shared = [[500, 0, 510, 10], [504, 0, 524, 10]]
    anchors = np.concatenate([anchors, parts, [[502, 0, 516, 10]]]).astype(np.float32)
    gt = np.concatenate([gt, exact, shared]).astype(np.float32)
    quality = ops.box_iou(tensor(gt), tensor(anchors))
    for name, fg, bg, low in (("rpn", 0.7, 0.3, True), ("roi", 0.5, 0.5, False)):
        index = _utils.Matcher(fg, bg, allow_low_quality_matches=low)(quality)
        labels = np.where(index >= 0, 1, np.where(index == -1, 0, -1))
        yield (
            name,
            dict(
                boxes=anchors,
                gt_boxes=gt,
                fg_iou=fg,
                bg_iou=bg,
                force_best=low,
                labels=labels,
                gt_index=index,
            ),
        )


def nms(rng):
    boxes = clustered_boxes(
        rng, 300, objects=12, image_size=(200, 300), sizes=(15, 150), jitter=0.2
    )
    scores = np.round(
        rng.uniform(0, 1, 300), 2
    )  # many ties: the lower index goes first
    yield (
        "clustered",
        dict(boxes=boxes, scores=scores)
        | {
            f"keep_{t}": ops.nms(tensor(boxes), tensor(scores), t / 10)
            for t in range(1, 10)
        },
    )
    # Neighbours overlap by exactly 1/2, by nothing, fully; one box has no area.
    boxes = np.array(
        [
            [0, 0, 2, 1],
            [0, 0, 1, 1],
            [1, 0, 2, 1],
            [5, 5, 7, 6],
            [5, 5, 7, 6],
            [9, 9, 9, 9],
            [0, 0, 2, 2],
        ],
        np.float32,
    )
    scores = np.array([0.5, 0.9, 0.9, 0.3, 0.3, 0.8, 0.5], np.float32)
    yield (
        "exact",
        dict(
            boxes=boxes,
            scores=scores,
            keep_5=ops.nms(tensor(boxes), tensor(scores), 0.5),
        ),
    )

    boxes = clustered_boxes(
        rng, 400, objects=10, image_size=(200, 300), sizes=(15, 150), jitter=0.1
    )
    scores = rng.permutation(400) / 400
    classes = rng.integers(0, 6, 400)
    keep = {
        f"keep_{t}": ops.batched_nms(
            tensor(boxes), tensor(scores), torch.tensor(classes), t / 10
        )
        for t in (3, 5, 7)
    }
    yield "classwise", dict(boxes=boxes, scores=scores, classes=classes) | keep


def pooled(op, features, rois, rng, extent=(None, None), **kwargs):
    """Values of a pooling op and its gradient at a random cotangent, in NHWC.

    The op sees the map up to `extent`.
    """
    x = tensor(features, grad=True)
    h, w = extent
    nchw = x[:h, :w].permute(2, 0, 1)[None]
    y = op(nchw, [tensor(rois)], **kwargs).permute(0, 2, 3, 1)
    cotangent = rng.integers(-16, 17, y.shape) / 8
    (gradient,) = torch.autograd.grad(y, x, tensor(cotangent))
    return dict(
        features=features, rois=rois, values=y, cotangent=cotangent, gradient=gradient
    )


def hard_rois(rng, image_size):
    """Ordinary RoIs, then tiny, huge, crossing the border, outside, and empty ones."""
    h, w = image_size
    ordinary = random_boxes(rng, 6, image_size=image_size, sizes=(h / 8, h))
    hard = [
        [w / 2, h / 2, w / 2 + 0.3, h / 2 + 0.2],
        [-3 * w, -3 * h, 4 * w, 4 * h],
        [-w / 3, -h / 4, w / 3, h / 3],
        [w - 3, h - 5, w + 40, h + 60],
        [-90, -80, -40, -30],
        [w + 30, 0, w + 90, h],
        [0, 0, w, h],
        [0, 0, 0, 0],
        [w / 3, h / 5, w / 3, h / 2],
    ]
    return np.concatenate([ordinary, np.array(hard, np.float32)])


def roi_align(rng):
    h, w, c = 11, 14, 2
    for aligned in (False, True):
        for stride, size, ratio in (
            (4, (7, 7), 2),
            (16, (3, 5), 1),
            (32, (2, 2), 3),
            (1, (4, 4), 2),
        ):
            values = pooled(
                ops.roi_align,
                rng.normal(0, 1, (h, w, c)),
                hard_rois(rng, (h * stride, w * stride)),
                rng,
                output_size=size,
                spatial_scale=1 / stride,
                sampling_ratio=ratio,
                aligned=aligned,
            )
            yield (
                f"stride{stride}_{'aligned' if aligned else 'legacy'}",
                values
                | dict(
                    stride=stride,
                    output_size=size,
                    sampling_ratio=ratio,
                    aligned=aligned,
                ),
            )


def roi_align_adaptive(rng):
    """A number of samples that depends on the RoI: torchvision's sampling_ratio=-1."""
    h, w, c = 11, 14, 2
    for aligned in (False, True):
        for stride, size in ((4, (7, 7)), (16, (2, 3)), (1, (1, 2))):
            values = pooled(
                ops.roi_align,
                rng.normal(0, 1, (h, w, c)),
                hard_rois(rng, (h * stride, w * stride)),
                rng,
                output_size=size,
                spatial_scale=1 / stride,
                sampling_ratio=-1,
                aligned=aligned,
            )
            yield (
                f"stride{stride}_{'aligned' if aligned else 'legacy'}",
                values | dict(stride=stride, output_size=size, aligned=aligned),
            )


def roi_extent(rng):
    """Images smaller than the map; beyond them lies what must not be read."""
    h, w, c, stride = 11, 14, 2, 4
    for extent in ((8, 14), (11, 9), (5, 6), (1, 1)):
        eh, ew = extent
        rois = hard_rois(rng, (eh * stride, ew * stride))
        common = dict(output_size=(3, 4), spatial_scale=1 / stride, extent=extent)
        scalars = dict(stride=stride, output_size=(3, 4), extent=extent)
        for ratio in (2, -1):
            for aligned in (False, True):
                features = rng.normal(0, 1, (h, w, c))
                features[eh:], features[:, ew:] = 1e6, 1e6
                extra = dict(sampling_ratio=ratio, aligned=aligned)
                values = pooled(ops.roi_align, features, rois, rng, **common, **extra)
                rule = "adaptive" if ratio < 0 else "fixed"
                name = f"align{eh}x{ew}_{rule}_{'aligned' if aligned else 'legacy'}"
                yield name, values | scalars | dict(extra, sampling_ratio=max(ratio, 0))
        features = (rng.permutation(h * w * c).reshape(h, w, c) - 150) / 16  # no ties
        features[eh:], features[:, ew:] = 1e6, 1e6
        values = pooled(ops.roi_pool, features, rois, rng, **common)
        yield f"pool{eh}x{ew}", values | scalars


def roi_pool(rng):
    h, w, c = 11, 14, 2
    halves = np.array(
        [[8, 24, 104, 88], [40, 8, 72, 56], [24, 40, 120, 136], [-8, -24, 40, 24]],
        np.float32,
    )
    for stride, size in ((16, (7, 7)), (8, (3, 5)), (1, (2, 2))):
        rois = np.concatenate(
            [hard_rois(rng, (h * stride, w * stride)), halves * stride / 16]
        )
        features = (rng.permutation(h * w * c).reshape(h, w, c) - 150) / 16  # no ties
        values = pooled(
            ops.roi_pool,
            features,
            rois,
            rng,
            output_size=size,
            spatial_scale=1 / stride,
        )
        yield f"stride{stride}", values | dict(stride=stride, output_size=size)


def multilevel(rng):
    image_size, strides = (512, 640), (4, 8, 16, 32)
    maps = {
        s: rng.integers(-32, 33, (image_size[0] // s, image_size[1] // s, 1)) / 16
        for s in strides
    }
    corner = rng.uniform(0, 60, (24, 2))
    side = np.array(
        [
            [112, 112],
            [224, 224],
            [448, 448],
            [56, 224],
            [448, 112],
            [111.9, 112],
            [224, 223.9],
            [4, 4],
        ]
    )
    borderline = np.concatenate([corner, corner + np.tile(side, (3, 1))], 1)
    borderline[:8] = np.concatenate([np.zeros((8, 2)), side], 1)  # no rounding
    rois = np.concatenate(
        [borderline, random_boxes(rng, 16, image_size=image_size, sizes=(8, 700))]
    ).astype(np.float32)
    pool = ops.MultiScaleRoIAlign(
        [str(s) for s in strides], output_size=4, sampling_ratio=2
    )
    features = {str(s): tensor(m, grad=True) for s, m in maps.items()}
    nchw = {s: m.permute(2, 0, 1)[None] for s, m in features.items()}
    values = pool(nchw, [tensor(rois)], [image_size]).permute(0, 2, 3, 1)
    cotangent = rng.integers(-16, 17, values.shape) / 8
    gradients = torch.autograd.grad(values, list(features.values()), tensor(cotangent))
    yield (
        "fpn",
        dict(
            strides=strides,
            rois=rois,
            levels=pool.map_levels([tensor(rois)]),
            values=values,
            cotangent=cotangent,
        )
        | {f"features_{s}": m for s, m in maps.items()}
        | {f"gradient_{s}": g for s, g in zip(strides, gradients, strict=True)},
    )


def proposals(rng):
    padded, image_size, strides = (64, 96), (59, 83), (8, 16, 32)
    maps = [torch.zeros(1, 1, padded[0] // s, padded[1] // s) for s in strides]
    generator = anchor_utils.AnchorGenerator(
        ((12,), (24,), (48,)), ((0.5, 1.0, 2.0),) * 3
    )
    images = image_list.ImageList(torch.zeros(1, 3, *padded), [image_size])
    anchors = generator(images, maps)[0]
    level_sizes = [3 * m.shape[2] * m.shape[3] for m in maps]
    logits = rng.normal(0, 2, len(anchors))
    deltas = rng.normal(0, 0.3, (len(anchors), 4))
    deltas[::17, 2:] -= 12  # far below min_size
    deltas[::23, 2:] += 9  # beyond the bound
    deltas[::29, 0] += 20  # outside the image: nothing left after clipping
    inputs = dict(anchors=anchors, objectness_logits=logits, box_deltas=deltas)
    for name, pre, post, iou in (
        ("trimmed", 80, 40, 0.7),
        ("all", 1000, 400, 0.7),
        ("sparse", 120, 60, 0.3),
    ):
        limits = [dict(training=n, testing=n) for n in (pre, post)]
        network = rpn.RegionProposalNetwork(
            generator, torch.nn.Identity(), 0.7, 0.3, 256, 0.5, *limits, iou
        )
        decoded = network.box_coder.decode(tensor(deltas), [anchors])
        boxes, scores = network.filter_proposals(
            decoded.reshape(1, -1, 4), tensor(logits)[None], [image_size], level_sizes
        )
        yield (
            name,
            inputs
            | dict(
                image_size=image_size,
                level_sizes=level_sizes,
                pre_nms=pre,
                post_nms=post,
                nms_iou=iou,
                boxes=boxes[0],
                scores=scores[0],
            ),
        )


def detections(rng):
    image_size, num_classes = (150, 200), 5
    rois = clustered_boxes(
        rng, 60, objects=8, image_size=image_size, sizes=(15, 120), jitter=0.15
    )
    logits = rng.normal(0, 1.5, (60, num_classes + 1))
    deltas = rng.normal(0, 0.5, (60, num_classes + 1, 4))
    deltas[::7, :, 2:] -= 50  # smaller than the least size
    for name, score, iou, limit in (("default", 0.05, 0.5, 100), ("few", 0.2, 0.3, 10)):
        heads = roi_heads.RoIHeads(
            None, None, None, 0.5, 0.5, 512, 0.25, None, score, iou, limit
        )
        boxes, scores, classes = heads.postprocess_detections(
            tensor(logits), tensor(deltas).reshape(60, -1), [tensor(rois)], [image_size]
        )
        yield (
            name,
            dict(
                rois=rois,
                class_logits=logits,
                class_deltas=deltas[:, 1:],
                image_size=image_size,
                score=score,
                nms_iou=iou,
                max_detections=limit,
                boxes=boxes[0],
                scores=scores[0],
                classes=classes[0],
            ),
        )


def losses(rng):
    def with_gradients(terms, inputs):
        return {
            f"{term}_by_{name}": torch.autograd.grad(value, x, retain_graph=True)[0]
            for term, value in terms.items()
            for name, x in inputs.items()
            if torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)[0]
            is not None
        }

    # All labelled anchors are sampled: under 256 an image, under half positive.
    labels = rng.choice([-1, 0, 1], (2, 120), p=[0.3, 0.5, 0.2])
    labels[1, labels[1] == 1] = 0  # an image with no object
    logits, deltas = (
        tensor(rng.normal(0, 2, (2, 120)), True),
        tensor(rng.normal(0, 0.4, (2, 120, 4)), True),
    )
    targets = rng.normal(0, 0.4, (2, 120, 4))
    limits = [dict(training=9, testing=9)] * 2
    network = rpn.RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, *limits, 0.7)
    cls, box = network.compute_loss(
        logits.reshape(-1, 1),
        deltas.reshape(-1, 4),
        list(tensor(labels)),
        list(tensor(targets)),
    )
    inputs = dict(objectness_logits=logits, box_deltas=deltas)
    yield (
        "rpn",
        inputs
        | dict(labels=labels, target_deltas=targets, cls=cls, box=box)
        | with_gradients(dict(cls=cls, box=box), inputs),
    )

    labels = rng.choice(5, 64, p=[0.6, 0.1, 0.1, 0.1, 0.1])
    logits, deltas = (
        tensor(rng.normal(0, 2, (64, 5)), True),
        tensor(rng.normal(0, 0.6, (64, 5, 4)), True),
    )
    targets = rng.normal(0, 0.6, (64, 4))
    cls, box = roi_heads.fastrcnn_loss(
        logits, deltas.reshape(64, -1), [torch.tensor(labels)], [tensor(targets)]
    )
    gradients = with_gradients(
        dict(cls=cls, box=box), dict(class_logits=logits, class_deltas=deltas)
    )
    gradients["box_by_class_deltas"] = gradients["box_by_class_deltas"][:, 1:]
    yield (
        "detector",
        dict(
            class_logits=logits,
            class_deltas=deltas[:, 1:],
            labels=labels,
            target_deltas=targets,
            cls=cls,
            box=box,
        )
        | gradients,
    )

    targets = random_boxes(rng, 30, image_size=(60, 80), sizes=(4, 50))
    boxes = targets + rng.normal(0, 4, (30, 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1.5)
    boxes[:4] += 100.0  # far from the target
    boxes[4] = targets[4] + [2, 2, -1, -1]  # inside the target
    for name, function in (
        ("giou", ops.generalized_box_iou_loss),
        ("diou", ops.distance_box_iou_loss),
        ("ciou", ops.complete_box_iou_loss),
    ):
        x = tensor(boxes, True)
        loss = function(x, tensor(targets))
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        yield name, dict(boxes=x, targets=targets, loss=loss, gradient=gradient)

    logits, targets = tensor(rng.normal(0, 4, 60), True), rng.integers(0, 2, 60)
    for name, alpha, gamma in (("focal", 0.25, 2.0), ("focal_other", 0.6, 1.5)):
        loss = ops.sigmoid_focal_loss(logits, tensor(targets), alpha, gamma)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        case = dict(alpha=alpha, gamma=gamma, loss=loss, gradient=gradient)
        yield name, dict(case, logits=logits, targets=targets)


def main():
    modules = (
        boxes,
        anchors,
        matching,
        nms,
        roi_align,
        roi_pool,
        multilevel,
        proposals,
        detections,
        losses,
        roi_align_adaptive,
        roi_extent,
    )
    for seed, module in enumerate(modules):
        save(module.__name__, dict(module(np.random.default_rng(seed))))


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    main()
