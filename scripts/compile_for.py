r"""Compile prediction and the training step for a GPU or TPU that is not here.

python scripts/compile_for.py --config=experiments/coco_r50_fpn_v1.py --chip=h100 \
    --dtype=bfloat16
python scripts/compile_for.py --config=experiments/coco_r50_fpn_v1.py --chip=v5e \
    --part=roi_align,roi_align_backward --batch=2 --hlo=compiled

`make chips` installs the compilers; then use `.venv-chips/bin/python`. Nothing is run,
and no weights and data are read. For each program it prints what the compiler says and
what is counted in the program that it made (`frcnn_jax/chips/count.py` says how), for
one of `--devices` devices: memory, products and bytes beside the chip's peaks,
collectives, loops, sorts, gathers, scatters, copies that change a layout, and each part
of the network. docs/accelerators.md has results. The last line is one JSON object.
"""

import json
import pathlib
import re
import time
from collections import Counter
from typing import Any

import jax
from absl import app, flags

from frcnn_jax.chips import count, hlo, programs, targets
from frcnn_jax.data.images import canvases
from frcnn_jax.training import cli, troubles
from frcnn_jax.training import config as configs

CONFIG = cli.define_config("The experiment that is compiled.", required=True)
CHIP = flags.DEFINE_enum(
    "chip", "h100", sorted(targets.CHIPS), "The chip that is compiled for."
)
PART = flags.DEFINE_list(
    "part",
    "prediction,train",
    f"What is compiled, with commas: {', '.join(programs.WHOLE)}; or parts: "
    f"{', '.join(programs.PARTS)}.",
)
DEVICES = flags.DEFINE_integer("devices", 1, "The number of chips.", 1)
BATCH = flags.DEFINE_integer("batch", 1, "Images on each chip.", 1)
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Default: the experiment's model.dtype."
)
SIZE = flags.DEFINE_string(
    "size", "", "The canvas, HEIGHTxWIDTH; default: the experiment's first."
)
CLASSES = flags.DEFINE_integer("classes", 80, "The number of classes.", 1)
HLO = flags.DEFINE_string("hlo", "", "A folder for the text of each program.")


def main(_):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    config: Any = CONFIG.value
    if DTYPE.value:
        with config.unlocked():
            config.model.dtype = DTYPE.value
    c = configs.check(config)
    known = programs.WHOLE + programs.PARTS
    if wrong := sorted(set(PART.value) - set(known)):
        raise app.UsageError(f"--part={wrong[0]}: expected some of {', '.join(known)}")
    size = canvas(c)
    if HLO.value:
        troubles.prepare_folder(HLO.value)
    devices = targets.devices(CHIP.value, DEVICES.value)
    found = {}
    for name in PART.value:
        found[name] = compiled(name, c, size, devices)
        print(table(name, found[name]), flush=True)
    about = dict(
        chip=CHIP.value,
        devices=DEVICES.value,
        images=BATCH.value,
        canvas=size,
        dtype=c["model"]["dtype"],
        jax=jax.__version__,
    )
    print(json.dumps(about | dict(programs=found)))


def canvas(c):
    """(h, w) of --size, or the experiment's first canvas."""
    if not SIZE.value:
        return tuple(canvases(c["data"]["canvas"])[0])
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", SIZE.value):
        raise app.UsageError(f"--size={SIZE.value}: expected HEIGHTxWIDTH, 800x1344")
    return tuple(map(int, SIZE.value.split("x")))


