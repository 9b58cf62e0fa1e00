"""Our side of scripts/bench/speed.py: the cases of tests/parity/peer_speed.py in JAX.

Every case is one jitted program on arrays that are on the device already. Detectors
are the experiments that reproduce torchvision's, with the same weights.
"""

import functools
import pathlib
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import worker

from frcnn_jax import models, proposals
from frcnn_jax.ops import matching, nms, roi_align
from frcnn_jax.training import step as steps
from frcnn_jax.training.algorithms import faster_rcnn as algorithm
from frcnn_jax.training.compiling import announced
from frcnn_jax.training.metrics import log_to_stderr
from frcnn_jax.training.optimizer import make_optimizer, trainable_mask
from frcnn_jax.training.state import initial_state
from frcnn_jax.types import Batch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from tests.parity import compare_torchvision as peers  # noqa: E402

GPU = jax.default_backend() != "cpu"
NO_SCALE = dict(pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0))


def weights(name: str, folder: pathlib.Path) -> None:
    """Random weights under which NMS has something to do, for both sides."""
    peers.calibrated(name, 0, (256, 320), folder / f"{name}.npz")


def program(
    function: Any, *arguments: Any, donate: tuple[int, ...] = ()
) -> tuple[Any, dict[str, float]]:
    """`function` compiled for `arguments`, and what compiling took and gave."""
    with announced("a program"):
        start = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        traced = time.perf_counter()
        compiled = lowered.compile()
        done = time.perf_counter()
    more = dict(trace_ms=1e3 * (traced - start), compile_ms=1e3 * (done - traced))
    memory = compiled.memory_analysis()
    if memory is not None:
        used = memory.argument_size_in_bytes + memory.output_size_in_bytes
        used += memory.temp_size_in_bytes - memory.alias_size_in_bytes
        more["memory_mb"] = used / 2**20
    cost = compiled.cost_analysis()
    if cost and "flops" in cost:
        more["gflop"] = cost["flops"] / 1e9
    return compiled, more


def prepared(function: Any, *arguments: Any, check: Any) -> worker.Prepared:
    """A case of one program; `check` makes numbers of its result."""
    arguments = jax.device_put(arguments)
    compiled, more = program(function, *arguments)
    call = lambda: jax.block_until_ready(compiled(*arguments))  # noqa: E731
    return worker.Prepared(dict(ours=call), [float(x) for x in check(call())], more)


# -- Detectors -------------------------------------------------------------------------


@functools.cache
def detector(name: str, dtype: str, remat: bool) -> tuple[Any, dict[str, Any]]:
    """The model that takes normalised images, and its experiment."""
    _, config = peers.build(name)
    options = {**config["model"], **NO_SCALE, "dtype": dtype}
    if remat:
        options["backbone"] = {**options["backbone"], "remat": True}
    return models.build_detector(num_classes=peers.CLASSES, **options), config


def given(case: dict[str, Any], folder: pathlib.Path) -> tuple[Any, ...]:
    """Model, configuration, variables and batch of a case."""
    precision = case.get("dtype", "float32")
    model, config = detector(case["model"], precision, case.get("remat", False))
    file = folder / f"{case['model']}.npz"
    if file.exists():
        variables = peers.load(case["model"], file)
    else:  # nothing is computed
        variables = jax.tree.map(
            lambda x: np.zeros(x.shape, x.dtype), peers.variables_of(case["model"])
        )
    inputs, b = worker.image_inputs(case), case["batch"]
    true = np.ones(inputs["labels"].shape, bool)
    batch = Batch(
        image=inputs["images"],
        image_size=np.full((b, 2), case["size"]),
        original_size=np.full((b, 2), case["size"]),
        gt_boxes=inputs["boxes"],
        gt_classes=inputs["labels"].astype(np.int32),
        gt_valid=true,
        gt_ignore=~true,
        index=np.arange(b),
        valid=np.ones(b, bool),
    )
    return model, config, variables, batch


