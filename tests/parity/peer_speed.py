"""torchvision's side of scripts/bench/speed.py; runs where torch and torchvision are.

Detectors are built as their published weights are used (`peer_torchvision.build`:
frozen norms), and called on the normalised tensor: no resizing is timed. Modes are
"contiguous" and "channels_last"; on a GPU all run under AMP (bfloat16), and "compiled"
is channels_last under `torch.compile`.
"""
# pyright: reportMissingImports=false

import contextlib
import copy
import functools
import pathlib
import sys

import peer_torchvision
import torch
import torchvision
from torchvision.models import detection
from torchvision.models.detection import _utils, roi_heads, rpn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, boxes, roi_align

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "scripts/bench"))
import worker

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def tensor(array):
    return torch.from_numpy(array).to(DEVICE)


def finished(call):
    """`call`, waiting for the device."""

    def run():
        with autocast():
            out = call()
        if CUDA:
            torch.cuda.synchronize()
        return out

    return run


def autocast():
    if not CUDA:
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16)


def without_gradient(call):
    return finished(torch.inference_mode()(call))


# -- Detectors -------------------------------------------------------------------------


def models(case, folder):
    """The detector by mode."""
    model = peer_torchvision.build(case["model"])
    peer_torchvision.load(model, folder / f"{case['model']}.npz")
    model.to(DEVICE)
    wanted = case.get("peer_modes", ["contiguous", "channels_last"])
    found = {}
    if "contiguous" in wanted:
        found["contiguous"] = copy.deepcopy(model)
    if "channels_last" in wanted:
        found["channels_last"] = model.to(memory_format=torch.channels_last)
    if "compiled" in wanted:
        found["compiled"] = copy.deepcopy(model).to(memory_format=torch.channels_last)
        found["compiled"].backbone.compile(dynamic=False)
        found["compiled"].rpn.head.compile(dynamic=False)
    return found


def image_list(case, images, mode):
    images = tensor(images.transpose(0, 3, 1, 2).copy())
    if mode != "contiguous":
        images = images.contiguous(memory_format=torch.channels_last)
    return ImageList(images, [tuple(case["size"])] * case["batch"])


def infer(case, folder):
    inputs, calls, check = worker.image_inputs(case), {}, []
    for mode, model in models(case, folder).items():
        model.eval()
        images = image_list(case, inputs["images"], mode)

        def predict(model=model, images=images):
            features = model.backbone(images.tensors)
            proposals, _ = model.rpn(images, features)
            return model.roi_heads(features, proposals, images.image_sizes)[0]

        calls[mode] = without_gradient(predict)
        found = calls[mode]()
        check = [
            float(sum(len(x["boxes"]) for x in found)),
            float(sum(x["scores"].sum() for x in found)),
        ]
    return worker.Prepared(calls, check)


