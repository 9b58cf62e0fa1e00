"""JAX primitives with their own rules for computing, differentiating and batching.

Why not `custom_vjp`: it gives reverse mode only. Why not plain differentiation: of a
choice between platforms it keeps the residuals of every branch. The operations here
are multilinear in some of their arguments, so one rule gives every derivative. The
tangent is the operation itself with a tangent in place of an argument; the transpose
is another such operation. Forward mode, reverse mode and all higher derivatives
follow from these two.

A formulation is the function of arrays that computes an operation. It may choose by
platform with `lax.platform_dependent`, because JAX does not differentiate through it.
An export for one platform contains the formulations of that platform alone, forward
and backward.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType

Rule = Callable[..., Any]


class Operation:
    """A function of arrays with rules of its own; keyword arguments are static.

    `formulation(*arrays, **static)` returns a tuple of arrays. `like` is a function
    with the same shapes and dtypes that is faster to trace; only its types are used.
    `derivatives` and `batched` set the rules. If the arrays vary over different axes
    of a `shard_map`, they are cast to vary over all of them.
    """

    def __init__(self, name: str, formulation: Rule, *, like: Rule | None = None):
        compiled = _jitted(name, formulation)
        typed = _jitted(name, like) if like else compiled
        self.primitive = Primitive(name)
        self.primitive.multiple_results = True

        def run(*args, **static):
            return list(compiled(tuple(static.items()), *args))

        def types(*avals, **static):
            return typed.trace(tuple(static.items()), *avals).jaxpr.out_avals

        self.primitive.def_impl(run)
        self.primitive.def_abstract_eval(types)
        mlir.register_lowering(self.primitive, mlir.lower_fun(run))
        self.batched(self.one_by_one)

    def __call__(self, *args: Any, **static: Any) -> Any:
        """Return the one array of the formulation, or a list of several."""
        found = self.primitive.bind(*vary_alike(*args), **static)
        return found[0] if len(found) == 1 else found

    def derivatives(self, jvp: Rule, transpose: Rule | None = None) -> None:
        """Set the rules of forward and reverse mode.

        `jvp(args, tangents, results, **static)` returns the tangents of the results;
        a tangent is None where it is zero. `transpose(cotangents, args, **static)`
        returns a cotangent for each argument, and None for an argument in which the
        operation is not linear. There an argument that is differentiated has no value:
        it is a `Linear`.
        """

        def jvp_rule(args, tangents, **static):
            tangents = [None if type(t) is ad.Zero else t for t in tangents]
            results = self.primitive.bind(*args, **static)
            found = as_list(jvp(args, tangents, results, **static))
            return results, [
                ad.Zero(jax.typeof(x).to_tangent_aval()) if t is None else t
                for x, t in zip(results, found, strict=True)
            ]

        def transpose_rule(cotangents, *args, **static):
            if transpose is None:
                raise NotImplementedError(f"{self.primitive} is not linear")
            cotangents = [ad.instantiate_zeros(c) for c in cotangents]
            unknown = map(ad.is_undefined_primal, args)
            args = [
                Linear(a.aval) if u else a for u, a in zip(unknown, args, strict=True)
            ]
            return list(transpose(cotangents, args, **static))

        ad.primitive_jvps[self.primitive] = jvp_rule
        ad.primitive_transposes[self.primitive] = transpose_rule

    def batched(self, rule: Rule) -> None:
        """Set what vmap does: `rule(size, batched, *args, **static)`.

        Batched arguments and all results have the batch as their first axis. Without
        a rule the operation runs for one example after the other. If the axis is
        sharded over an Explicit mesh, each device applies the rule to its own part.
        """

        def batching_rule(args, dims, **static):
            mapped = [d is not None for d in dims]
            front = [
                a if d is None else jax.numpy.moveaxis(a, d, 0)
                for a, d in zip(args, dims, strict=True)
            ]

            def apply(*args):
                size = next(a.shape[0] for a, m in zip(args, mapped, strict=True) if m)
                return as_list(rule(size, mapped, *args, **static))

            found = on_each_device(apply, mapped, front)
            return found, [0] * len(found)

        batching.primitive_batchers[self.primitive] = batching_rule

    def one_by_one(self, size: int, batched: Sequence[bool], /, *args, **static):
        """The default batching rule: a loop over the examples."""
        del size

        def one(mapped):
            mapped = iter(mapped)
            return self(
                *(next(mapped) if b else a for a, b in zip(args, batched, strict=True)),
                **static,
            )

        return lax.map(one, [a for a, b in zip(args, batched, strict=True) if b])


def _jitted(name, function):
    def named(static, *args):
        return function(*args, **dict(static))

    named.__name__ = name
    return jax.jit(named, static_argnums=0)


class Linear:
    """Shape and dtype of an argument whose cotangent a transpose rule computes."""

    def __init__(self, aval: Any):
        self.shape, self.dtype = aval.shape, aval.dtype


def linear_pair(forward: Operation, backward: Operation) -> None:
    """Declare two operations linear in their first argument, each other's transpose.

    The other arguments are indices and weights without a derivative. Both operations
    take the same static arguments. `backward` takes two more: `size`, the number of
    rows of the first argument of `forward`, and its `dtype`.
    """

    def forward_transpose(cotangents, args, **static):
        x, *rest = args
        static.update(size=x.shape[0], dtype=x.dtype)
        return [backward(cotangents[0], *rest, **static), *[None] * len(rest)]

    def backward_transpose(cotangents, args, *, size, dtype, **static):
        del size, dtype
        _, *rest = args
        return [forward(cotangents[0], *rest, **static), *[None] * len(rest)]

    def jvp(operation):
        return lambda args, tangents, results, **static: operation(
            tangents[0], *args[1:], **static
        )

    forward.derivatives(jvp(forward), forward_transpose)
    backward.derivatives(jvp(backward), backward_transpose)


def bilinear(of_both: Operation, of_first: Operation, of_second: Operation) -> None:
    """Declare an operation linear in each of two arguments, and its two transposes.

        y = of_both(x, k)        dx = of_first(dy, k)        dk = of_second(x, dy)

    Each of the three is linear in both arguments, and the other two are its
    transposes. All take the same static arguments, among them `first` and `second`,
    the shapes of x and k.
    """

    def derivatives(operation, transposes):
        def jvp(args, tangents, results, **static):
            del results
            (a, b), (da, db) = args, tangents
            terms = []
            if da is not None:
                terms.append(operation(da, b, **static))
            if db is not None:
                terms.append(operation(a, db, **static))
            return sum(terms[1:], terms[0])

        def transpose(cotangents, args, **static):
            (g,), (a, b) = cotangents, args
            if isinstance(a, Linear):
                return transposes[0](g, b, **static), None
            return None, transposes[1](g, a, **static)

        operation.derivatives(jvp, transpose)

    def swapped(operation):
        return lambda a, b, **static: operation(b, a, **static)

    derivatives(of_both, (of_first, swapped(of_second)))
    derivatives(of_first, (of_both, of_second))
    derivatives(of_second, (swapped(of_first), swapped(of_both)))


def vary_alike(*args: Any) -> list[Any]:
    """`args`, cast to vary over the same axes (`jax.shard_map(check_vma=True)`)."""
    varying = [getattr(jax.typeof(a), "mat", None) for a in args]
    varying = [frozenset() if m is None else m.varying for m in varying]
    axes = frozenset().union(*varying)
    return [
        lax.pcast(a, tuple(sorted(axes - v)), to="varying") if axes - v else a
        for a, v in zip(args, varying, strict=True)
    ]


def wide(dtype: Any) -> Any:
    """The dtype of sums of such numbers: float64 for float64, float32 for all else.

    `jnp.promote_types` raises under `jax.numpy_dtype_promotion("strict")`.
    """
    return jax.numpy.dtype("float64" if dtype == jax.numpy.float64 else "float32")


def varying_as(like: Any, x: Any) -> Any:
    """`x`, cast to vary over the axes of a `shard_map` over which `like` varies."""
    return vary_alike(x, like)[0]


def on_explicit_mesh(*arrays: Any) -> bool:
    """Whether one of the arrays lies on a mesh that has an Explicit axis.

    >>> on_explicit_mesh(jax.numpy.zeros(2))
    False
    """
    meshes = (jax.typeof(a).sharding.mesh for a in arrays)
    return any(AxisType.Explicit in mesh.axis_types for mesh in meshes)


def on_each_device(apply: Rule, batched: Sequence[bool], args: Sequence[Any]) -> Any:
    """`apply(*args)`; if an Explicit mesh shards the batch, on each device by itself.

    The batch is axis 0 of the arguments that are `batched`, and of the results.
    """
    shardings = [
        jax.typeof(a).sharding for a, b in zip(args, batched, strict=True) if b
    ]
    names = {s.spec[0] for s in shardings} - {None}
    if not names:
        return apply(*args)
    (name,) = names
    sharded = jax.shard_map(
        apply,
        mesh=shardings[0].mesh,
        in_specs=tuple(jax.P(name) if b else jax.P() for b in batched),
        out_specs=jax.P(name),
        axis_names=frozenset(name if isinstance(name, tuple) else (name,)),
    )
    return sharded(*args)


def as_list(found: Any) -> list[Any]:
    """The results of an operation, one array or several, as a list."""
    return list(found) if isinstance(found, (list, tuple)) else [found]