def infer(case: dict[str, Any], folder: pathlib.Path) -> worker.Prepared:
    model, config, variables, batch = given(case, folder)
    predict = partial(steps.predict_step, model=model, config=config)

    def check(found):
        return found.valid.sum(), found.scores.sum()

    return prepared(predict, variables, batch, check=check)


def training(case: dict[str, Any], folder: pathlib.Path) -> tuple[Any, ...]:
    """The step as a function of state, batch and key, and these."""
    model, config, variables, batch = given(case, folder)
    optimizer, _ = make_optimizer(
        1000, name="sgd", learning_rate=1e-7, weight_decay=1e-4, schedule="constant"
    )
    frozen = () if case["all_stages"] else config["frozen"]
    trainable = trainable_mask(variables["params"], frozen)
    options = dict(model=model, optimizer=optimizer, trainable=trainable)
    state = initial_state(
        jax.random.key(0), batch.image.shape[1:], variables=variables, **options
    )
    step = partial(steps.train_step, **options, config=config, axis_name=None)
    return step, state, batch, jax.random.key(1)


def train(case: dict[str, Any], folder: pathlib.Path) -> worker.Prepared:
    step, *arguments = training(case, folder)
    return prepared(step, *arguments, check=lambda out: [out[1]["total"]])


def compiling(case: dict[str, Any], folder: pathlib.Path) -> worker.Prepared:
    """A case's program is compiled, not run."""
    if case["of"] == "train":
        step, *arguments = training(case, folder)
        _, more = program(step, *arguments, donate=(0,))
    else:
        model, config, *arguments = given(case, folder)
        step = partial(steps.predict_step, model=model, config=config)
        _, more = program(step, *arguments)
    return worker.Prepared({}, [], more)


def part(case: dict[str, Any], folder: pathlib.Path) -> worker.Prepared:
    """One part of inference, on what the parts before it give."""
    model, config, variables, batch = given(case, folder)
    sizes = jnp.asarray(batch.image_size)

    def backbone(variables, images):
        return model.apply(variables, images, method="features")

    def head(variables, features):
        levels = {s: features[s] for s in sorted(model.levels)}
        return model.apply(variables, levels, method=lambda m, x: m.rpn_head(x))

    variables = jax.device_put(variables)
    with announced("the parts of inference"):
        features = jax.jit(backbone)(variables, batch.image)
    maps = {s: features[s].shape[1:3] for s in sorted(model.levels)}
    k = model.rpn_head.num_anchors
    level_sizes = tuple(h * w * k for h, w in maps.values())
    anchors = jnp.asarray(model.anchors(maps))
    anchors = jnp.broadcast_to(anchors, (len(sizes), *anchors.shape))

    def propose(logits, deltas):
        out = models.RPNOutput(features, anchors, logits, deltas, level_sizes)
        return algorithm.rpn_proposals(out, sizes, **config["proposals"]["eval"])

    def pool(features, rois):
        return model.pool(features, rois)

    def box_head(variables, pooled):
        return model.apply(variables, pooled, method=lambda m, x: m.box_head(x))

    def finish(rois, valid, logits, deltas):
        post = partial(proposals.postprocess, **config["postprocess"])
        return jax.vmap(post)(rois, valid, logits, deltas, sizes)

    with announced("more parts of inference"):
        logits, deltas = jax.jit(head)(variables, features)
        props = jax.jit(propose)(logits, deltas)
        pooled = jax.jit(pool)(features, props.boxes)
        second = jax.block_until_ready(jax.jit(box_head)(variables, pooled))
    parts = dict(
        backbone_fpn=(backbone, variables, batch.image),
        rpn_head=(head, variables, features),
        proposals=(propose, logits, deltas),
        roi_align=(pool, features, props.boxes),
        box_head=(box_head, variables, pooled),
        postprocess=(finish, props.boxes, props.valid, *second),
    )
    count = [props.valid[0].sum()]
    return prepared(*parts[case["part"]], check=lambda _: count)


# -- Operations ------------------------------------------------------------------------


