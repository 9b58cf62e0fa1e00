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
    backbones  ConvNeXt-T and Swin-T beside torchvision's, in the same detector
    ops      NMS, matching, RoIAlign, top-k, post-processing; worst cases, growth
    compile  first compile, from a cache; memory of a training step
    gpu      bfloat16 against AMP, and the operations that count there

A table on stdout, progress on stderr; the last line on stdout is one JSON object, with
an entry for each case as in `--json`. Exit code 1 if a case failed.
"""

import json
import math
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
ROOT = HERE.parents[1]
sys.path.append(str(ROOT))
from scripts.bench import suites  # noqa: E402

PEER_SIDE = ROOT / "tests/parity/peer_speed.py"
SUITE = flags.DEFINE_enum("suite", "cpu", list(suites.SUITES), "The suite of cases.")
CASES = flags.DEFINE_string("cases", "", "Only cases that this expression finds.")
LIST = flags.DEFINE_bool("list", False, "Print the names of the cases and stop.")
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "The number of rounds of each side.", lower_bound=1
)
SECONDS = flags.DEFINE_float("seconds", 0.3, "Seconds of a round; at least one call.")
MINUTES = flags.DEFINE_float("minutes", 9.0, "Minutes after which no case begins.")
JSON = flags.DEFINE_string("json", "", "Write the entries to this file.")
PEER = flags.DEFINE_string(
    "peer_python",
    str(ROOT / ".venv-peer/bin/python"),
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
SIDES = (OURS, "peer", "tuned")
QUIET = 10.0  # seconds after which a round is announced
Turn = tuple[str, str]  # side, mode


def start(case: suites.Case, folder: pathlib.Path) -> dict[str, Side]:
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


def measure(
    case: suites.Case, sides: dict[str, Side], folder: pathlib.Path
) -> dict[str, Any]:
    """An entry: figures of both sides for one case."""
    begin = time.perf_counter()
    ready = {}
    for side, ask in sides.items():
        tell(f"{side}: preparing")
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
    rounds, told = 1 if case.get("once") else ROUNDS.value, -math.inf
    for number in range(rounds):
        if time.perf_counter() - told > QUIET:
            tell(f"round {number + 1} of {rounds}")
            told = time.perf_counter()
        for side, mode in turns:
            found = sides[side](time=mode, seconds=SECONDS.value)
            turns[side, mode].append(statistics.median(found["ms"]))
            processor[side, mode].append(statistics.median(found["cpu_ms"]))
    peaks = {side: sides[side](peak=1)["peak_mb"] for side in sides}
    medians = {turn: statistics.median(found) for turn, found in turns.items()}

    def fastest(side):
        modes = [turn for turn in turns if turn[0] == side]
        return min(modes, key=lambda turn: medians[turn]) if modes else None

    best = {side: turn for side in SIDES if (turn := fastest(side))}
    extra = {k: v for k, v in ready[OURS].items() if k in MORE}
    entry = dict(
        **compared(best, medians),
        spread={side: [min(turns[t]), max(turns[t])] for side, t in best.items()},
        peer_modes={mode: ms for (side, mode), ms in medians.items() if side == "peer"},
        cpu_ms={side: statistics.median(processor[t]) for side, t in best.items()},
        peak_mb=peaks,
        versions=", ".join(r["versions"] for r in list(ready.values())[:2]),
        device=ready[OURS]["device"],
        start_to_ready_s=started,
        **extra,
    )
    # Of equal scores each side takes others.
    same = case.get("scene") != "equal"
    if same and "peer" in ready and ready[OURS]["check"]:
        entry["disagreement"] = max(
            abs(a - b) / max(abs(b), 1e-9)
            for a, b in zip(ready[OURS]["check"], ready["peer"]["check"], strict=True)
        )
    return entry


def compared(best: dict[str, Turn], medians: dict[Turn, float]) -> dict[str, Any]:
    """The medians of each side's fastest turn, and ours over theirs."""
    ms = {side: medians[turn] for side, turn in best.items()}
    ours, peer, tuned = (ms.get(side) for side in SIDES)
    entry = dict(
        ours_ms=ours, peer_ms=peer, ratio=ours / peer if ours and peer else None
    )
    if tuned and ours:
        entry |= dict(tuned_ms=tuned, tuned_ratio=ours / tuned)
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


def attempt(
    case: suites.Case, sides: dict[str, Side], folder: pathlib.Path
) -> dict[str, Any]:
    """`measure`, or the error; starts what is not running yet in `sides`."""
    model = case.get("weights")
    try:
        if model and not (folder / f"{model}.npz").exists():
            tell(f"random weights of {model}")
            maker = Side(sys.executable, HERE / "ours.py")
            maker(weights=model, folder=str(folder))
            maker.close()
        if not sides:
            sides |= start(case, folder)
        return measure(case, sides, folder)
    except RuntimeError as error:
        return dict(error=str(error))


def tell(text: str) -> None:
    """Says on stderr what begins now; a case may take minutes."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def close(sides: dict[str, Side]) -> None:
    """Ends the processes and forgets them."""
    for side in sides.values():
        side.close()
    sides.clear()


def report(entries: dict[str, dict[str, Any]]) -> int:
    """Prints the table and the JSON object, and gives the exit code."""
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


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise app.UsageError(f"unexpected {argv[1:]}: options begin with --")
    cases = suites.SUITES[SUITE.value]()
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
        chosen = {k: suites.shrunk(v) for k, v in chosen.items()}
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
            entries[name] = dict(name=name, **attempt(case, sides, folder))
            failed = entries[name].get("error")
            line = f"{name}: {failed}" if failed else row(name, entries[name])
            print(line, file=sys.stderr, flush=True)
            if failed or SUITE.value != "ops":  # memory is a process's
                close(sides)
        close(sides)
    return report(entries)


if __name__ == "__main__":
    cli.run(main)