def compiled(name, c, size, devices) -> dict[str, Any]:
    """What is known of one program."""
    is_whole = name in programs.WHOLE
    program = programs.build(
        name,
        c,
        num_classes=CLASSES.value,
        batch=BATCH.value * (len(devices) if is_whole else 1),
        canvas=size,
    )
    lowered = programs.lower(program, devices if is_whole else devices[:1])
    wall, processor = time.perf_counter(), time.process_time()
    done = lowered.compile()
    seconds = time.perf_counter() - wall, time.process_time() - processor
    text = done.as_text() or ""
    if HLO.value:
        (pathlib.Path(HLO.value) / f"{name}.{CHIP.value}.hlo").write_text(text)
    chip, counts = targets.CHIPS[CHIP.value], count.count(hlo.parse(text))
    peak = chip.bfloat16 if c["model"]["dtype"] == "bfloat16" else chip.float32
    memory: Any = done.memory_analysis()
    own = done.cost_analysis() or {}
    return dict(
        seconds=round(seconds[0], 1),
        processor_seconds=round(seconds[1], 1),
        memory=dict(
            arguments=memory.argument_size_in_bytes,
            results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
        ),
        donated=memory.alias_size_in_bytes,
        roofline_ms=count.roofline(counts, peak, chip.bandwidth),
        compiler=dict(flops=own.get("flops"), bytes=own.get("bytes accessed")),
        **counts._asdict(),
    )


# ------------------------------------------------------------------------------ table


def table(name, x) -> str:
    """Lines for people."""
    chip, mb = targets.CHIPS[CHIP.value], 1e6
    memory = x["memory"]
    sizes = ", ".join(f"{k} {v / mb:.0f}" for k, v in memory.items())
    products, moved = x["roofline_ms"]["products"], x["roofline_ms"]["bytes"]
    sorts = Counter(tuple(s) for s in x["sorts"])
    lines = [
        f"{name}, {BATCH.value} images, {CHIP.value} x {DEVICES.value}",
        f"  compiled      {x['seconds']} s, {x['processor_seconds']} of the processor",
        f"  memory        {sum(memory.values()) / mb:.0f} of {chip.memory / mb:.0f} MB "
        f"({sizes}; {x['donated'] / mb:.0f} of the arguments are written over)",
        f"  products      {x['products'] / 1e9:.1f} GFLOP, {products:.2f} ms at peak",
        f"  bytes         {x['bytes'] / 1e9:.2f} GB, {moved:.2f} ms at peak",
        f"  roofline      {max(products, moved):.2f} ms ({chip.source})",
    ]
    if x["compiler"]["bytes"]:
        lines.append(
            f"  its compiler  {x['compiler']['flops'] / 1e9:.1f} GFLOP, "
            f"{x['compiler']['bytes'] / 1e9:.2f} GB accessed, bodies of loops once"
        )
    for kind, (n, size) in x["collectives"].items():
        lines.append(f"  {kind:13} {n} of {size / mb:.1f} MB together")
    lines.append(
        f"  loops         {len(x['loops'])} whose trips depend on the data, "
        f"{x['counted_loops']} others"
    )
    for part, source, bound in x["loops"]:
        most = f"at most {bound}" if bound else "no bound in the program"
        lines.append(f"                {part}, {source}: {most}")
    several = ", ".join(
        f"{n} x {rows} of {length}" for (rows, length), n in sorts.items()
    )
    lines += [
        f"  sorts         {len(x['sorts'])} ({several})",
        f"  gathers       {x['gathers']}, scatters {x['scatters']}",
        f"  layout copies {x['copies'][0]} of {x['copies'][1] / mb:.1f} MB together",
        f"  to the host   {x['host']}",
        *parts(x, chip),
    ]
    return "\n".join(lines)


def parts(x, chip):
    """A row for each part of the network, by falling bytes."""
    cycles = x["cycles"]
    head = f"  {'part':14}{'MB':>9}" + (f"{'cycles':>12}" if cycles else "")
    yield head + (f"{'ms':>8}" if cycles and chip.clock else "")
    for part, size in sorted(x["bytes_by_part"].items(), key=lambda row: -row[1]):
        line = f"  {part:14}{size / 1e6:9.1f}"
        if cycles:
            line += f"{cycles.get(part, 0):12,}"
            if chip.clock:
                line += f"{1e3 * cycles.get(part, 0) / chip.clock:8.2f}"
        yield line
    if cycles:
        yield (
            "  Cycles are the compiler's estimates. They leave out sorts, gathers, "
            "scatters\n  and copies between memories, and count loops of an unknown "
            "number of trips once."
        )


if __name__ == "__main__":
    cli.run(main)
