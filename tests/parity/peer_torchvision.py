"""What torchvision's detectors answer, for tests/parity/compare_torchvision.py.

Runs where torch and torchvision are (`make peer`), needs NumPy besides, and talks by
files: every line on stdin is a request's .npz, the answer is written beside it as
NAME.answer.npz and its path printed. A request holds `model` (a name below),
`weights` (an .npz with a state dict), `images` [b, 3, h, w] normalised and padded,
`sizes` [b, 2]; with `boxes` [b, g, 4], `labels` [b, g], `steps` and `rate` it is a
training request. Arrays are laid out as in frcnn_jax where they have an axis of
channels: [b, h, w, c]. With `rois` [r, 4], `features` [h, w, c], `stride`, `output` and
`ratios` it asks for RoIAlign alone, aligned, -1 being the adaptive rule; with `echo`
for the state dict as it was loaded.
"""
# pyright: reportMissingImports=false

import pathlib
import sys

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import detection
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as box_ops
from torchvision.ops.misc import FrozenBatchNorm2d, Permute

MODELS = {  # name: (constructor, epsilon of the backbone's frozen norms)
    "r50_fpn": (detection.fasterrcnn_resnet50_fpn, 0.0),
    "r50_fpn_v2": (detection.fasterrcnn_resnet50_fpn_v2, None),
    "mobilenet_v3": (detection.fasterrcnn_mobilenet_v3_large_fpn, 1e-5),
    "mobilenet_v3_low": (detection.fasterrcnn_mobilenet_v3_large_320_fpn, 1e-5),
}
BODIES = {  # name: (classifier, channels of its first map)
    "convnext_t": (torchvision.models.convnext_tiny, 96),
    "swin_t": (torchvision.models.swin_t, 96),
}
COORDINATE_TRICK = box_ops._batched_nms_coordinate_trick
_cache = {}


def build(name):
    """The model as its published weights are used: frozen norms unless it is v2."""
    if name in BODIES and name not in _cache:
        _cache[name] = on_body(*BODIES[name])
    if name not in _cache:
        make, eps = MODELS[name]
        model = make(weights=None, weights_backbone=None)
        if eps is not None:
            freeze(model.backbone.body, eps)
        _cache[name] = model
    return _cache[name]


class NCHW(IntermediateLayerGetter):
    """The maps of a classifier's stages, Swin's with their channels first."""

    def forward(self, x):
        maps = super().forward(x)
        if isinstance(self["0"][1], Permute):  # Swin
            maps = {k: v.permute(0, 3, 1, 2) for k, v in maps.items()}
        return maps


def on_body(make, width):
    """torchvision's R50-FPN (v1) with the stages of another classifier."""
    stages = {str(2 * i + 1): str(i) for i in range(4)}
    features = make(weights=None).features
    widths = [width * 2**i for i in range(4)]
    backbone = BackboneWithFPN(features, stages, widths, 256)
    backbone.body = NCHW(features, stages)
    return detection.FasterRCNN(backbone, num_classes=91)


def freeze(module, eps):
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps))
        else:
            freeze(child, eps)


def load(model, file):
    """The weights must be all there, except for the counters of batch norms."""
    with np.load(str(file)) as weights:
        state = {name: torch.from_numpy(weights[name]) for name in weights.files}
    missing, unexpected = model.load_state_dict(state, strict=False)
    buffers = ("num_batches_tracked", "relative_position_index")
    missing = [name for name in missing if not name.endswith(buffers)]
    if missing or unexpected:
        raise ValueError(f"missing {missing[:5]}, unexpected {unexpected[:5]}")


def state(model):
    """The state dict, for whoever wants to see what was loaded."""
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    return {n: a for n, a in arrays.items() if not n.endswith("num_batches_tracked")}


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def image_list(request):
    sizes = [(int(h), int(w)) for h, w in request["sizes"]]
    return ImageList(torch.from_numpy(request["images"]), sizes), sizes


@torch.no_grad()
def forward(model, request):
    """Every layer for one image, with torchvision's NMS and with exact NMS."""
    model.eval()
    images, sizes = image_list(request)
    features = model.backbone(images.tensors)
    answer = {f"features/{i}": nhwc(x) for i, x in enumerate(features.values())}
    maps = list(features.values())
    logits, deltas = detection.rpn.concat_box_prediction_layers(*model.rpn.head(maps))
    anchors = model.rpn.anchor_generator(images, maps)[0]
    answer.update(
        anchors=anchors.numpy(),
        rpn_logits=logits.numpy().reshape(1, -1),
        rpn_deltas=deltas.numpy().reshape(1, -1, 4),
    )
    for kind in ("", "exact/"):
        if kind:
            box_ops._batched_nms_coordinate_trick = box_ops._batched_nms_vanilla
        proposals, _ = model.rpn(images, features)
        pooled = model.roi_heads.box_roi_pool(features, proposals, sizes)
        hidden = model.roi_heads.box_head(pooled)
        class_logits, class_deltas = model.roi_heads.box_predictor(hidden)
        boxes, scores, labels = model.roi_heads.postprocess_detections(
            class_logits, class_deltas, proposals, sizes
        )
        answer |= {
            f"{kind}proposals": proposals[0].numpy(),
            f"{kind}class_logits": class_logits.numpy(),
            f"{kind}class_deltas": class_deltas.numpy().reshape(
                len(class_logits), -1, 4
            ),
            f"{kind}boxes": boxes[0].numpy(),
            f"{kind}scores": scores[0].numpy(),
            f"{kind}labels": labels[0].numpy(),
        }
    box_ops._batched_nms_coordinate_trick = COORDINATE_TRICK
    return answer


