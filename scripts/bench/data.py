r"""Images a second of the COCO recipe, beside torch's DataLoader on the same files.

python scripts/bench/data.py --root=COCO_FOLDER --split=train2017 \
    --peer=.venv-peer/bin/python

Decode, resize to 800/1333, mirror, pad, batch; nothing is trained. This package and the
peer (`tests/parity/peer_data.py`, in the environment that `make peer` makes) take turns
on the same cores, `--rounds` times; the medians are compared. The last line on stdout
is one JSON object.
"""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import time

import cv2
from absl import flags

from frcnn_jax.data import images, named, pipeline
from frcnn_jax.data.example import decode
from frcnn_jax.training import cli

ROOT = flags.DEFINE_string("root", None, "A COCO folder.", required=True)
SPLIT = flags.DEFINE_string("split", "train2017", "The split of the COCO folder.")
PEER = flags.DEFINE_string("peer", "", "A Python with torch; empty: no comparison.")
SHORT = flags.DEFINE_integer("short_side", 800, "Short side after resizing, in pixels.")
LONG = flags.DEFINE_integer("max_side", 1333, "Long side at most, in pixels.")
BATCH = flags.DEFINE_integer("batch_size", 2, "Images of a batch.")
WORKERS = flags.DEFINE_integer(
    "workers", os.cpu_count() or 1, "The number of processes or threads."
)
SECONDS = flags.DEFINE_float("seconds", 10.0, "Seconds of one measurement.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each side.")
LARGE = flags.DEFINE_bool(
    "large", False, "Instead: 3000x4000 photographs, read whole and reduced."
)


def main(_):
    if LARGE.value:
        print(json.dumps(dict(milliseconds=large())))
        return
    ways = {"threads": dict(threads=WORKERS.value, workers=0)}
    ways["processes"] = dict(threads=1, workers=WORKERS.value)
    streams = {name: stream(**options) for name, options in ways.items()}
    peer = start_peer() if PEER.value else None
    rounds = []
    for i in range(ROUNDS.value + 1):  # the first warms up
        seconds = SECONDS.value if i else 2.0
        found = {name: rate(batches, seconds) for name, batches in streams.items()}
        if peer:
            found |= ask(peer, seconds)
        rounds.append(found)
    if peer:
        peer.terminate()
    versions = {k: v for k, v in rounds[0].items() if isinstance(v, str)}
    names = [k for k in rounds[0] if k not in versions]
    result = {k: statistics.median(r[k] for r in rounds[1:]) for k in names}
    ours = max(result[name] for name in ways)
    print(f"{SHORT.value}/{LONG.value}, batch {BATCH.value}, {WORKERS.value} workers")
    for name, value in result.items():
        side = "frcnn_jax" if name in ways else "torch"
        spread = [r[name] for r in rounds[1:]]
        print(
            f"  {side:<10} {name:<10} {value:7.1f} images/s "
            f"({min(spread):.1f} to {max(spread):.1f})  x{ours / value:.2f}"
        )
    speedup = ours / result["reference"] if peer else None
    print(json.dumps(dict(images_per_second=result, speedup=speedup, **versions)))


def stream(**options):
    """Endless training batches of the recipe."""
    short, longest = SHORT.value, LONG.value
    longest_canvas = -(-longest // 32) * 32
    data = pipeline.build(
        "coco",
        root=ROOT.value,
        train_split=SPLIT.value,
        eval_split=SPLIT.value + "[:1]",
        **dict(batch_size=BATCH.value, eval_batch_size=1, seed=0),
        **dict(short_side=short, max_side=longest, max_boxes=200),
        canvas=((short, longest_canvas), (longest_canvas, short)),
        **options,
    )
    return data.train_batches()


def rate(batches, seconds: float) -> float:
    """Images a second, after what was made ahead of time."""
    for _ in range(4 * WORKERS.value):
        next(batches)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        count += len(next(batches).image)
    return count / spent


def large() -> dict[str, dict[str, float]]:
    """Milliseconds to read enlarged photographs at three sizes; the median of rounds.

    `whole` decodes every pixel, `reduced` is data.reduced; one thread, in turns.
    """
    cv2.setNumThreads(1)
    examples = named.load_source("coco", split=SPLIT.value, root=ROOT.value)
    quality = (cv2.IMWRITE_JPEG_QUALITY, 92)
    photos = []
    for i in range(4):
        picture = cv2.resize(decode(examples[i]), (4000, 3000))
        photos.append(cv2.imencode(".jpg", picture[..., ::-1], quality)[1].tobytes())
    result = {}
    for short, longest in ((300, 400), (600, 1000), (800, 1333)):
        canvas = (longest, longest)
        fitted = functools.partial(
            images.fit, short_side=short, max_side=longest, canvas=canvas
        )
        ways = dict(
            whole=lambda p, f=fitted: images.resize(
                images.load_image(p), f((3000, 4000))
            ),
            reduced=lambda p, f=fitted: images.load_reduced(p, f),
        )
        spent = {name: [] for name in ways}
        for _ in range(ROUNDS.value):
            for name, read in ways.items():
                start = time.perf_counter()
                for photo in photos:
                    read(photo)
                each = (time.perf_counter() - start) / len(photos)
                spent[name].append(1000 * each)
        found = {name: statistics.median(times) for name, times in spent.items()}
        result[f"{short}/{longest}"] = found
        print(
            f"  3000x4000 to {short}/{longest}: whole {found['whole']:.0f} ms, reduced "
            f"{found['reduced']:.0f} ms  x{found['whole'] / found['reduced']:.2f}"
        )
    return result


def start_peer() -> subprocess.Popen:
    script = pathlib.Path(__file__).parents[2] / "tests/parity/peer_data.py"
    sizes = (SHORT.value, LONG.value, BATCH.value, WORKERS.value)
    return subprocess.Popen(
        [PEER.value, str(script), ROOT.value, SPLIT.value, *map(str, sizes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(peer: subprocess.Popen, seconds: float) -> dict:
    assert peer.stdin and peer.stdout
    print(seconds, file=peer.stdin, flush=True)
    answer = peer.stdout.readline()
    if not answer:
        raise RuntimeError(f"the peer ended with exit code {peer.wait()}")
    return json.loads(answer)


if __name__ == "__main__":
    cli.run(main)
