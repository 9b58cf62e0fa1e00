r"""Table 5 of the paper on this machine: what an image costs, and where.

python scripts/bench/paper.py --images='photos/*.jpg'
python scripts/bench/paper.py --images='photos/*.jpg' --models= \
    --checkpoint=runs/paper_fast --checkpoint=runs/paper_joint

Selective search + Fast R-CNN (2,000 proposals) and RPN + Faster R-CNN (300), on VGG-16
and ZF at 600 pixels, or on the models of checkpoints at their own size. One image at a
time; medians over the images, in milliseconds:

| column | what is timed |
| --- | --- |
| conv | the shared convolutions |
| proposal | selective search (OpenCV's, one core), or the RPN's layers, decoding, NMS |
| region-wise | RoI pooling, the detector's layers, the final NMS |
| total | the whole, in one program: not the sum of the others |

Reading and resizing the image are left out. Weights of `--models` are random: they cost
what trained ones cost, except that NMS may end sooner or later. Where JAX finds a GPU,
the CPU is measured beside it. The last line on stdout is one JSON object.
"""

import glob
import json
import pathlib
import subprocess
import sys
import time
from functools import partial

import jax
import numpy as np
from absl import app, flags

from frcnn_jax import models, proposals
from frcnn_jax.data import images
from frcnn_jax.data.proposal_files import Scored
from frcnn_jax.data.selective_search import MODES, selective_search
from frcnn_jax.detector import predict_batch
from frcnn_jax.training import checkpoint, cli, devices
from frcnn_jax.training import config as configs
from frcnn_jax.training.algorithms.faster_rcnn import rpn_proposals
from frcnn_jax.training.compiling import announced
from frcnn_jax.training.metrics import log_to_stderr
from frcnn_jax.training.state import init_variables
from frcnn_jax.training.step import predict_step
from frcnn_jax.types import Proposals

# Experiments import their shared parts from the folder beside this one.
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

IMAGES = flags.DEFINE_string("images", None, "A pattern of files.", required=True)
COUNT = flags.DEFINE_integer("count", 8, "The most images to measure.", lower_bound=1)
MODELS = flags.DEFINE_list(
    "models", ["vgg16", "zf"], "The networks to measure, of vgg16 and zf."
)
CHECKPOINT = flags.DEFINE_multi_string("checkpoint", [], "NAME=PATH, or PATH.")
ARG = flags.DEFINE_string("arg", "", "Argument of the models' experiments: runlocal.")
MODE = flags.DEFINE_enum("mode", "fast", MODES, "The mode of selective search.")
SIDE = flags.DEFINE_integer("max_side", 500, "Longest side for selective search.")
PLATFORM = flags.DEFINE_string(
    "platform", None, "cpu, cuda, ...; default: all that JAX finds."
)

SS, RPN = "selective search", "RPN"
PAPER = {  # Table 5: an NVIDIA K40, selective search on its host
    ("vgg16", SS): (146, 1510, 174, 1830),
    ("vgg16", RPN): (141, 10, 47, 198),
    ("zf", RPN): (31, 3, 25, 59),
}
COLUMNS = ("conv", "proposal", "region-wise", "total")


def networks():
    """(name, model, variables, config) of every row."""
    for name in MODELS.value:
        file = ROOT / "experiments" / f"voc07_{name}.py"
        c = configs.check(configs.load_experiment(file).get_config(ARG.value))
        model = models.build_detector(num_classes=20, **c["model"])
        shape = (*images.canvases(c["data"]["canvas"])[0], 3)
        variables = init_variables(jax.random.key(0), shape, model=model)
        count = 200 if ARG.value else 2000
        parts = {k: c["model"][k] for k in c["model"].keys() - {"anchors", "rpn"}}
        fast = models.build_detector(num_classes=20, external_proposals=True, **parts)
        group = dict(c["data"], max_proposals=count)
        alone = dict(c, data=group, algorithm="fast_rcnn")
        yield name, fast, without_rpn(variables), alone
        yield name, model, variables, c
    for text in CHECKPOINT.value:
        name, equals, path = text.rpartition("=")
        model, variables, meta = checkpoint.load_model(checkpoint.find(path))
        named = name if equals else pathlib.Path(path).name
        yield named, model, variables, meta.config.to_dict()


def without_rpn(variables):
    params = {k: v for k, v in variables["params"].items() if k != "rpn_head"}
    return dict(variables, params=params)


def stages(model, c):
    """The compiled parts of a prediction, and the whole."""

    def conv(model, batch):
        images = model.normalize(batch.image, batch.image_size)
        return model.features(images, model.extent(batch.image_size))

    def propose(model, features, batch):
        out = model.rpn_of(features, model.extent(batch.image_size))
        return rpn_proposals(out, batch.image_size, **c["proposals"]["eval"])

    def regions(model, features, found, batch):
        logits, deltas = model.detect(
            features, found.boxes, extent=model.extent(batch.image_size)
        )
        return jax.vmap(partial(proposals.postprocess, **c["postprocess"]))(
            found.boxes, found.valid, logits, deltas, batch.image_size
        )

    def compiled(part):
        return jax.jit(lambda variables, *xs: model.apply(variables, *xs, method=part))

    whole = jax.jit(partial(predict_step, model=model, config=c))
    return compiled(conv), compiled(propose), compiled(regions), whole