def pool(request):
    """RoIAlign of one map at several sampling ratios."""
    features = torch.from_numpy(request["features"]).permute(2, 0, 1)[None]
    rois = [torch.from_numpy(request["rois"])]
    return {
        str(ratio): torchvision.ops.roi_align(
            features.contiguous(),
            rois,
            int(request["output"]),
            1 / float(request["stride"]),
            int(ratio),
            aligned=True,
        )
        .permute(0, 2, 3, 1)
        .numpy()
        for ratio in request["ratios"]
    }


def train(model, request):
    """Losses and samples of every step of SGD, and the gradients of the first."""
    dtype = getattr(torch, str(request.get("dtype", "float32")))
    model.to(dtype)
    request = dict(
        request,
        images=request["images"].astype(str(dtype).removeprefix("torch.")),
        boxes=request["boxes"].astype(str(dtype).removeprefix("torch.")),
    )
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.requires_grad_(False)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.grad = None
    chosen = [p for p in parameters.values() if p.requires_grad]
    optimizer = torch.optim.SGD(chosen, lr=float(request["rate"]), momentum=0.9)
    images, sizes = image_list(request)
    targets = [
        dict(boxes=torch.from_numpy(b), labels=torch.from_numpy(c).long())
        for b, c in zip(request["boxes"], request["labels"], strict=True)
    ]
    torch.manual_seed(0)
    answer, sampled = {}, {}
    record(model, sampled)
    for step in range(int(request["steps"])):
        features = model.backbone(images.tensors)
        proposals, rpn = model.rpn(images, features, targets)
        _, roi = model.roi_heads(features, proposals, sizes, targets)
        terms = [
            *(rpn["loss_objectness"], rpn["loss_rpn_box_reg"]),
            *(roi["loss_classifier"], roi["loss_box_reg"]),
        ]
        optimizer.zero_grad()
        torch.stack(terms).sum().backward()
        answer[f"losses/{step}"] = np.array([x.item() for x in terms])
        answer |= {f"{name}/{step}": np.copy(x) for name, x in sampled.items()}
        if step == 0:
            answer |= {
                f"gradient/{name}": p.grad.numpy().copy()
                for name, p in parameters.items()
                if p.grad is not None
            }
        optimizer.step()
    return answer


def record(model, sampled):
    """Keep which anchors and RoIs are drawn, by wrapping the two samplers."""
    rpn, heads = model.rpn, model.roi_heads
    sampler = type(rpn.fg_bg_sampler)
    drawn = sampler(256, 0.5)

    def draw_anchors(labels):
        positive, negative = drawn(labels)
        sampled["anchor_labels"] = np.stack(
            [
                np.where(p.numpy() > 0, 1, np.where(n.numpy() > 0, 0, -1))
                for p, n in zip(positive, negative, strict=True)
            ]
        ).astype(np.int8)
        return positive, negative

    choose = type(heads).select_training_samples

    def choose_rois(proposals, targets):
        found = choose(heads, proposals, targets)
        n = heads.fg_bg_sampler.batch_size_per_image
        sampled["rois"] = np.zeros((len(found[0]), n, 4), np.float32)
        sampled["roi_labels"] = np.full((len(found[0]), n), -1)
        for i, (rois, labels) in enumerate(zip(found[0], found[2], strict=True)):
            sampled["rois"][i, : len(rois)] = rois.numpy()
            sampled["roi_labels"][i, : len(labels)] = labels.numpy()
        return found

    rpn.fg_bg_sampler = draw_anchors
    heads.select_training_samples = choose_rois


def main():
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    for line in sys.stdin:
        path = pathlib.Path(line.strip())
        with np.load(path) as file:
            request = {name: file[name] for name in file.files}
        if "rois" in request:
            answer = pool(request)
        else:
            model = build(str(request["model"]))
            load(model, request["weights"])
            run = train if "steps" in request else forward
            answer = state(model) if "echo" in request else run(model, request)
        versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
        target = path.with_suffix(".answer.npz")
        np.savez(target, versions=np.array(versions), **answer)
        print(target, flush=True)


if __name__ == "__main__":
    main()
