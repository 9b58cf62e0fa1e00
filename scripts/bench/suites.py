"""The cases of speed.py, by suite: what each side is asked to prepare."""

import re
from typing import Any

Case = dict[str, Any]


def network(kind: str, name: str, size: tuple[int, int], batch: int, **more) -> Case:
    model = dict(kind=kind, model=name, size=size, batch=batch)
    return dict(model, weights=name, **more)


def cpu_cases() -> dict[str, Case]:
    r50, mobile = "r50_fpn", "mobilenet_v3_low"
    full, small, low = (800, 1344), (480, 640), (320, 320)
    cases = {
        "infer_r50_fpn_800x1344": network("infer", r50, full, 1, tuned=True),
        "infer_r50_fpn_480x640": network("infer", r50, small, 1, tuned=True),
        "infer_mobilenet_v3_320": network("infer", mobile, low, 1, tuned=True),
    }
    for name, stages in (("", False), ("_all", True)):
        cases[f"train_r50_fpn_480x640_b2{name}"] = network(
            "train", r50, small, 2, all_stages=stages
        )
    for part in PARTS:
        cases[f"part_{part}_800x1344"] = network("part", r50, full, 1, part=part)
    return cases | {
        "infer_r50_fpn_240x320": network("infer", r50, (240, 320), 1),
        "infer_mobilenet_v3_320_b8": network("infer", mobile, low, 8),
        "infer_r50_fpn_480x640_b8": network("infer", r50, small, 8),
        "infer_r50_fpn_800x1344_b8": network("infer", r50, full, 8),
    }


def backbone_cases() -> dict[str, Case]:
    """The same detector, torchvision's R50-FPN (v1), on other backbones."""
    size = (480, 640)
    cases = {
        f"infer_{name.removesuffix('_fpn')}_fpn_480x640": network(
            "infer", name, size, 1
        )
        for name in ("r50_fpn", "convnext_t", "swin_t")
    }
    for name in ("convnext_t", "swin_t"):
        cases[f"part_backbone_fpn_{name}_480x640"] = network(
            "part", name, size, 1, part="backbone_fpn"
        )
    return cases


PARTS = (
    *("backbone_fpn", "rpn_head", "proposals", "roi_align", "box_head"),
    "postprocess",
)


def ops_cases() -> dict[str, Case]:
    full, four = (800, 1344), (4, 8, 16, 32)
    cases = {}
    for name, backward in (("forward", False), ("forward_backward", True)):
        for prefix, strides in (("roi_align", (4,)), ("multilevel_roi_align", four)):
            cases[f"{prefix}_{name}"] = dict(
                kind="pooling", size=full, strides=strides, rois=1000, backward=backward
            )
    for n in (1000, 2000, 4000, 6000, 12000):
        for iou in (0.7, 0.3):
            name = f"nms_{n}" if iou == 0.7 else f"nms_{n}_iou_0.3"
            cases[name] = dict(kind="nms", n=n, iou=iou, scene="typical")
    for n in (2000, 12000):
        for scene in ("all", "none", "equal"):
            cases[f"nms_{n}_{scene}"] = dict(kind="nms", n=n, iou=0.7, scene=scene)
    for n in (1, 20, 100, 400):
        cases[f"match_{n}x268k"] = dict(kind="match", size=full, objects=n)
    cases["topk_2000_of_268k"] = dict(kind="topk", n=268_569, k=2000)
    for n, kept in ((2000, 1000), (6000, 300), (12000, 2000)):
        for scene in ("typical", "all", "none", "equal"):
            name = f"proposals_{n}_to_{kept}"
            cases[name if scene == "typical" else f"{name}_{scene}"] = dict(
                kind="proposals", size=full, anchors=21546, n=n, post_nms=kept,
                scene=scene,
            )  # fmt: skip
    for classes in (20, 80, 1203):
        for scene in ("typical", "all", "none", "equal"):
            name = f"postprocess_{classes}_classes"
            cases[name if scene == "typical" else f"{name}_{scene}"] = dict(
                kind="postprocess", size=full, rois=1000, classes=classes, scene=scene,
                **(dict(score=1e-4, detections=300) if classes > 1000 else
                   dict(score=0.05, detections=100)),
            )  # fmt: skip
    for n in (100, 300, 2000):
        cases[f"multilevel_roi_align_{n}"] = dict(
            kind="pooling", size=full, strides=four, rois=n, backward=False
        )
    return cases


def compile_cases() -> dict[str, Case]:
    cases = {}
    for of, size, batch in (("infer", (800, 1344), 1), ("train", (480, 640), 2)):
        name = f"compile_{of}_r50_fpn_{size[0]}x{size[1]}"
        case = network("compiling", "r50_fpn", size, batch, of=of, all_stages=False)
        case |= dict(weights="", cache=name, peer=False)
        cases |= {f"{name}_first": case, f"{name}_cached": case}
    name = "memory_train_r50_fpn_800x1344_b2_remat"
    again = network("compiling", "r50_fpn", (800, 1344), 2, all_stages=False)
    cases[name] = dict(again, of="train", remat=True, weights="", peer=False)
    for batch in (1, 2, 4):
        cases[f"memory_train_r50_fpn_800x1344_b{batch}"] = dict(
            network("train", "r50_fpn", (800, 1344), batch, all_stages=False),
            **dict(ours_kind="compiling", of="train", weights="r50_fpn"),
            **dict(peer_modes=["contiguous"], once=True),
        )
    return cases


def gpu_cases() -> dict[str, Case]:
    """In the order of their weight: time may run out."""
    full, modes = (800, 1344), ["channels_last", "compiled"]
    options = dict(dtype="bfloat16", peer_modes=modes)
    cases = {
        "infer_r50_fpn_800x1344": network("infer", "r50_fpn", full, 1, **options),
        "train_r50_fpn_800x1344_b16": network(
            "train", "r50_fpn", full, 16, all_stages=False, **options
        ),
        "infer_r50_fpn_800x1344_b8": network("infer", "r50_fpn", full, 8, **options),
    }
    options = dict(dtype="bfloat16", peer_modes=["channels_last"])
    for part in ("rpn_head", "proposals", "roi_align", "backbone_fpn", "box_head"):
        cases[f"part_{part}_800x1344"] = network(
            "part", "r50_fpn", full, 1, part=part, **options
        )
    wanted = (
        r"^(roi_align|multilevel_roi_align)_forward|^nms_(2000|12000)(_all)?$"
        r"|^match_100|^topk|^postprocess_(80|1203)_classes$|^proposals_12000_to_2000$"
    )
    return cases | {k: v for k, v in ops_cases().items() if re.search(wanted, k)}


def shrunk(case: Case) -> Case:
    """A case of the same kind that takes no time."""
    small = dict(n=200, k=50, rois=20, anchors=400, post_nms=50, objects=3, classes=5)
    case = {k: small.get(k, v) for k, v in case.items()}
    if "size" in case:
        case["size"] = (64, 96)
    return case


SUITES = dict(
    cpu=cpu_cases,
    backbones=backbone_cases,
    gpu=gpu_cases,
    ops=ops_cases,
    compile=compile_cases,
)
