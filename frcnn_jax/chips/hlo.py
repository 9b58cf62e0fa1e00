"""Reads the text of a compiled program, HLO as `compiled.as_text()` gives it.

A module has computations, a computation instructions in the order that they run in.
Only what `count` needs is understood; the rest of an instruction stays text.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

WIDTHS = dict(pred=8, s4=4, u4=4, token=0, bf16=16, c64=64, c128=128)


class Buffer(NamedTuple):
    """An array: its type, extents, dimensions from minor to major, tile and memory.

    `space` is 0 for the chip's main memory; a TPU has others, of which 1 is on the
    chip. `tile` holds the extents that the last dimensions are padded to, () for none.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def elements(self) -> int:
        """How many numbers, without padding."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How much memory it takes, with the padding of its tiles."""
        sides = [self.shape[d] for d in self.layout] or list(self.shape[::-1])
        tile = self.tile[::-1]
        if len(sides) < len(tile):
            sides += [1] * (len(tile) - len(sides))
        for i, step in enumerate(tile):
            sides[i] = -(-sides[i] // step) * step
        return math.prod(sides) * width(self.dtype) // 8


class Instruction(NamedTuple):
    """One operation: `results` has several buffers where it returns a tuple."""

    name: str
    opcode: str
    results: tuple[Buffer, ...]
    operands: tuple[str, ...]
    text: str  # of the operands and attributes
    root: bool

    def attribute(self, name: str) -> str:
        """The text of `name=...`, with its braces; empty where it is missing."""
        found = re.search(rf"[, ]{name}=(\{{[^}}]*\}}|[^, ]+)", self.text)
        return found[1] if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """`name={1,2}` as numbers."""
        return tuple(map(int, re.findall(r"\d+", self.attribute(name))))

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from, `jit(f)/module/operation`."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.text)
        return found[1] if found else ""

    @property
    def condition(self) -> str:
        """The computation that says whether a loop goes on; empty for all else."""
        return self.attribute("condition").lstrip("%")

    @property
    def trips(self) -> int | None:
        """How often a loop runs, None where the compiler does not know."""
        found = re.search(r'known_trip_count":\{"n":"(\d+)"', self.text)
        return int(found[1]) if found else None

    @property
    def cycles(self) -> int:
        """The cycles that a TPU's compiler estimates, 0 where it says none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(found[1]) if found else 0

    @property
    def called(self) -> list[str]:
        """The computations that it refers to."""
        named = re.findall(
            r"(?:calls|to_apply|body|condition|true_computation|false_computation)"
            r"=%?([\w.\-]+)",
            self.text,
        )
        if many := self.attribute("branch_computations"):
            named += re.findall(r"%?([\w.\-]+)", many.strip("{}"))
        return named


class Computation(NamedTuple):
    """Instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(i for i in self.instructions.values() if i.root)


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str
    aliases: int  # results that take the memory of an argument
    frames: dict[int, tuple[str, ...]]  # Python functions of a stack, inner ones first

    def functions(self, instruction: Instruction) -> tuple[str, ...]:
        """The Python functions in which an instruction was traced, inner ones first."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.text)
        return self.frames.get(int(found[1]), ()) if found else ()


def width(dtype: str) -> int:
    """Bits of a number: `f32` 32, `f8e4m3fn` 8."""
    if dtype in WIDTHS:
        return WIDTHS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def parse(text: str) -> Module:
    """The module of a text; ValueError where it has no entry computation.

    >>> module = parse('''HloModule f
    ... ENTRY %main (x: f32[2,3]) -> f32[3] {
    ...   %x = f32[2,3]{1,0} parameter(0)
    ...   ROOT %s = f32[3]{0} slice(%x), slice={[0:1], [0:3]}
    ... }''')
    >>> root = module.computations[module.entry].root
    >>> root.opcode, root.results[0].bytes, root.operands
    ('slice', 12, ('x',))
    """
    computations, entry, now = {}, "", None
    for line in text.splitlines():
        if line.endswith("{") and "->" in line and " = " not in line.split("(")[0]:
            words = line.split()
            name = words[1] if words[0] == "ENTRY" else words[0]
            now = Computation(name.lstrip("%").split("(")[0], {})
            computations[now.name] = now
            entry = now.name if words[0] == "ENTRY" else entry
        elif line.startswith("}"):
            now = None
        elif now is not None and (found := _instruction(line)):
            now.instructions[found.name] = found
    if not entry:
        raise ValueError("no HLO module: the text has no line that begins with ENTRY")
    header = text.split("\n", 1)[0]
    aliases = len(re.findall(r"-alias\)", header))
    return Module(computations, entry, aliases, dict(_frames(text)))


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    start = found.end()
    end = _closed(line, start) if line[start] == "(" else line.index(" ", start)
    opcode, paren, _ = line[end:].strip().partition("(")
    if not paren:
        return None
    begin = line.index("(", end)
    close = _closed(line, begin)
    operands = tuple(re.findall(r"%([\w.\-]+)", line[begin:close]))
    return Instruction(
        found[2],
        opcode,
        tuple(_buffers(line[start:end])),
        operands,
        line[begin:],
        bool(found[1]),
    )


def _closed(line: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(line)):
        depth += (line[i] == "(") - (line[i] == ")")
        if depth == 0:
            return i + 1
    return len(line)


_BUFFER = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")


def _buffers(text: str) -> Iterator[Buffer]:
    for dtype, sides, layout in _BUFFER.findall(text):
        order, _, more = layout.partition(":")
        tile = re.search(r"T\(([\d,]+)\)", more)
        space = re.search(r"S\((\d+)\)", more)
        yield Buffer(
            dtype,
            _numbers(sides.replace("<=", "")),
            _numbers(order),
            _numbers(tile[1]) if tile else (),
            int(space[1]) if space else 0,
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in text.split(",") if x)


def _frames(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The tables at the head of a module: each frame's functions, inner ones first."""

    def table(name, pattern):
        found = re.search(rf"^{name}\n((?:\d+ .*\n)+)", text, re.M)
        rows = re.findall(rf"^(\d+) {pattern}", found[1], re.M) if found else []
        return {int(row[0]): row[1:] for row in rows}

    names = table("FunctionNames", r'"(.*)"')
    places = table("FileLocations", r"\{file_name_id=\d+ function_name_id=(\d+)")
    stack = table("StackFrames", r"\{file_location_id=(\d+)(?: parent_frame_id=(\d+))?")
    for frame in stack:
        found, at, seen = [], frame, set()
        while at in stack and at not in seen:
            seen.add(at)
            place, parent = stack[at]
            found.append(names[int(places[int(place)][0])][0])
            at = int(parent) if parent else 0
            # Identifiers of parents are one more than those of the frames.
            at = at - 1
        yield frame, tuple(found)


# ---------------------------------------------------------------- what runs, how often


class Step(NamedTuple):
    """An instruction that runs: how often, and whether inside of a fusion."""

    instruction: Instruction
    within: str  # the computation that it stands in
    times: int
    fused: bool


def walk(module: Module) -> Iterator[Step]:
    """All instructions that run, those in loops, branches and fusions too."""

    def visit(name, times, fused):
        for i in module.computations[name].instructions.values():
            yield Step(i, name, times, fused)
            inside = fused or i.opcode == "fusion"
            if i.opcode in ("fusion", "call", "conditional", "async-start"):
                for called in i.called:
                    yield from visit(called, times, inside)
            elif i.opcode == "while":
                n = trips(module, name, i)
                for called in i.called:
                    yield from visit(called, times * (1 if n is None else n), inside)

    return visit(module.entry, 1, False)


def trips(module: Module, within: str, i: Instruction) -> int | None:
    """How often a loop runs, None where that depends on the data.

    Where the compiler does not say: a loop that compares a counter, from a constant on
    and by ones as all of JAX's do, with a constant.
    """
    if i.trips is not None or i.condition not in module.computations:
        return i.trips
    condition = module.computations[i.condition]
    around = module.computations[within].instructions
    root, inside = condition.root, condition.instructions
    if root.opcode != "compare" or root.attribute("direction") != "LT":
        return None
    counter, end = (inside[name] for name in root.operands)
    start = around[i.operands[0]]
    if counter.opcode != "get-tuple-element" or start.opcode != "tuple":
        return None
    first, last = (
        constant(instructions, one)
        for instructions, one in (
            (around, around[start.operands[int(counter.attribute("index"))]]),
            (inside, end),
        )
    )
    return None if first is None or last is None else max(last - first, 0)


def constant(instructions, i):
    """The whole number that an instruction is, or a copy of; None for anything else."""
    while i.opcode in ("copy", "bitcast") and i.operands:
        i = instructions[i.operands[0]]
    found = re.match(r"\((-?\d+)\)", i.text) if i.opcode == "constant" else None
    return int(found[1]) if found else None


def operands(module: Module, step: Step) -> list[Buffer]:
    """The buffers that an instruction reads."""
    around = module.computations[step.within].instructions
    return [b for name in step.instruction.operands for b in around[name].results]
