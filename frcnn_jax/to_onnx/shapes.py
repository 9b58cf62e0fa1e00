"""What each primitive of a program becomes: shapes, indices and numbers of many.

A rule takes the graph, the equation and its inputs, and returns the outputs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax

from frcnn_jax.to_onnx.tensors import Graph, Tensor, element_type, known

Rule = Callable[[Graph, Any, list[Tensor]], Any]

PASS = ("stop_gradient", "copy", "copy_p", "optimization_barrier", "reduce_precision")


def out(eqn, i: int = 0) -> Any:
    """Shape and type of an output."""
    return eqn.outvars[i].aval


def broadcast(graph: Graph, t: Tensor, shape, dims) -> Tensor:
    """The array along new axes: its axis i is axis `dims[i]`; nothing is copied."""
    dims, shape = tuple(int(d) for d in dims), tuple(shape)
    if t.shape == shape and dims == tuple(range(len(shape))):
        return t
    if not t.shape:
        dims = ()
    of_map = t if t.image is not None else None
    if of_map is not None:
        t = dataclasses.replace(t, name=graph.plain(t), image=None)
    held = [1] * len(shape)
    for i, d in enumerate(dims):
        held[d] = t.held[i]
    held = tuple(held)
    if t.constant:
        return known(t.value.reshape(held), shape)
    name = t.name if held == t.held else graph.reshape(t.name, held)
    if of_map is not None and of_map.shape == of_map.image and len(shape) == 5:
        (new,) = set(range(5)) - set(dims)
        if new in (2, 3):  # rows or columns are repeated
            graph.repeats[name] = of_map, new - 1, shape[new]
    return dataclasses.replace(t, shape=shape, held=held, name=name)


def reshape(graph: Graph, t: Tensor, shape) -> Tensor:
    """The array with another shape."""
    shape = tuple(int(side) for side in shape)
    if t.shape == shape:
        return t
    if t.name in graph.repeats:
        of_map, axis, times = graph.repeats[t.name]
        assert of_map.image is not None
        wanted = list(of_map.image)
        wanted[axis] *= times
        if shape == tuple(wanted):
            return _enlarged(graph, of_map, axis, times, shape)
    if t.image is not None:
        return dataclasses.replace(t, shape=shape, held=shape)
    if all(side == 1 for side in t.held):
        held = (1,) * len(shape)
    elif t.held == t.shape:
        held = shape
    elif [s for s in t.shape if s != 1] == [s for s in shape if s != 1]:
        sides = iter(h for h, s in zip(t.held, t.shape, strict=True) if s != 1)
        held = tuple(1 if s == 1 else next(sides) for s in shape)
    else:
        t = materialised(graph, t)
        held = shape
    if t.constant:
        return known(t.value.reshape(held), shape)
    return dataclasses.replace(
        t, shape=shape, held=held, name=graph.reshape(t.name, held)
    )


def materialised(graph: Graph, t: Tensor) -> Tensor:
    """The array, plain and with nothing left to repeat."""
    if t.constant:
        return known(np.broadcast_to(t.value, t.shape))
    return dataclasses.replace(t, name=graph.full(t), held=t.shape, image=None)


def _enlarged(graph, t, axis, times, shape):
    scales = np.ones(4, np.float32)
    scales[axis + 1] = times  # rows are the third of n c h w
    source, node = t.name, graph.producers.get(t.name)
    if node is not None and node.op_type == "Resize":
        scales, source = scales * graph.constants[node.input[2]], node.input[0]
    name = graph.add(
        "Resize",
        source,
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return dataclasses.replace(t, shape=shape, held=shape, image=shape, name=name)


def _transpose(graph, eqn, inputs):
    (t,), perm = inputs, [int(p) for p in eqn.params["permutation"]]
    name = graph.add("Transpose", graph.plain(t), perm=perm)
    held = tuple(t.held[p] for p in perm)
    return Tensor(out(eqn).shape, t.dtype, held, name, low=t.low, high=t.high)


# The place of an axis of n h w c among n c h w.
FIRST = (0, 2, 3, 1)


def _axes_of(graph, t):
    """A name, and the place of each axis in it."""
    if t.image is not None and t.image == t.shape:
        return t.name, FIRST, t.image
    return graph.full(t), tuple(range(len(t.shape))), None


def _sliced(graph, t, starts, ends, steps, shape):
    name, place, image = _axes_of(graph, t)
    cut = [
        i
        for i, side in enumerate(t.shape)
        if (starts[i], ends[i], steps[i]) != (0, side, 1)
    ]
    if cut:
        parts = [[int(x[i]) for i in cut] for x in (starts, ends)]
        axes, by = [place[i] for i in cut], [int(steps[i]) for i in cut]
        numbers = (np.array(x, np.int64) for x in (*parts, axes, by))
        name = graph.add("Slice", name, *numbers)
    shape = tuple(shape)
    image = shape if image is not None else None
    return dataclasses.replace(t, shape=shape, held=shape, name=name, image=image)


def _slice(graph, eqn, inputs):
    (t,), p = inputs, eqn.params
    steps = p["strides"] or (1,) * len(t.shape)
    ends, shape = p["limit_indices"], out(eqn).shape
    return _sliced(graph, t, p["start_indices"], ends, steps, shape)


def _split(graph, eqn, inputs):
    (t,), axis, start, found = inputs, eqn.params["axis"], 0, []
    for i, size in enumerate(eqn.params["sizes"]):
        starts, ends = [0] * len(t.shape), list(t.shape)
        starts[axis], ends[axis] = start, start + size
        steps = [1] * len(t.shape)
        found.append(_sliced(graph, t, starts, ends, steps, out(eqn, i).shape))
        start += size
    return found


def _rev(graph, eqn, inputs):
    name, axes = graph.full(inputs[0]), [int(d) for d in eqn.params["dimensions"]]
    ends = [-(2**31)] * len(axes)
    numbers = (np.array(x, np.int64) for x in ([-1] * len(axes), ends, axes, ends))
    starts, ends, axes, _ = numbers
    name = graph.add("Slice", name, starts, ends, axes, -np.ones_like(starts))
    return Tensor(out(eqn).shape, inputs[0].dtype, out(eqn).shape, name)


def _concatenate(graph, eqn, inputs):
    axis, shape = eqn.params["dimension"], out(eqn).shape
    bounds = [t.bounds() for t in inputs]
    low, high = None, None
    if not any(None in pair for pair in bounds):
        low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
    if any(t.image is not None and t.image == t.shape for t in inputs):
        names = [graph.channels_first(t) for t in inputs]
        name = graph.add("Concat", *names, axis=FIRST[axis])
        return Tensor(shape, inputs[0].dtype, shape, name, image=shape)
    name = graph.add("Concat", *(graph.full(t) for t in inputs), axis=axis)
    return Tensor(shape, inputs[0].dtype, shape, name, low=low, high=high)


def _stack(graph, eqn, inputs):
    axis, shape = eqn.params["axis"], out(eqn).shape
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    names = [graph.full(reshape(graph, t, one)) for t in inputs]
    name = graph.add("Concat", *names, axis=axis)
    return Tensor(shape, inputs[0].dtype, shape, name)


def _pad(graph, eqn, inputs):
    t, value = inputs
    low, high, inside = zip(*eqn.params["padding_config"], strict=True)
    if any(inside) or min(*low, *high) < 0:
        raise NotImplementedError("padding between values, or of less than nothing")
    name, place, image = _axes_of(graph, t)
    if any(low) or any(high):
        pads = np.zeros((2, len(t.shape)), np.int64)
        pads[0, list(place)], pads[1, list(place)] = low, high
        name = graph.add("Pad", name, pads.reshape(-1), graph.plain(value))
    shape = out(eqn).shape
    image = shape if image is not None else None
    return dataclasses.replace(t, shape=shape, held=shape, name=name, image=image)


def _iota(graph, eqn, inputs):
    shape, dim = out(eqn).shape, eqn.params["dimension"]
    held = [1] * len(shape)
    held[dim] = shape[dim]
    return known(np.arange(shape[dim], dtype=out(eqn).dtype).reshape(held), shape)


# Numbers of many ------------------------------------------------------------------


def _reduce(op):
    def rule(graph, eqn, inputs):
        (t,), axes = inputs, [int(a) for a in eqn.params["axes"]]
        name, place, image = _axes_of(graph, t)
        if image is not None and set(axes) not in ({1, 2}, {3}, {1, 2, 3}):
            name, place = graph.plain(t), tuple(range(4))
        axes = sorted(place[a] for a in axes)
        boolean = t.dtype == bool
        if boolean:
            name = graph.add("Cast", name, to=element_type(np.int64))
        if op == "ReduceSum":
            name = graph.add(op, name, np.array(axes, np.int64), keepdims=0)
        else:
            name = graph.add(op, name, axes=axes, keepdims=0)
        if boolean:
            name = graph.add("Cast", name, to=element_type(np.bool_))
        return Tensor(out(eqn).shape, out(eqn).dtype, out(eqn).shape, name)

    return rule


def _argmax(graph, eqn, inputs):
    (axis,), (t,) = eqn.params["axes"], inputs
    name = graph.add("ArgMax", graph.full(t), axis=int(axis), keepdims=0)
    shape, last = out(eqn).shape, t.shape[axis] - 1
    return Tensor(shape, out(eqn).dtype, shape, name, low=0, high=last)


def _cumsum(graph, eqn, inputs):
    axis = np.array(eqn.params["axis"], np.int64)
    reverse = int(eqn.params["reverse"])
    name = graph.add("CumSum", graph.full(inputs[0]), axis, reverse=reverse)
    return Tensor(out(eqn).shape, out(eqn).dtype, out(eqn).shape, name)


def _top_k(graph, eqn, inputs):
    """Both break ties by the lower index."""
    (t,), k = inputs, np.array([eqn.params["k"]], np.int64)
    axis = int(eqn.params.get("axis", len(t.shape) - 1))
    values, index = graph.add("TopK", graph.full(t), k, axis=axis, outputs=2)
    shape, last = out(eqn).shape, t.shape[axis] - 1
    return [
        Tensor(shape, t.dtype, shape, values),
        Tensor(shape, out(eqn, 1).dtype, shape, index, low=0, high=last),
    ]


def _sort(graph, eqn, inputs):
    """By the first operand, ascending; equal ones keep their order."""
    if eqn.params["num_keys"] != 1:
        raise NotImplementedError("a sort by several keys")
    axis = int(eqn.params["dimension"])
    key = graph.full(inputs[0])
    count = inputs[0].shape[axis]
    if inputs[0].dtype == bool:
        # No two keys are equal: OpenVINO's TopK does not keep equal ones in order.
        key = graph.add("Cast", key, to=element_type(np.float32))
        after = (1,) * (len(inputs[0].shape) - 1 - axis)
        place = np.arange(count, dtype=np.float32).reshape(-1, *after)
        key = graph.add("Add", graph.add("Mul", key, np.float32(count)), place)
    k = np.array([count], np.int64)
    index = graph.add("TopK", key, k, axis=axis, largest=0, outputs=2)[1]
    found = []
    for i, t in enumerate(inputs):
        whole, shape = graph.full(t), out(eqn, i).shape
        name = graph.add("GatherElements", whole, index, axis=axis)
        low, high = t.bounds()
        found.append(Tensor(shape, t.dtype, shape, name, low=low, high=high))
    return found


def _gather(graph, eqn, inputs):
    """Whole rows by index: Gather, or GatherND where images have their own."""
    t, index = inputs
    d, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    batch, axes = tuple(map(int, d.operand_batching_dims)), d.start_index_map
    axes = tuple(map(int, axes))
    whole = [i for i in range(len(t.shape)) if i not in (*batch, *axes)]
    first = len(batch)
    fits = (
        tuple(map(int, d.collapsed_slice_dims)) == axes
        and all(sizes[i] == 1 for i in axes)
        and all(sizes[i] == t.shape[i] for i in whole)
        and batch == tuple(range(first))
        and tuple(map(int, d.start_indices_batching_dims)) == batch
    )
    offsets, lead = tuple(map(int, d.offset_dims)), len(index.shape) - 1
    if not fits:
        raise NotImplementedError("a gather of parts of rows")
    index = _within(graph, index, [t.shape[a] for a in axes], eqn.params["mode"])
    shape = out(eqn).shape
    if not batch and len(axes) == 1:
        (axis,) = axes
        expected = [*range(axis), *range(axis + lead, lead + len(t.shape) - 1)]
        squeezed = graph.full(reshape(graph, index, index.shape[:-1]))
        name = graph.add("Gather", graph.full(t), squeezed, axis=axis)
    else:
        expected = [*range(lead, lead + len(whole))]
        if axes != tuple(range(first, first + len(axes))):
            raise NotImplementedError("a gather along axes that are not the first")
        name = graph.add("GatherND", graph.full(t), graph.full(index), batch_dims=first)
    if offsets != tuple(expected):
        raise NotImplementedError("a gather whose rows are not last")
    low, high = t.bounds()
    return Tensor(shape, t.dtype, shape, name, low=low, high=high)


def _within(graph, index, sizes, mode):
    """The index, in bounds as the mode wants it."""
    low, high = index.bounds()
    if low is not None and high is not None and low >= 0 and high < min(sizes):
        return index
    if mode == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        return index
    if mode != lax.GatherScatterMode.CLIP:
        raise NotImplementedError("a gather that may read outside and is not clipped")
    zero, last = known(np.array(0)), known(np.array(sizes) - 1)
    found = graph.elementwise("Max", [index, zero], index.dtype)
    last = broadcast(graph, last, index.shape, (len(index.shape) - 1,))
    return graph.elementwise("Min", [found, last], index.dtype)


def _dynamic_slice(graph, eqn, inputs):
    t, *starts = inputs
    sizes = eqn.params["slice_sizes"]
    if not all(s.constant for s in starts):
        return _moving_slice(graph, t, starts, sizes)
    at = [
        min(max(int(s.value), 0), side - size)
        for s, side, size in zip(starts, t.shape, sizes, strict=True)
    ]
    ends = [a + size for a, size in zip(at, sizes, strict=True)]
    return _sliced(graph, t, at, ends, [1] * len(at), out(eqn).shape)


def _tile(graph, eqn, inputs):
    (t,) = inputs
    shape = out(eqn).shape
    name = graph.add("Tile", graph.full(t), np.array(eqn.params["reps"]))
    low, high = t.bounds()
    return Tensor(shape, t.dtype, shape, name, low=low, high=high)


def _moving_slice(graph, t, starts, sizes):
    """A slice whose start is known when the file runs; the last start that fits."""
    names = [graph.reshape(graph.full(s), (1,)) for s in starts]
    at = graph.add("Concat", *names, axis=0) if len(names) > 1 else names[0]
    last = np.array([side - size for side, size in zip(t.shape, sizes, strict=True)])
    at = graph.add("Min", graph.add("Max", at, np.zeros(len(last), int)), last)
    ends = graph.add("Add", at, np.array(sizes))
    name = graph.add("Slice", graph.full(t), at, ends, np.arange(len(sizes)))
    low, high = t.bounds()
    return Tensor(sizes, t.dtype, sizes, graph.reshape(name, sizes), low=low, high=high)


RULES: dict[str, Rule] = {
    **dict.fromkeys(PASS, lambda graph, eqn, inputs: inputs),
    "broadcast_in_dim": lambda graph, eqn, inputs: broadcast(
        graph, inputs[0], out(eqn).shape, eqn.params["broadcast_dimensions"]
    ),
    "reshape": lambda graph, eqn, inputs: reshape(graph, inputs[0], out(eqn).shape),
    "squeeze": lambda graph, eqn, inputs: reshape(graph, inputs[0], out(eqn).shape),
    "transpose": _transpose,
    "slice": _slice,
    "split": _split,
    "rev": _rev,
    "concatenate": _concatenate,
    "stack": _stack,
    "pad": _pad,
    "iota": _iota,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _reduce("ReduceMax"),
    "reduce_and": _reduce("ReduceMin"),
    "argmax": _argmax,
    "cumsum": _cumsum,
    "top_k": _top_k,
    "sort": _sort,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "tile": _tile,
}
# Of constants these keep the axes of length 1 along which they repeat.
LAZY = {"broadcast_in_dim", "reshape", "squeeze", "iota", *PASS}