def pooling(case: dict[str, Any], folder: pathlib.Path) -> worker.Prepared:
    del folder
    side = tuple(case["size"])
    maps = {s: x[0] for s, x in worker.levels(side, tuple(case["strides"])).items()}

    def pool(maps, rois):
        if len(maps) > 1:
            return roi_align.multilevel_roi_align(maps, rois, aligned=False)
        ((stride, x),) = maps.items()
        return roi_align.roi_align(x, rois, stride=stride, aligned=False)

    def both(maps, rois):
        out, pull = jax.vjp(lambda maps: pool(maps, rois), maps)
        return pull(out)[0][case["strides"][0]]

    run = both if case["backward"] else pool
    rois = worker.rois(case["rois"], side)
    return prepared(run, maps, rois, check=lambda x: [jnp.square(x).sum()])


def nms_(case: dict[str, Any], folder: pathlib.Path) -> worker.Prepared:
    del folder
    inputs = worker.crowd(case["n"], case["scene"])
    run = partial(nms.nms, iou_threshold=case["iou"])
    check = lambda keep: [keep.sum()]  # noqa: E731
    return prepared(run, inputs["boxes"], inputs["scores"], check=check)


def match(case: dict[str, Any], folder: pathlib.Path) -> worker.Prepared:
    del folder
    side, n = tuple(case["size"]), case["objects"]
    run = partial(matching.match, fg_iou=0.7, bg_iou=0.3, force_best=True)
    arguments = worker.anchors(side), worker.objects(n, side), np.ones(n, bool)
    return prepared(run, *arguments, check=lambda m: [(m.labels == 1).sum()])


def topk(case: dict[str, Any], folder: pathlib.Path) -> worker.Prepared:
    del folder
    scores = worker.crowd(case["n"], "typical")["scores"]
    run = partial(jax.lax.top_k, k=case["k"])
    return prepared(run, scores, check=lambda found: [found[0].sum()])


def postprocess(case: dict[str, Any], folder: pathlib.Path) -> worker.Prepared:
    del folder
    side = tuple(case["size"])
    found = worker.second_stage(case["rois"], case["classes"], side, case["scene"])
    run = partial(
        proposals.postprocess,
        score=case["score"],
        max_detections=case["detections"],
    )
    arguments = found["boxes"], np.ones(case["rois"], bool), found["logits"]
    return prepared(
        *(run, *arguments, found["deltas"], np.array(side)),
        check=lambda d: (d.valid.sum(), d.scores.sum()),
    )


def propose(case: dict[str, Any], folder: pathlib.Path) -> worker.Prepared:
    del folder
    side = tuple(case["size"])
    found = worker.crowd(case["anchors"], case["scene"], side)
    scores = found["scores"]

    def run(boxes, scores):
        logits = jax.scipy.special.logit(jnp.clip(scores, 1e-6, 1 - 1e-6))
        return proposals.select_proposals(
            *(boxes, logits, jnp.zeros_like(boxes), jnp.array(side)),
            pre_nms=case["n"],
            post_nms=case["post_nms"],
            exclude_padding=False,
        )

    return prepared(run, found["boxes"], scores, check=lambda p: [p.valid.sum()])


KINDS = dict(
    infer=infer,
    train=train,
    part=part,
    compiling=compiling,
    pooling=pooling,
    nms=nms_,
    match=match,
    topk=topk,
    postprocess=postprocess,
    proposals=propose,
)


def prepare(case: dict[str, Any], folder: pathlib.Path) -> worker.Prepared:
    return KINDS[case["kind"]](case, folder)


def peak_mb() -> float:
    statistics = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"] / 2**20
    return worker.largest_resident()


if __name__ == "__main__":
    peers.flags.FLAGS(
        sys.argv[:1]
    )  # the defaults of tests/parity/compare_torchvision.py
    log_to_stderr()
    worker.serve(
        prepare,
        versions=f"jax {jax.__version__}",
        device=jax.devices()[0].device_kind,
        peak_mb=peak_mb,
        weights=weights,
    )
