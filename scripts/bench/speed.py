r"""Ours beside torchvision, on this machine, in the same run.

    make peer
    python scripts/bench/speed.py --suite=cpu --json=cpu.json
    python scripts/bench/speed.py --suite=ops --cases='nms|match'
    python scripts/bench/speed.py --suite=gpu --json=gpu.json        # under ten minutes
    python scripts/bench/speed.py --suite=cpu --list

Each side is a process of its own; they take turns on the same inputs and weights,
`--rounds` times. A figure is the median over the rounds of a round's median call, and
its spread the smallest and the largest of these; on a machine that other work keeps
busy the ratio of processor time says more than that of the clock. torchvision is
measured contiguous and channels_last, and the faster one counts (`peer_ms`); where the
detectors of the suite cpu predict, a third process is torchvision with glibc's malloc
tuned, beside it. `peak_mb` is the largest memory of each process (on a GPU: what its
allocator gave out).

    cpu      detectors, training steps and parts of the network, a fresh pair of
             processes for each case
    ops      NMS, matching, RoIAlign, top-k, post-processing; worst cases, growth
    compile  first compile, from a cache; memory of a training step
    gpu      bfloat16 against AMP, and the operations that count there

A table on stdout, progress on stderr; the last line on stdout is one JSON object, with
an entry for each case as in `--json`. Exit code 1 if a case failed.
"""

import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

from frcnn_jax.training import cli

