"""What a compiled program does: products, memory traffic, loops, sorts, gathers.

Counted from the text of the program, the same way for every chip. A loop's body counts
as often as it runs where the compiler knows that, else once; the loop is then listed.
Of a choice between branches all are counted.

    products   2 x multiply-adds of dots and convolutions, those of the padding left out
    bytes      of main memory that an operation outside of fusions reads and writes. Of
               an operand that a fusion or gather only cuts from, what it cuts; of a
               result that it writes into an operand, what it writes. What stays in a
               TPU's on-chip memory is free.
    cycles     what a TPU's compiler estimates for each operation; it has no estimate
               for sorts, gathers, scatters and copies between memories.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

from frcnn_jax.chips.hlo import Module, Step, constant, operands, trips, walk
from frcnn_jax.chips.traffic import traffic

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast"),
)

# The first row whose pattern is in the name of a Python function, from the inner ones
# to the outer ones, or else in the path of modules.
PARTS = (
    ("RoIAlign", r"roi_align|_align$|roi_pool|pool_rois"),
    ("NMS", r"nms|_sorted_greedy|_greedy_tiles"),
    ("matching", r"^match$|^_best$|^_covered$"),
    ("sampling", r"^sample$|^priorities"),
    ("targets", r"^rpn_targets$|^roi_targets$"),
    ("proposals", r"select_proposals|rpn_proposals"),
    ("postprocess", r"postprocess|class_candidates"),
    ("losses", r"^(rpn|detector|roi)_loss$"),
    ("optimizer", r"apply_updates|^norms$|^update_fn$|running_mean"),
)
MODULES = (
    ("RPN head", r"rpn_head"),
    ("box head", r"box_head"),
    ("FPN", r"\bfpn\b"),
    ("backbone", r"\bbackbone\b"),
)


class Loop(NamedTuple):
    """A loop whose number of trips depends on the data.

    `bound` is the constant that its counter is compared with, None where there is none.
    """

    part: str
    source: str
    bound: int | None


class Counts(NamedTuple):
    """See the head of the module; rows of sorts are (rows, length) of one sort."""

    products: float
    bytes: float
    collectives: dict[str, tuple[int, int]]  # how many, bytes
    loops: list[Loop]
    counted_loops: int
    sorts: list[tuple[int, int]]
    gathers: int
    scatters: int
    copies: tuple[int, int]  # that change the layout: how many, bytes
    cycles: dict[str, int]  # by part of the network
    bytes_by_part: dict[str, int]
    host: int  # calls and transfers that go to the host
    types: dict[str, int]  # products by the type of what they multiply
    aliases: int


def count(module: Module) -> Counts:
    """The counts of a program."""
    steps = list(walk(module))
    collectives: dict[str, tuple[int, int]] = {}
    cycles, bytes_by_part, types = Counter(), Counter(), Counter()
    products, sorts, loops, copies = 0.0, [], [], []
    gathers = scatters = counted = host = 0
    parts: dict[tuple[str, str], str] = {}
    for step in steps:
        i, times = step.instruction, step.times
        part = parts[step.within, i.name] = part_of(module, step, parts)
        opcode = i.opcode.removesuffix("-start")
        if opcode in COLLECTIVES:
            n, size = collectives.get(opcode, (0, 0))
            moved = sum(b.bytes for b in operands(module, step))
            collectives[opcode] = n + times, size + times * moved
        if opcode == "while":
            known = trips(module, step.within, i)
            if known is None:
                loops.append(_loop(module, i, part))
            counted += known is not None
        if found := _sort(module, step):
            sorts += [found] * times
        gathers += times * (opcode == "gather")
        scatters += times * (opcode == "scatter")
        host += (
            opcode in ("infeed", "outfeed", "send", "recv") or "callback" in i.target
        )
        work = product(module, step)
        products += times * work
        if work:
            types[operands(module, step)[0].dtype] += times
        if not step.fused:
            cycles[part] += times * i.cycles
            bytes_by_part[part] += times * traffic(module, step)
            if opcode == "copy" and _changes_layout(module, step):
                copies += [i.results[0].bytes] * times
    return Counts(
        products=products,
        bytes=sum(bytes_by_part.values()),
        collectives=collectives,
        loops=loops,
        counted_loops=counted,
        sorts=sorts,
        gathers=gathers,
        scatters=scatters,
        copies=(len(copies), sum(copies)),
        cycles=dict(+cycles),
        bytes_by_part=dict(+bytes_by_part),
        host=host,
        types=dict(types),
        aliases=module.aliases,
    )


def part_of(module: Module, step: Step, known: dict[tuple[str, str], str]) -> str:
    """The part of the network that an instruction belongs to, "other" for none.

    One that the compiler has made itself, and that says nothing of its origin, belongs
    to the part of its first operand that has one; `known` are the parts so far.
    """
    i = step.instruction
    for function in module.functions(i):
        last = function.split(".")[-1]
        for part, pattern in PARTS:
            if re.search(pattern, last):
                return part
    for part, pattern in MODULES:
        if re.search(pattern, i.op_name):
            return part
    if not i.op_name:
        for name in i.operands:
            if (part := known.get((step.within, name), "other")) != "other":
                return part
    return "other"


def _changes_layout(module, step):
    before, after = operands(module, step)[0], step.instruction.results[0]
    long = [d for d in after.layout if after.shape[d] > 1]
    was = [d for d in before.layout if d < len(before.shape) and before.shape[d] > 1]
    return long != was


# ------------------------------------------------------------------- what is counted


def product(module: Module, step: Step) -> float:
    """2 x the multiply-adds of a dot or a convolution, else 0."""
    i = step.instruction
    if i.opcode == "dot":
        left = operands(module, step)[0]
        depth = math.prod(left.shape[d] for d in i.numbers("lhs_contracting_dims"))
        return 2.0 * i.results[0].elements * depth
    if i.opcode == "custom-call" and re.search(r"gemm|matmul", i.target):
        depths = re.search(r'lhs_contracting_dimensions":\[([^\]]*)\]', i.text)
        numbers = re.findall(r"\d+", depths[1]) if depths else []
        left = operands(module, step)[0]
        depth = math.prod(left.shape[int(d)] for d in numbers)
        return 2.0 * i.results[0].elements * depth
    if i.opcode == "convolution" or "__cudnn$conv" in i.target:
        return _convolution(i, operands(module, step))
    return 0.0


def _convolution(i, read):
    x, kernel, y = read[0], read[1], i.results[0]
    if "BackwardInput" in i.target:
        x, kernel, y = y, kernel, x
    elif "BackwardFilter" in i.target:
        x, kernel, y = x, y, kernel
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.text)
    if labels is None:
        return 0.0
    of_x, of_kernel, of_y = labels.groups()
    window = i.attribute("window")
    outer = y.shape[of_y.index("b")] * y.shape[of_y.index("f")]
    places = 1
    for d in sorted(set(of_kernel) - set("io")):
        places *= _taps(
            x.shape[of_x.index(d)],
            y.shape[of_y.index(d)],
            _window(window, int(d)),
            kernel.shape[of_kernel.index(d)],
        )
    return 2.0 * outer * kernel.shape[of_kernel.index("i")] * places


def _window(text, d):
    """stride, padding before, dilation of the input and of the kernel along an axis."""

    def value(name, default):
        found = re.search(rf"\b{name}=(\S+)", text.strip("{}"))
        return found[1].split("x")[d] if found else default

    pad = int(value("pad", "0_0").split("_")[0])
    return (
        int(value("stride", "1")),
        pad,
        int(value("lhs_dilate", "1")),
        int(value("rhs_dilate", "1")),
    )


def _taps(length, out, window, size):
    """Pairs of an output and a tap of the kernel that meet an input."""
    stride, pad, spread, dilation = window
    last = (length - 1) * spread
    found = 0
    for tap in range(size):
        first = tap * dilation - pad
        if spread == 1:
            low = max(0, (stride - 1 - first) // stride)
            high = min(out - 1, (last - first) // stride)
            found += max(0, high - low + 1)
        else:
            at = (first + o * stride for o in range(out))
            found += sum(0 <= p <= last and p % spread == 0 for p in at)
    return found


def _sort(module, step):
    """(rows, length) of what is sorted, by a sort or by a call that sorts."""
    i = step.instruction
    if i.opcode == "sort":
        axis = (i.numbers("dimensions") or (0,))[0]
    elif i.opcode == "topk" or re.search(r"Sort|TopK", i.target):
        axis = -1
    else:
        return None
    x = operands(module, step)[0]
    return x.elements // max(x.shape[axis], 1), x.shape[axis]


def _loop(module, i, part):
    bounds = []
    for name in _reached(module, i.condition) if i.condition else ():
        around = module.computations[name].instructions
        for inner in around.values():
            if inner.opcode == "constant" and inner.results[0].dtype == "s32":
                bounds.append(constant(around, inner) or 0)
    source = next(iter(module.functions(i)), "")
    return Loop(part, source, min((x for x in bounds if x > 1), default=None))


def _reached(module, name):
    yield name
    for i in module.computations[name].instructions.values():
        for called in i.called:
            yield from _reached(module, called)


def roofline(counts: Counts, peak: float, bandwidth: float) -> dict[str, float]:
    """Milliseconds for the products and for the bytes, at the peaks of a chip."""
    return dict(
        products=1e3 * counts.products / peak, bytes=1e3 * counts.bytes / bandwidth
    )
