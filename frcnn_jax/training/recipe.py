"""A recipe from the data: the leaves that an experiment leaves open are filled once.

An open leaf is a typed placeholder, `experiments/finetune.py` has them. `complete` fills
them after all flags are read: a leaf that a flag sets is kept, and the others follow it.
The log says what was chosen and why; `config.json` and the checkpoints hold the values,
and a resumed run takes them from there. Only the training images are looked at, but for
`max_boxes`, which no image may exceed.

| leaf | rule |
| --- | --- |
| `data.short_side` | 300 on CPUs, 800 elsewhere; less for small images, more for small objects |
| `data.max_side`, `data.canvas` | the images' shapes, in multiples of 32 |
| `data.max_boxes` | the most boxes of an image |
| `model.anchors` | sizes that go with the short side, or those suggested for the boxes |
| `model.pixel_*`, `model.backbone.*`, `frozen` | what the weights need |
| `batch_size` | 2 on CPUs, else as many as the memory holds, up to 16 |
| `total_steps` | visits of images and of objects, or `minutes` |
| `optimizer.*`, `eval_every`, `checkpoint_every` | batch size and steps |

Sources of the values: `experiments/bccd_r50_fpn.py` (CPUs), torchvision's and
Detectron2's recipes in `experiments/common/peers.py` (accelerators).
"""  # noqa: E501

import logging
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from frcnn_jax import ranges
from frcnn_jax.data import pipeline
from frcnn_jax.data.facts import Facts, facts_of, relative_sides
from frcnn_jax.data.images import canvases
from frcnn_jax.data.source import Source
from frcnn_jax.training import checkpoint, devices, timing
from frcnn_jax.training import config as configs
from frcnn_jax.training.anchors import Settle, choose_anchors
from frcnn_jax.training.trained import load as load_trained
from frcnn_jax.weights import families, hub

log = logging.getLogger(__name__)
Sources = tuple[Source, Source]

LEAVES = (
    *("data.short_side", "data.max_side", "data.canvas", "data.max_boxes"),
    *("model.pixel_mean", "model.pixel_std", "model.backbone.stride_in_1x1"),
    *("model.backbone.norm_eps", "model.backbone.norm", "frozen"),
    *("model.anchors.sizes", "model.anchors.aspect_ratios"),
    *("batch_size", "eval_batch_size", "total_steps", "eval_every", "checkpoint_every"),
    *("optimizer.learning_rate", "optimizer.warmup_steps"),
)
LEAST_SIDE = 16  # pixels of the tenth percentile of objects
STEM = ("backbone/conv1", "backbone/bn1", "backbone/layer1")
LATER = 1.05  # steps of a run are 4 % slower than the timed ones (median of 4 runs)
FORWARD = 0.65  # of a step: prediction and what it finds; 0.55 without a cascade
GIB_PER_MEGAPIXEL = 1.15  # R50-FPN in training: 2.46 GB for two images of 800x1344


class Device(NamedTuple):
    """What the run has: the platform, how many devices, GiB of memory of each."""

    platform: str
    count: int
    memory: float

    @property
    def is_cpu(self) -> bool:  # noqa: D102
        return self.platform == "cpu"


def complete(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path | None = None
) -> tuple[ml_collections.ConfigDict, Sources | None]:
    """The configuration without open leaves, and both splits if they had to be loaded.

    `config` is resolved already (`configs.resolve`) and is not changed. What a run in
    `workdir` began with is taken from there.
    """
    begun = time.perf_counter()
    names = [name for name in LEAVES if is_open(config, name)]
    if not names:
        return config, None
    if "minutes" in config:
        ranges.check("config", minutes=(config.minutes, ranges.NOT_NEGATIVE))
    if config.get("minutes") and "total_steps" not in names:
        raise ValueError(
            f"config.minutes={config.minutes:g} and config.total_steps="
            f"{config.total_steps}: give one of them"
        )
    config = config.copy_and_resolve_references()
    if before := _begun(workdir):
        found = {n: before[n] for n in names if before.get(n) is not None}
        fill(config, found)
        log.info("recipe: %d values as the run in %s began", len(found), workdir)
        if len(found) == len(names):
            return config, None
    c = config.to_dict()
    sources = pipeline.splits_of(c["data"])
    most = max(facts_of(sources[1]).slots, (facts := facts_of(sources[0])).slots)
    if (looked := len(facts.sizes)) < facts.images:
        log.info(
            "recipe: chosen from %d of %d training images, which lie evenly among them "
            "and whose size is known; the objects of all are estimated from these",
            *(looked, facts.images),
        )
    chosen, lines = choose(c, facts._replace(slots=most), device())
    for line in lines:
        log.info("recipe: %s", line)
    if not _starts_from_weights(c):
        log.warning("recipe: %s", NO_WEIGHTS)
    fill(config, chosen)
    if config.get("minutes") and "total_steps" in names:
        _in_minutes(config, sources, names, begun)
    return config, sources