HERE = pathlib.Path(__file__).resolve().parent
PEER_SIDE = HERE.parents[1] / "tests/parity/peer_speed.py"
SUITE = flags.DEFINE_enum(
    "suite", "cpu", ["cpu", "gpu", "ops", "compile"], "Which cases."
)
CASES = flags.DEFINE_string("cases", "", "Only cases that this expression finds.")
LIST = flags.DEFINE_bool("list", False, "Print the names of the cases and stop.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each side.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 0.3, "Of a turn; one call at least.")
MINUTES = flags.DEFINE_float("minutes", 9.0, "No case begins after that.")
JSON = flags.DEFINE_string("json", "", "Write the entries to this file.")
PEER = flags.DEFINE_string(
    "peer_python",
    str(HERE.parents[1] / ".venv-peer/bin/python"),
    "A Python with torch and torchvision; empty: ours alone.",
)
SMALL = flags.DEFINE_bool(
    "small", False, "Shrink every case, to try the script: figures mean nothing."
)
TUNED = dict(
    MALLOC_MMAP_THRESHOLD_="4294967296",
    MALLOC_TRIM_THRESHOLD_="17179869184",
    MALLOC_TOP_PAD_="268435456",
)
Case = dict[str, Any]


# -- The cases -------------------------------------------------------------------------


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


# -- The processes ---------------------------------------------------------------------


class Side:
    """A process that answers requests, see worker.py."""

    def __init__(self, python: str, script: pathlib.Path, **environment: str):
        self.process = subprocess.Popen(
            [python, str(script)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, **request: Any) -> dict[str, Any]:
        """The answer to a request; RuntimeError where there is none."""
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"a process ended with code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


OURS = "ours"


def start(case: Case, folder: pathlib.Path) -> dict[str, Side]:
    """The processes that a case needs: ours, torchvision's, and the latter tuned."""
    # Both sides share the GPU: memory is taken as it is needed.
    environment = dict(XLA_PYTHON_CLIENT_PREALLOCATE="false")
    if "cache" in case:
        cache = folder / case["cache"]
        environment |= dict(
            JAX_COMPILATION_CACHE_DIR=str(cache),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
    sides = {OURS: Side(sys.executable, HERE / "ours.py", **environment)}
    if PEER.value and case.get("peer", True):
        sides["peer"] = Side(PEER.value, PEER_SIDE)
        if case.get("tuned"):
            sides["tuned"] = Side(PEER.value, PEER_SIDE, **TUNED)
    return sides


def measure(case: Case, sides: dict[str, Side], folder: pathlib.Path) -> dict[str, Any]:
    """An entry: figures of both sides for one case."""
    begin = time.perf_counter()
    ready = {}
    for side, ask in sides.items():
        mine = dict(case)
        if side == OURS and "ours_kind" in case:
            mine["kind"] = case["ours_kind"]
        ready[side] = ask(prepare=mine, folder=str(folder))
        if side == OURS:
            started = time.perf_counter() - begin
    turns: dict[tuple[str, str], list[float]] = {
        (side, mode): [] for side in sides for mode in ready[side]["modes"]
    }
    processor: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
    for _ in range(1 if case.get("once") else ROUNDS.value):
        for side, mode in turns:
            found = sides[side](time=mode, seconds=SECONDS.value)
            turns[side, mode].append(statistics.median(found["ms"]))
            processor[side, mode].append(statistics.median(found["cpu_ms"]))
    peaks = {side: sides[side](peak=1)["peak_mb"] for side in sides}
    medians = {turn: statistics.median(found) for turn, found in turns.items()}

    def fastest(side):
        modes = [turn for turn in turns if turn[0] == side]
        return min(modes, key=lambda turn: medians[turn]) if modes else None

    ours, peer, tuned = fastest(OURS), fastest("peer"), fastest("tuned")
    extra = {k: v for k, v in ready[OURS].items() if k in MORE}
    entry = dict(
        ours_ms=medians[ours] if ours else None,
        peer_ms=medians[peer] if peer else None,
        ratio=medians[ours] / medians[peer] if ours and peer else None,
        spread={
            side: [min(turns[turn]), max(turns[turn])]
            for side, turn in ((OURS, ours), ("peer", peer), ("tuned", tuned))
            if turn
        },
        peer_modes={mode: ms for (side, mode), ms in medians.items() if side == "peer"},
        cpu_ms={
            side: statistics.median(processor[turn])
            for side, turn in ((OURS, ours), ("peer", peer), ("tuned", tuned))
            if turn
        },
        peak_mb=peaks,
        versions=", ".join(r["versions"] for r in list(ready.values())[:2]),
        device=ready[OURS]["device"],
        start_to_ready_s=started,
        **extra,
    )
    if tuned and ours:
        entry |= dict(
            tuned_ms=medians[tuned], tuned_ratio=medians[ours] / medians[tuned]
        )
    # Of equal scores each side takes others.
    same = case.get("scene") != "equal"
    if same and "peer" in ready and ready[OURS]["check"]:
        entry["disagreement"] = max(
            abs(a - b) / max(abs(b), 1e-9)
            for a, b in zip(ready[OURS]["check"], ready["peer"]["check"], strict=True)
        )
    return entry


MORE = ("trace_ms", "compile_ms", "memory_mb", "gflop")


# -- The table -------------------------------------------------------------------------


def row(name: str, entry: dict[str, Any]) -> str:
    """A line of the table."""
    if "error" in entry:
        return f"| {name} | {entry['error']} | | | | | | | |"

    def text(value, form="{:.3g}"):
        return "" if value is None else form.format(value)

    def spread(side):
        bounds = entry["spread"].get(side)
        return f" ({bounds[0]:.3g} to {bounds[1]:.3g})" if bounds else ""

    cpu = entry["cpu_ms"]
    memory = {side: f"{mb / 1024:.2f}" for side, mb in entry["peak_mb"].items()}
    compiling = text(
        entry["compile_ms"] / 1e3 if "compile_ms" in entry else None, "{:.1f}"
    )
    if OURS not in cpu:  # compiled, not run
        memory[OURS] = f"{entry['memory_mb'] / 1024:.2f} planned"
        compiling += f", ready after {entry['start_to_ready_s']:.1f}"
    modes = entry["peer_modes"]
    slower = max(modes.values()) if len(modes) > 1 else None
    cells = (
        name,
        text(entry["ours_ms"]) + spread(OURS),
        text(entry["peer_ms"]) + spread("peer"),
        text(entry["ratio"], "**{:.2f}**"),
        text(cpu[OURS] / max(cpu["peer"], 1e-3), "{:.2f}")
        if {OURS, "peer"} <= cpu.keys()
        else "",
        min(modes, key=modes.__getitem__) + f", else {slower:.3g}" if slower else "",
        text(entry.get("tuned_ratio"), "{:.2f}"),
        " / ".join(memory.values()),
        compiling,
    )
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| case | ours, ms | torchvision, ms | ratio | of processor time | its mode "
    "| ratio, malloc tuned | peak memory, GB | compile, s |\n" + "| --- " * 9 + "|"
)


def machine() -> str:
    """The processor and how many of its cores there are."""
    text = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", text.read_text() if text.exists() else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "?"
    return f"{found[1] if found else platform.processor()}, {cores} cores"


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise app.UsageError(f"unexpected {argv[1:]}: options begin with --")
    suites = dict(cpu=cpu_cases, gpu=gpu_cases, ops=ops_cases, compile=compile_cases)
    cases = suites[SUITE.value]()
    chosen = {k: v for k, v in cases.items() if re.search(CASES.value, k)}
    if not chosen:
        raise app.UsageError(f"--cases={CASES.value}: none of {', '.join(cases)}")
    if LIST.value:
        print("\n".join(chosen))
        return 0
    if PEER.value and not pathlib.Path(PEER.value).exists():
        raise app.UsageError(
            f"--peer_python={PEER.value} is not there: `make peer` makes it, and "
            "--peer_python= measures ours alone"
        )
    if SMALL.value:
        chosen = {k: shrunk(v) for k, v in chosen.items()}
    begin = time.monotonic()
    entries = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        sides: dict[str, Side] = {}
        for number, (name, case) in enumerate(chosen.items(), start=1):
            minutes = (time.monotonic() - begin) / 60
            if minutes > MINUTES.value:
                entries[name] = dict(name=name, error="not run: --minutes are over")
                continue
            print(
                f"[{number}/{len(chosen)}, {minutes:.1f} min] {name}",
                file=sys.stderr,
                flush=True,
            )
            model = case.get("weights")
            try:
                if model and not (folder / f"{model}.npz").exists():
                    maker = Side(sys.executable, HERE / "ours.py")
                    maker(weights=model, folder=str(folder))
                    maker.close()
                if not sides:
                    sides = start(case, folder)
                entries[name] = dict(name=name, **measure(case, sides, folder))
                print(row(name, entries[name]), file=sys.stderr, flush=True)
            except RuntimeError as error:
                entries[name] = dict(name=name, error=str(error))
                print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = "error" in entries[name]
            if failed or SUITE.value != "ops":  # memory is a process's
                for side in sides.values():
                    side.close()
                sides = {}
        for side in sides.values():
            side.close()
    good = [entry for entry in entries.values() if "error" not in entry]
    about = dict(
        suite=SUITE.value,
        machine=machine(),
        device=good[0]["device"] if good else "",
        versions=good[0]["versions"] if good else "",
        date=time.strftime("%Y-%m-%d"),
        command=" ".join(["python", "scripts/bench/speed.py", *sys.argv[1:]]),
    )
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    print("\n".join([HEAD, *(row(name, entry) for name, entry in entries.items())]))
    for entry in good:
        if entry.get("disagreement", 0) > 0.02:
            print(
                f"{entry['name']}: the results of both sides differ by "
                f"{entry['disagreement']:.1%}"
            )
    result = dict(about, cases=list(entries.values()))
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return len(good) < len(entries)


if __name__ == "__main__":
    cli.run(main)