def train(case, folder):
    inputs, calls, check = worker.image_inputs(case), {}, []
    targets = [
        dict(boxes=tensor(b), labels=tensor(c))
        for b, c in zip(inputs["boxes"], inputs["labels"], strict=True)
    ]
    for mode, model in models(case, folder).items():
        model.train()
        body = model.backbone.body
        for part in (body.conv1, body.layer1):
            part.requires_grad_(case["all_stages"])
        chosen = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(chosen, lr=1e-7, momentum=0.9, weight_decay=1e-4)
        images = image_list(case, inputs["images"], mode)

        def step(model=model, images=images, optimizer=optimizer):
            with autocast():
                features = model.backbone(images.tensors)
                proposals, first = model.rpn(images, features, targets)
                sizes = images.image_sizes
                _, second = model.roi_heads(features, proposals, sizes, targets)
                loss = torch.stack([*first.values(), *second.values()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        calls[mode] = finished(step)
        check = [calls[mode]().item()]
    return worker.Prepared(calls, check)


def part(case, folder):
    """One part of inference, on what the parts before it give."""
    inputs, calls, check = worker.image_inputs(case), {}, []
    for mode, model in models(case, folder).items():
        model.eval()
        images = image_list(case, inputs["images"], mode)
        sizes, rpn_, heads = images.image_sizes, model.rpn, model.roi_heads
        with torch.inference_mode(), autocast():
            features = model.backbone(images.tensors)
            maps = list(features.values())
            scores, deltas = rpn_.head(maps)
            per_level = [s.shape[1] * s.shape[2] * s.shape[3] for s in scores]
            grid = rpn_.anchor_generator(images, maps)
            logits, boxes_ = detection.rpn.concat_box_prediction_layers(scores, deltas)

            def propose(rpn_=rpn_, grid=grid, logits=logits, boxes_=boxes_,
                        sizes=sizes, per_level=per_level):  # fmt: skip
                decoded = rpn_.box_coder.decode(boxes_, grid).view(len(grid), -1, 4)
                return rpn_.filter_proposals(decoded, logits, sizes, per_level)

            proposals, _ = propose()
            pooled = heads.box_roi_pool(features, proposals, sizes)
            second = heads.box_predictor(heads.box_head(pooled))

        def box_head(heads=heads, pooled=pooled):
            return heads.box_predictor(heads.box_head(pooled))

        parts = dict(
            backbone_fpn=functools.partial(model.backbone, images.tensors),
            rpn_head=functools.partial(rpn_.head, maps),
            proposals=propose,
            roi_align=functools.partial(heads.box_roi_pool, features, proposals, sizes),
            box_head=box_head,
            postprocess=functools.partial(
                heads.postprocess_detections, *second, proposals, sizes
            ),
        )
        calls[mode] = without_gradient(parts[case["part"]])
        check = [float(len(proposals[0]))]
    return worker.Prepared(calls, check)


# -- Operations ------------------------------------------------------------------------


def pooling(case, folder):
    """RoIAlign on one level, or on four."""
    del folder
    side, strides = tuple(case["size"]), list(case["strides"])
    maps = {
        str(s): tensor(x.transpose(0, 3, 1, 2).copy())
        for s, x in worker.levels(side, tuple(strides)).items()
    }
    rois = tensor(worker.rois(case["rois"], side))
    several = MultiScaleRoIAlign([str(s) for s in strides], 7, 2)

    def pool(maps):
        if len(strides) > 1:
            return several(maps, [rois], [side])
        return roi_align(maps[str(strides[0])], [rois], 7, 1 / strides[0], 2)

    def both():
        found = {k: v.detach().requires_grad_() for k, v in maps.items()}
        out = pool(found)
        out.backward(out.detach())
        return next(iter(found.values())).grad

    call = finished(both) if case["backward"] else without_gradient(lambda: pool(maps))
    return worker.Prepared(dict(contiguous=call), [float(call().square().sum())])


def nms(case, folder):
    del folder
    inputs = worker.crowd(case["n"], case["scene"])
    arrays = tensor(inputs["boxes"]), tensor(inputs["scores"])
    call = without_gradient(lambda: boxes.nms(*arrays, case["iou"]))
    return worker.Prepared(dict(contiguous=call), [float(len(call()))])


def match(case, folder):
    del folder
    side = tuple(case["size"])
    anchors = tensor(worker.anchors(side))
    objects = tensor(worker.objects(case["objects"], side))
    matcher = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
    call = without_gradient(lambda: matcher(boxes.box_iou(objects, anchors)))
    return worker.Prepared(dict(contiguous=call), [float((call() >= 0).sum())])


def topk(case, folder):
    del folder
    scores = tensor(worker.crowd(case["n"], "typical")["scores"])
    call = without_gradient(lambda: scores.topk(case["k"]))
    return worker.Prepared(dict(contiguous=call), [float(call()[0].sum())])


def postprocess(case, folder):
    del folder
    side = tuple(case["size"])
    found = worker.second_stage(case["rois"], case["classes"], side, case["scene"])
    found = {name: tensor(x) for name, x in found.items()}
    none = [None] * 4
    heads = roi_heads.RoIHeads(
        *none[:3], 0.5, 0.5, 512, 0.25, None, case["score"], 0.5, case["detections"]
    )
    deltas = torch.cat([torch.zeros_like(found["deltas"][:, :1]), found["deltas"]], 1)
    deltas = deltas.reshape(len(deltas), -1)
    arguments = found["logits"], deltas, [found["boxes"]], [side]
    call = without_gradient(lambda: heads.postprocess_detections(*arguments))
    kept = call()
    return worker.Prepared(
        dict(contiguous=call), [float(len(kept[0][0])), float(kept[1][0].sum())]
    )


def proposals(case, folder):
    """Proposals of one level: top `n`, NMS, `post_nms` best."""
    del folder
    side = tuple(case["size"])
    found = worker.crowd(case["anchors"], case["scene"], side)
    boxes_, scores = tensor(found["boxes"])[None], tensor(found["scores"])[None]
    count = dict(training=case["n"], testing=case["n"])
    kept = dict(training=case["post_nms"], testing=case["post_nms"])
    head = rpn.RegionProposalNetwork(
        None, None, 0.7, 0.3, 256, 0.5, count, kept, 0.7
    ).eval()
    call = without_gradient(
        lambda: head.filter_proposals(boxes_, scores, [side], [case["anchors"]])
    )
    return worker.Prepared(dict(contiguous=call), [float(len(call()[0][0]))])


def prepare(case, folder):
    return globals()[case["kind"]](case, folder)


def peak_mb():
    if CUDA:
        return torch.cuda.max_memory_allocated() / 2**20
    return worker.largest_resident()


if __name__ == "__main__":
    if CUDA:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    device = torch.cuda.get_device_name() if CUDA else "cpu"
    worker.serve(
        prepare,
        versions=f"torch {torch.__version__}, torchvision {torchvision.__version__}",
        device=device,
        peak_mb=peak_mb,
    )