def timed(function, *args):
    """Milliseconds and the result, which is waited for."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return 1000 * (time.perf_counter() - start), result


def search(image, size, count):
    """Selective search's boxes in network pixels, in `count` slots, as a batch."""
    found: Scored = selective_search(
        image, mode=MODE.value, max_proposals=count, max_side=SIDE.value
    )
    h, w = np.array(size) / image.shape[:2]
    boxes, scores = np.zeros((1, count, 4), np.float32), np.zeros((1, count), "f")
    n = len(found.boxes)
    boxes[0, :n] = found.boxes * np.array([w, h, w, h], np.float32)
    scores[0, :n] = found.scores
    return Proposals(boxes, scores, np.arange(count)[None] < n)


def measure(model, variables, c, pictures):
    """The median milliseconds of each column, and the mean number of proposals."""
    conv, propose, regions, whole = stages(model, c)
    variables = jax.device_put(variables)
    own = isinstance(model, models.FasterRCNN)
    sides = {k: c["data"][k] for k in ("short_side", "max_side", "canvas")}
    rows, counts, seen = [], [], set()
    for image in pictures:
        pixels, size = images.prepare(image, **sides)
        batch = predict_batch(pixels[None], np.array([size], np.int32))

        def run(image=image, size=size, batch=batch):
            in_conv, features = timed(conv, variables, batch)
            if own:
                in_proposal, found = timed(propose, variables, features, batch)
                outside = 0.0
            else:
                count = c["data"]["max_proposals"]
                in_proposal, found = timed(search, image, size, count)
                batch, outside = batch._replace(proposals=found), in_proposal
            in_regions, _ = timed(regions, variables, features, found, batch)
            in_all, _ = timed(whole, variables, batch)
            counts.append(int(np.sum(found.valid)))
            return in_conv, in_proposal, in_regions, outside + in_all

        if pixels.shape not in seen:
            seen.add(pixels.shape)
            with announced("the parts of a prediction"):
                run()
        rows.append(run())
    return dict(zip(COLUMNS, np.median(rows, axis=0).tolist(), strict=True)) | dict(
        proposals=float(np.mean(counts))
    )


def load_pictures():
    files = sorted(glob.glob(IMAGES.value))[: COUNT.value]
    if not files:
        raise app.UsageError(f"--images={IMAGES.value}: no such file")
    return [images.load_image(file) for file in files]


def measure_all():
    pictures, rows = load_pictures(), []
    device = jax.devices()[0]
    heads = " ".join(f"{c:>12}" for c in COLUMNS)
    print(f"{device.device_kind}, {len(pictures)} images, milliseconds an image")
    print(f"{'network':14} {'proposals':22} {heads}  images/s   paper's K40")
    for name, model, variables, c in networks():
        by = RPN if isinstance(model, models.FasterRCNN) else SS
        row = measure(model, variables, c, pictures)
        paper = PAPER.get((name, by))
        numbers = " ".join(f"{row[k]:12.1f}" for k in COLUMNS)
        label = f"{by} ({row['proposals']:.0f})"
        rate, theirs = 1000 / row["total"], " / ".join(map(str, paper or "-"))
        print(f"{name:14} {label:22} {numbers} {rate:9.2f}   {theirs}", flush=True)
        row |= dict(network=name, by=by, platform=device.platform, paper=paper)
        rows.append(row)
    print("The tutorial: Fast R-CNN 2.3 s, 2 s of them proposals; RPN 10 ms.")
    for name in dict.fromkeys(row["network"] for row in rows):
        cost = {r["by"]: r["proposal"] for r in rows if r["network"] == name}
        if len(cost) == 2:
            print(
                f"{name}: selective search takes {cost[SS] / cost[RPN]:.1f} times as "
                "long as the RPN"
            )
    return rows


def main(argv):
    if argv[1:]:
        raise app.UsageError(f"unexpected {argv[1:]}: options begin with --")
    log_to_stderr()
    if PLATFORM.value:
        jax.config.update("jax_platforms", PLATFORM.value)
    devices.keep_compiled()
    rows = measure_all()
    if not PLATFORM.value and jax.default_backend() != "cpu":
        # Formulations are picked by backend: the CPU needs a process of its own.
        done = subprocess.run(
            [sys.executable, *sys.argv, "--platform=cpu"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        *table, last = done.stdout.splitlines()
        print("\n".join(table))
        rows += json.loads(last)["rows"]
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    cli.run(main)