NO_WEIGHTS = (
    "model.backbone.pretrained is empty, so all weights start at random: a small data "
    "set teaches them little. From ImageNet weights 205 photographs of blood cells "
    "gave AP 0.579 after 700 steps (docs/results.md). Give the path of a ResNet-50 of "
    "torchvision, timm, Keras or Detectron2 (docs/howto/fine-tune.md), or "
    "--config.model.backbone.pretrained=hf:timm/resnet50.a1_in1k"
)


def device() -> Device:
    """Of this process."""
    one = jax.local_devices()[0]
    stats = one.memory_stats() or {} if one.platform != "cpu" else {}
    memory = stats.get("bytes_limit") or (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    return Device(one.platform, jax.device_count(), memory / 2**30)


def choose(
    config: Mapping[str, Any], facts: Facts, device: Device
) -> tuple[dict[str, Any], list[str]]:
    """Values for the open leaves, `{"data.short_side": 288}`, and a line for each.

    A pure function. `config` is the whole configuration as a dict, None where a leaf is
    open; leaves that it lacks are left alone.
    """
    flat = configs.leaves(config)
    chosen: dict[str, Any] = {}
    lines: list[str] = []

    def settle(name: str, value: Any, why: str) -> Any:
        """What a leaf is: as given or, if it is open, `value`, which is then chosen."""
        if name in chosen:
            return chosen[name]
        if name not in flat or flat[name] is not None:
            return flat.get(name, value)
        chosen[name] = value
        lines.append(f"{name}={value}: {why}")
        return value

    trained = _starts_from_weights(config)
    _weights(config, settle, trained)
    _images(facts, device, settle)
    choose_anchors(config, chosen, facts, settle)
    settle("data.max_boxes", max(8, -(-facts.slots // 8) * 8), f"{facts.slots} at most")
    batch = _batch(facts, device, settle, {**flat, **chosen})
    _frozen(config, facts, device, settle, trained)
    if flat.get("total_steps", 0) is None and config.get("minutes"):
        return chosen, lines  # what depends on them is chosen when they are known
    steps = _steps(facts, device, settle, batch, trained)
    schedule(settle, steps, device)
    return chosen, lines


# ------------------------------------------------------------------------------- rules


def _weights(config: Mapping[str, Any], settle: Settle, trained: bool) -> None:
    """Pixel values, stride and epsilon as the weights were trained with."""
    path = str(config["model"]["backbone"].get("pretrained") or "")
    why, fixed = "no weights are named", {}
    if config.get("init_from"):
        *_, meta, where = load_trained(config["init_from"])
        found = configs.leaves(meta.config.to_dict())
        fixed = {k: found[k] for k in (*families.BACKBONE, *_NORM) if k in found}
        why = f"as {where} has it"
    elif path:
        file = hub.fetch(path) if path.startswith(hub.PREFIX) else path
        known = families.families(file) if os.path.isfile(file) else ()
        fixed = {k: v[0] for k, v in known[0].fixed.items()} if known else {}
        why = f"{known[0].name}" if known else f"the usual value: {path} is not known"
    usual = {
        **{k: v[0] for k, v in families.IMAGENET.items()},
        "model.backbone.stride_in_1x1": False,
        "model.backbone.norm_eps": 1e-5,
        "model.backbone.norm": "frozen" if trained else "group",
    }
    for name, value in {**usual, **{k: fixed[k] for k in fixed if k in usual}}.items():
        settle(name, value, why)


_NORM = ("model.backbone.norm",)


def _images(facts: Facts, device: Device, settle: Settle) -> None:
    """The short side, the longest side, and one canvas or two.

    Small objects get 16 pixels if the device can: up to 448 pixels on CPUs, 1024 else.
    """
    short = float(np.median(facts.sizes.min(1))) if len(facts.sizes) else 480.0
    base, most = (300, 448) if device.is_cpu else (800, 1024)
    wanted, why = float(base), f"usual on {device.platform}"
    if wanted > 1.5 * short:
        wanted, why = 1.5 * short, f"half again the images' {short:g}"
    tenth = math.inf
    if len(facts.boxes):
        tenth = float(np.quantile(relative_sides(facts), 0.1))
    if tenth * wanted < LEAST_SIDE:
        wanted = min(LEAST_SIDE / tenth, most, max(wanted, 2 * short))
        why = f"for small objects, at most {most} pixels or twice the images' {short:g}"
    side = max(64, 32 * round(wanted / 32))
    if tenth < math.inf:
        why += f"; nine of ten objects then have {tenth * side:.0f} pixels or more"
    side = settle("data.short_side", side, why)
    ratios = facts.sizes.max(1) / facts.sizes.min(1)
    ratio = float(np.clip(np.quantile(ratios, 0.9), 1, 2.5)) if len(ratios) else 4 / 3
    long = -(-math.floor(side * ratio) // 32) * 32
    long = settle(
        "data.max_side", long, f"nine of ten images are no longer than {ratio:.2f} to 1"
    )
    taller = facts.sizes[:, 0] > facts.sizes[:, 1] * 1.05
    upright = float(taller.sum() / max(1, len(taller)))
    h, w = (-(-v // 32) * 32 for v in (side, long))
    few = 0.15 if device.is_cpu else 0.05  # another canvas is another compilation
    canvas: Any = ((h, w), (w, h))
    if h == w or upright <= few:
        canvas = (h, w)
    elif upright >= 1 - few:
        canvas = (w, h)
    settle("data.canvas", canvas, f"{upright:.0%} of the images are upright")


def _batch(
    facts: Facts, device: Device, settle: Settle, flat: Mapping[str, Any]
) -> int:
    """Images an update: a multiple of the devices."""
    pixels = max(h * w for h, w in canvases(flat["data.canvas"])) / 1e6
    held = max(1, int(0.7 * device.memory / (GIB_PER_MEGAPIXEL * pixels)))
    each = 2 if device.is_cpu else min(8, held)
    total = max(1, min(each * device.count, 2 if device.is_cpu else 16))
    total = max(1, min(total, facts.images))
    total = -(-total // device.count) * device.count
    why = f"{device.count} x {device.platform} with {device.memory:.0f} GiB"
    batch = settle("batch_size", total, why)
    settle("eval_batch_size", batch, "as in training")
    return batch


def _frozen(
    config: Mapping[str, Any],
    facts: Facts,
    device: Device,
    settle: Settle,
    trained: bool,
) -> None:
    """The first stages of a trained ResNet; one more for few images or slow devices."""
    if config["model"]["backbone"].get("name") != "resnet" or not trained:
        settle("frozen", (), "nothing trained is there to keep")
    elif device.is_cpu or facts.images < 500:
        why = "a CPU" if device.is_cpu else f"{facts.images} images"
        settle("frozen", (*STEM, "backbone/layer2"), f"{why}: stem to second stage")
    else:
        settle("frozen", STEM, "stem and first stage")


def _steps(
    facts: Facts, device: Device, settle: Settle, batch: int, trained: bool
) -> int:
    """Visits of images: 10 epochs (12 on accelerators), and 1500 objects at the least.

    At least 1600 images, or 8000 on accelerators; on CPUs at most 4000.
    """
    least, epochs = (1600, 10) if device.is_cpu else (8000, 12)
    visits = max(least, epochs * facts.images)
    visits = max(visits, math.ceil(1500 * facts.images / max(1, facts.objects)))
    if device.is_cpu:
        visits = min(visits, 4000)
    visits = visits if trained else 2 * visits
    why = (
        f"{visits} images of batches of {batch}, {visits / max(1, facts.images):.1f} "
        f"epochs of {facts.images} images with {facts.objects} objects; "
        "--config.minutes=20 makes it a time"
    )
    return settle("total_steps", max(10, -(-visits // batch)), why)


def schedule(settle: Settle, steps: int, device: Device) -> None:
    """What follows the number of steps: rate, warm-up, when to evaluate and save."""
    batch = settle("batch_size", 0, "")
    rate = round(min(0.02, 0.0025 * batch), 6)
    settle("optimizer.learning_rate", rate, f"0.0025 an image, for batches of {batch}")
    warmup = int(np.clip(steps // 15, 1, 1000))
    settle("optimizer.warmup_steps", warmup, "a fifteenth of the steps")
    times = _evaluations(device)
    settle("eval_every", -(-steps // times), f"{times} evaluations")
    settle("checkpoint_every", -(-steps // (2 * times)), f"{2 * times} checkpoints")


def _evaluations(device: Device) -> int:
    return 2 if device.is_cpu else 4


# ------------------------------------------------------------------------------- parts


def is_open(config: ml_collections.ConfigDict, name: str) -> bool:
    """Whether a configuration has a leaf, and nothing in it."""
    group: Any = config
    *parents, leaf = name.split(".")
    for parent in parents:
        group = group.get(parent) if parent in group else None
        if not isinstance(group, ml_collections.ConfigDict):
            return False
    return leaf in group and group.get(leaf) is None


def _starts_from_weights(config: Mapping[str, Any]) -> bool:
    return bool(config["model"]["backbone"].get("pretrained") or config["init_from"])


def _begun(workdir: str | pathlib.Path | None) -> dict[str, Any]:
    """The leaves of the last checkpoint in a run's folder; none if it has none."""
    if workdir is None or not checkpoint.folder(pathlib.Path(workdir)).is_dir():
        return {}
    try:
        where = checkpoint.find(pathlib.Path(workdir), best=False)
    except FileNotFoundError:
        return {}
    return configs.leaves(checkpoint.read_meta(where).config.to_dict())


def fill(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets leaves in place: `{"data.short_side": 288}`."""
    for name, value in values.items():
        group: Any = config
        *parents, leaf = name.split(".")
        for parent in parents:
            group = group[parent]
        group[leaf] = value


def _in_minutes(
    config: ml_collections.ConfigDict, sources: Sources, names: list[str], begun: float
) -> None:
    """Times compiled steps and fills `total_steps` and what follows it.

    The minutes count from `begun` on: reading the data and timing are part of them, and
    so are compiling the step and the evaluation, and the evaluations: those of
    `schedule`, or as `eval_every` has it.
    """
    trial = config.copy_and_resolve_references()
    chosen: dict[str, Any] = {}

    def settle(name: str, value: Any, why: str) -> Any:
        if name in names and name not in chosen and is_open(config, name):
            chosen[name] = value
            log.info("recipe: %s=%s: %s", name, value, why)
        return chosen.get(name, configs.leaves(config.to_dict()).get(name))

    found = device()
    fill(trial, dict(total_steps=1000, eval_every=1000, checkpoint_every=1000))
    usual = {"optimizer.learning_rate": 1e-6, "optimizer.warmup_steps": 1}
    fill(trial, {k: v for k, v in usual.items() if is_open(trial, k)})
    compiling, step = timing.time_steps(configs.check(trial), sources)
    spent = time.perf_counter() - begun
    slowest = devices.from_all((spent, compiling, step))  # the same number everywhere
    spent, compiling, step = (max(v) for v in zip(*slowest, strict=True))
    step *= LATER
    left = 60 * float(config.minutes) - spent - 2 * compiling
    times = _evaluations(found)
    if "eval_every" not in names:
        times = max(1, math.ceil(left / step / max(1, config.eval_every)))
    evaluating = times * len(sources[1]) / config.batch_size * step * FORWARD
    steps = max(10, int((left - evaluating) / step))
    why = (
        f"{config.minutes:g} minutes, of which {spent:.0f} s are spent, "
        f"{2 * compiling:.0f} s for compiling and about {evaluating:.0f} s for "
        f"evaluating, at {step:.2f} s a step"
    )
    schedule(settle, settle("total_steps", steps, why), found)
    fill(config, chosen)
