"""A JAX program as an ONNX graph: its primitives are read one after the other.

    lower(function, inputs={"image": ShapeDtypeStruct(...)}, outputs=("boxes", ...))

What depends on constants alone is computed here. Rules for the rest are in `values`,
`shapes`, `network` and `detection`, by the name of the primitive.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

from frcnn_jax.to_onnx import detection, network, shapes, simplify, values
from frcnn_jax.to_onnx.shapes import Rule
from frcnn_jax.to_onnx.tensors import Graph, Tensor, known

# Opset 17 and IR version 8 (ONNX 1.12, 2022): RoiAlign's half pixels are of 16.
OPSET, IR_VERSION = 17, 8

RULES: dict[str, Rule] = {
    **values.RULES,
    **shapes.RULES,
    **network.RULES,
    **detection.RULES,
}


def lower(
    function: Callable[..., Sequence[jax.Array]],
    *,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """The program that `function(*inputs)` traces, with inputs and outputs by name.

    Inputs and outputs keep their types and static shapes. Raises ValueError for a
    primitive without a rule, and names it.
    """
    graph = Graph()
    given = []
    for name, x in inputs.items():
        t = Tensor(x.shape, np.dtype(x.dtype), x.shape, name)
        if np.dtype(x.dtype) == np.int32:
            t = dataclasses.replace(t, name=graph.add("Cast", name, to=7))
        given.append(t)
    found = write(graph, function, given)
    for name, t in zip(outputs, found, strict=True):
        to = _declared(t.dtype)
        graph.nodes.append(
            helper.make_node("Cast", [graph.full(t)], [name], name=name, to=to)
        )
    simplify.simplify(graph, outputs)
    return _model(graph, inputs, outputs, found)


def _declared(dtype):
    """The type of an input or output: whole numbers of 32 bits, as in the program."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _model(graph, inputs, outputs, found):
    given, returned = (
        [
            helper.make_tensor_value_info(name, _declared(x.dtype), x.shape)
            for name, x in pairs
        ]
        for pairs in (inputs.items(), zip(outputs, found, strict=True))
    )
    constants = [
        numpy_helper.from_array(value, name) for name, value in graph.constants.items()
    ]
    body = helper.make_graph(graph.nodes, "detector", given, returned, constants)
    return helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="frcnn_jax",
    )


def write(
    graph: Graph, function: Callable[..., Any], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """The program that `function` traces of tensors of the graph, added to it.

    Outputs come as leaves, in the order of `jax.tree.leaves`.
    """
    avals = (jax.ShapeDtypeStruct(t.shape, t.dtype) for t in inputs)
    closed = jax.make_jaxpr(function)(*avals)
    return run(graph, closed.jaxpr, closed.consts, inputs)


def run(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Tensor]):
    """Write the equations of a program; return its outputs."""
    env: dict[Any, Tensor] = {}

    def read(v):
        if isinstance(v, core.Literal):
            aval: Any = v.aval
            return known(np.asarray(v.val, aval.dtype))
        return env[v]

    constants = [_constant(c) for c in consts]
    for variables, tensors in ((jaxpr.constvars, constants), (jaxpr.invars, inputs)):
        env |= dict(zip(variables, tensors, strict=True))
    for eqn in jaxpr.eqns:
        found = apply(graph, eqn, [read(v) for v in eqn.invars])
        found = found if isinstance(found, list) else [found]
        env |= dict(zip(eqn.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _extended(dtype):
    """A key of the random numbers has a type that NumPy has not."""
    return not isinstance(dtype, np.dtype)


def _constant(value):
    if _extended(value.dtype):
        return Tensor(value.shape, value.dtype, value.shape, value=value)
    return known(np.asarray(value))


def apply(graph: Graph, eqn: Any, inputs: list[Tensor]) -> Any:
    """The outputs of one equation."""
    name, params = eqn.primitive.name, eqn.params
    if name == "jit":
        rule = network.FUNCTIONS.get(params["name"])
        if rule is not None and len(inputs) == 1 and not inputs[0].constant:
            return rule(graph, eqn, inputs)
        return _call(graph, params["jaxpr"], inputs)
    if name in ("custom_jvp_call", "custom_vjp_call"):
        return _call(graph, params["call_jaxpr"], inputs)
    if name in ("checkpoint", "remat2", "closed_call", "core_call"):
        return _call(graph, params.get("jaxpr", params.get("call_jaxpr")), inputs)
    if name == "cond" and inputs[0].constant:
        return _call(graph, params["branches"][int(inputs[0].value)], inputs[1:])
    if all(t.constant for t in inputs) and name not in shapes.LAZY:
        return _computed(eqn, inputs)
    if name in RULES:
        try:
            return RULES[name](graph, eqn, inputs)
        except NotImplementedError as error:
            raise ValueError(_refusal(f"{error} ({name})")) from error
    impl: Any = getattr(eqn.primitive, "impl", None)
    if getattr(impl, "__module__", "") == "frcnn_jax.ops.primitive":
        closed = jax.make_jaxpr(lambda *x: impl(*x, **params))(
            *(jax.ShapeDtypeStruct(t.shape, t.dtype) for t in inputs)
        )
        return _call(graph, closed, inputs)
    raise ValueError(_refusal(f"the operation {name}"))


def _refusal(what):
    return (
        f"to_onnx: {what} has no form in ONNX here: export with --format=stablehlo, or "
        "choose a model and a post-processing that docs/export.md lists"
    )


def _call(graph, program, inputs):
    if isinstance(program, core.ClosedJaxpr):
        return run(graph, program.jaxpr, program.consts, inputs)
    return run(graph, program, [], inputs)


def _computed(eqn, inputs):
    """An equation of constants."""
    small = eqn.primitive.name in values.RULES
    given = [t.value if small else _whole(t) for t in inputs]
    if small:
        given = np.broadcast_arrays(*given)
    found = eqn.primitive.bind(*given, **eqn.params)
    found = list(found) if eqn.primitive.multiple_results else [found]
    tensors = []
    for x, v in zip(found, eqn.outvars, strict=True):
        t = _constant(x)
        tensors.append(dataclasses.replace(t, shape=v.aval.shape))
    return tensors


def _whole(t):
    if _extended(t.dtype):
        return t.value
    return np.broadcast_to(t.value, t.shape)
