"""The main memory that the operations of a compiled program read and write."""

import re

from frcnn_jax.chips.hlo import Buffer, Instruction, Module, Step, operands, width

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
    *("call", "conditional", "after-all", "partition-id", "replica-id", "domain"),
    *("opt-barrier", "async-start", "async-update", "async-done"),
}
_CUT = {"slice", "dynamic-slice", "gather"}


def traffic(module: Module, step: Step) -> int:
    """Bytes of main memory that an instruction outside of fusions reads and writes."""
    i, read = step.instruction, operands(module, step)
    if i.opcode in _FREE or i.opcode.endswith("-done"):
        return 0
    if i.target in ("ConcatBitcast", "AllocateBuffer"):
        return 0
    if i.opcode in ("copy-start", "slice-start"):
        moved = i.results[0 if i.opcode == "copy-start" else 1]
        return moved.bytes * ((read[0].space == 0) + (moved.space == 0))
    if i.opcode == "dynamic-update-slice":
        return _main(read[1]) + read[1].bytes * (i.results[0].space == 0)
    if i.opcode == "scatter":
        third = len(read) // 2
        added = sum(b.bytes for b in read[third + 1 :])  # to rows that it reads
        return sum(map(_main, read[third:])) + 2 * added * (i.results[0].space == 0)
    if i.opcode in _CUT:
        cut = sum(b.bytes for b in i.results) * (read[0].space == 0)
        return sum(map(_main, read[1:])) + cut + sum(map(_main, i.results))
    if i.opcode != "fusion":
        return sum(map(_main, read)) + sum(map(_main, i.results))
    return _fused_traffic(module, i, read)


def _main(buffer: Buffer) -> int:
    return buffer.bytes if buffer.space == 0 else 0


def _fused_traffic(module, i, read):
    body = module.computations[i.called[0]].instructions
    users: dict[str, list[Instruction]] = {}
    for inner in body.values():
        for name in inner.operands:
            users.setdefault(name, []).append(inner)
    written = _written(module, body)
    total = 0
    for inner in body.values():
        if inner.opcode != "parameter":
            continue
        number = _number(inner)
        whole = _main(read[number]) if number < len(read) else 0
        cuts = _cuts(inner.name, users, written)
        total += whole if cuts is None else min(whole, cuts) if whole else 0
    if written:
        sizes = (size for _, size in written.values())
        places = zip(sizes, i.results, strict=True)
        return total + sum(size for size, result in places if result.space == 0)
    return total + sum(map(_main, i.results))


def _cuts(name, users, written):
    """Bytes that a fusion reads of a parameter; None: all of it."""
    total = 0
    for user in users.get(name, []):
        if user.opcode in _CUT and user.operands[0] == name:
            total += sum(b.elements * width(b.dtype) // 8 for b in user.results)
        elif user.name in written and user.operands[written[user.name][0]] == name:
            continue  # written into
        elif user.opcode == "bitcast":
            inner = _cuts(user.name, users, written)
            if inner is None:
                return None
            total += inner
        else:
            return None
    return total


def _written(module, body):
    """What writes into an operand: {instruction: (which operand, bytes accessed)}.

    Empty unless that is all that a fusion results in.
    """
    root = next(x for x in body.values() if x.root)
    roots = [body[n] for n in root.operands] if root.opcode == "tuple" else [root]
    found = {}
    for r in roots:
        while r.opcode in ("bitcast", "convert", "copy") and r.operands:
            r = body[r.operands[0]]
        if r.opcode == "dynamic-update-slice":
            found[r.name] = 0, body[r.operands[1]].results[0].bytes
        elif r.opcode == "scatter" and len(r.operands) == 3:  # reads what it adds to
            found[r.name] = 0, 2 * body[r.operands[2]].results[0].bytes
        elif r.opcode == "fusion":
            inside = module.computations[r.called[0]].instructions
            below = _written(module, inside)
            if len(below) != 1:
                return {}
            ((name, (place, size)),) = below.items()
            target = inside[inside[name].operands[place]]
            if target.opcode != "parameter":
                return {}
            found[r.name] = _number(target), size
        else:
            return {}
    return found


def _number(parameter):
    return int(re.match(r"\((\d+)\)", parameter.text)[1])  # pyright: ignore
