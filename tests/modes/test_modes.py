"""One matrix: every public function in every mode in which JAX runs a function.

One deep thing: a function for each mode, and what compares it with plain `jax.jit`.

Every mode is compared with plain `jax.jit`, value and gradient at once. A new function
joins by a line in `cases.py`, a new mode by a function here.
"""

import functools
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from frcnn_jax import cascade, detections, losses, ops, proposals, roi_losses, targets
from tests.modes.cases import CASES, FORMULATIONS, RULES

# -- Value and gradient ----------------------------------------------------------------


def is_float(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def total(out):
    """A scalar to be differentiated: all numbers, each with a weight of its own."""
    terms = [
        (x * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)).sum()
        for x in jax.tree.leaves(out)
        if is_float(x)
    ]
    terms = [x.astype(jnp.float32) for x in terms]
    return sum(terms[1:], terms[0]) if terms else jnp.zeros(())


def split(arrays):
    """The floats, and a function that puts floats back."""
    leaves, tree = jax.tree.flatten(arrays)
    chosen = [is_float(x) for x in leaves]

    def join(floats):
        floats = iter(floats)
        return tree.unflatten(
            next(floats) if c else x for x, c in zip(leaves, chosen, strict=True)
        )

    return [x for x, c in zip(leaves, chosen, strict=True) if c], join


def derived(f):
    """`f(arrays)`, and its gradient by every float that goes in."""

    def run(arrays):
        floats, join = split(arrays)

        def scalar(floats):
            out = f(join(floats))
            return total(out), out

        if not floats:
            return f(arrays), []
        grads, out = jax.grad(scalar, has_aux=True)(floats)
        return out, grads

    return run


# -- Comparing -------------------------------------------------------------------------


def assert_same(found, expected, tolerance, *, same_floats=True):
    """Integers, masks and dtypes equal, floats within `tolerance` of their scale."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        if same_floats or not is_float(b):
            assert a.dtype == b.dtype, f"{a.dtype}, in plain jit {b.dtype}"
        if is_float(b):
            scale = np.abs(b).max(initial=1.0)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)
        elif jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            assert (a == b).all()
        else:
            np.testing.assert_array_equal(a, b)


def stacked(draws):
    return jax.tree.map(lambda *x: jnp.stack(x), *draws)


def on_device(arrays):
    return jax.tree.map(jnp.asarray, arrays)


IMAGES = 4  # a number that two devices can share


@functools.cache
def compiled(case):
    return jax.jit(derived(case))


@functools.cache
def plain(case):
    """The answers that every other mode is measured by: one image after the other."""
    return [compiled(case)(on_device(case.draw(seed))) for seed in range(IMAGES)]


def batch(case):
    return stacked([case.draw(seed) for seed in range(IMAGES)])


def shared_but_one(case):
    """For every argument: a batch in which only it differs, as in_axes and arrays."""
    first = on_device(case.draw(0))
    leaves, tree = jax.tree.flatten(first)
    many = jax.tree.leaves(batch(case))
    for i in range(len(leaves)):
        axes = [0 if j == i else None for j in range(len(leaves))]
        arrays = [many[j] if j == i else leaves[j] for j in range(len(leaves))]
        yield tree.unflatten(axes), tree.unflatten(arrays)


# -- The modes -------------------------------------------------------------------------


def eager(case):
    assert_same(derived(case)(on_device(case.draw())), plain(case)[0], case.tolerance)


def numpy(case):
    found = jax.tree.map(jnp.asarray, case(case.draw()))
    assert_same(found, plain(case)[0][0], case.tolerance)


def vmap_twice(case):
    twice = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch(case))
    found = jax.jit(jax.vmap(jax.vmap(derived(case))))(twice)
    found = jax.tree.map(lambda x: x.reshape(4, *x.shape[2:]), found)
    assert_same(found, stacked(plain(case)), case.tolerance)


def vmap_of_one_argument(case):
    for axes, arrays in shared_but_one(case):
        found = jax.jit(jax.vmap(derived(case), (axes,)))(arrays)
        one_by_one = [
            jax.tree.map(
                lambda x, a, i=i: x if a is None else x[i],
                arrays,
                axes,
                is_leaf=lambda x: x is None,
            )
            for i in range(IMAGES)
        ]
        assert_same(found, stacked(map(compiled(case), one_by_one)), case.tolerance)


def scan(case):
    run = derived(case)
    found = jax.jit(lambda x: jax.lax.scan(lambda c, x: (c, run(x)), 0, x)[1])
    assert_same(found(batch(case)), stacked(plain(case)), case.tolerance)


def remat(case):
    run = jax.jit(derived(jax.checkpoint(case)))
    assert_same(run(on_device(case.draw())), plain(case)[0], case.tolerance)


def tangents(floats):
    return [jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in floats]


def forward_mode(case):
    """The slope along a direction, by `jax.jvp` and from the gradient."""
    floats, join = split(on_device(case.draw()))
    v = tangents(floats)

    @jax.jit
    def slope(floats):
        return jax.jvp(lambda x: total(case(join(x))), (floats,), (v,))[1]

    expected = sum(
        (jnp.vdot(a, b) for a, b in zip(plain(case)[0][1], v, strict=True)),
        jnp.zeros(()),
    )
    assert_same(slope(floats), expected, 10 * case.tolerance)


def second_derivative(case):
    """The gradient's change along a direction, in forward mode and as a gradient."""
    floats, join = split(on_device(case.draw()))
    v = tangents(floats)
    gradient = jax.grad(lambda x: total(case(join(x))))

    @jax.jit
    def both(floats):
        forward = jax.jvp(gradient, (floats,), (v,))[1]

        def along(x):
            return sum(map(jnp.vdot, gradient(x), v), jnp.zeros(()))

        return forward, jax.grad(along)(floats)

    forward, reverse = both(floats)
    for x in jax.tree.leaves(forward):
        assert np.isfinite(x).all()
    assert_same(forward, reverse, 10 * case.tolerance)


def x64_with_float32(case):
    with jax.enable_x64():
        found = jax.jit(derived(case))(on_device(case.draw()))
    assert_same(found, plain(case)[0], case.tolerance)


def x64_with_float64(case):

    def widened(x):
        if isinstance(x, np.ndarray):
            x = x.astype({"f": np.float64, "i": np.int64}.get(x.dtype.kind, x.dtype))
        return jnp.asarray(x)

    with jax.enable_x64():
        arrays = jax.tree.map(widened, case.draw())
        found = jax.jit(derived(case))(arrays)
    assert_same(found, plain(case)[0], case.tolerance, same_floats=False)


def mesh(axis_type):
    return jax.make_mesh((2,), ("b",), axis_types=(axis_type,))


def shard_map(case):
    """Default, `check_vma=True`: a device has two images."""
    for run in (
        jax.vmap(derived(case)),
        lambda x: jax.lax.map(derived(case), x),
    ):
        sharded = jax.shard_map(
            run, mesh=mesh(AxisType.Auto), in_specs=P("b"), out_specs=P("b")
        )
        found = jax.jit(sharded)(batch(case))
        assert_same(found, stacked(plain(case)), case.tolerance)


def shard_map_of_one_argument(case):
    """One argument differs from device to device, the others do not: traced only."""
    for axes, arrays in shared_but_one(case):
        specs = jax.tree.map(
            lambda a: P() if a is None else P("b"), axes, is_leaf=lambda a: a is None
        )

        def one(arrays, axes=axes):
            arrays = jax.tree.map(
                lambda x, a: x if a is None else x[0],
                arrays,
                axes,
                is_leaf=lambda x: x is None,
            )
            return jax.tree.map(lambda x: x[None], case(arrays))

        sharded = jax.shard_map(
            one, mesh=mesh(AxisType.Auto), in_specs=(specs,), out_specs=P("b")
        )
        jax.eval_shape(sharded, arrays)


def explicit_mesh(case):
    """The batch axis sharded, the rest as it comes."""
    m = mesh(AxisType.Explicit)
    with jax.set_mesh(m):
        arrays = jax.device_put(batch(case), NamedSharding(m, P("b")))
        found = jax.jit(jax.vmap(derived(case)))(arrays)
    assert_same(jax.device_get(found), stacked(plain(case)), case.tolerance)


def explicit_mesh_of_one_argument(case):
    m = mesh(AxisType.Explicit)
    for axes, arrays in shared_but_one(case):
        arrays = jax.tree.map(
            lambda x, a: jax.device_put(
                x, NamedSharding(m, P() if a is None else P("b"))
            ),
            arrays,
            axes,
            is_leaf=lambda x: x is None,
        )
        jax.eval_shape(jax.jit(jax.vmap(derived(case), (axes,))), arrays)


def empty_axis(case):
    for letter in sorted(case.axes):
        sizes = {letter: 0}
        arrays = on_device(case.draw(**sizes))
        alone = derived(case)(arrays)
        found = alone, jax.jit(derived(case))(arrays)
        assert_same(*found, case.tolerance)
        for x in jax.tree.leaves(found):
            assert not is_float(x) or np.isfinite(x).all()
        many = stacked([case.draw(seed, **sizes) for seed in range(2)])
        found = jax.jit(jax.vmap(derived(case)))(many)
        assert_same(jax.tree.map(lambda x: x[0], found), alone, case.tolerance)
    none = jax.tree.map(lambda x: x[:0], batch(case))
    jax.jit(jax.vmap(derived(case)))(none)


def strict_promotion(case):
    with jax.numpy_dtype_promotion("strict"):
        found = jax.jit(derived(case))(on_device(case.draw()))
    assert_same(found, plain(case)[0], case.tolerance)


def strict_promotion_of_other_floats(case):
    """bfloat16 and, with x64 on, float64 in place of float32: traced only."""
    for dtype in (jnp.bfloat16, jnp.float64):
        arrays = jax.tree.map(
            lambda x, dtype=dtype: x.astype(dtype) if is_float(x) else x, case.draw()
        )
        with jax.enable_x64(dtype == jnp.float64), jax.numpy_dtype_promotion("strict"):
            jax.eval_shape(derived(case) if dtype == jnp.bfloat16 else case, arrays)


def debug_nans(case):
    with jax.debug_nans(True):
        found = jax.jit(derived(case))(on_device(case.draw()))
        jax.block_until_ready(derived(case)(on_device(case.draw())))
    assert_same(found, plain(case)[0], case.tolerance)


def leaked_tracers(case):
    with jax.checking_leaks():
        found = jax.jit(jax.vmap(derived(case)))(batch(case))
    assert_same(found, stacked(plain(case)), case.tolerance)


# What `tests/conftest.py` turns down, as it is without: the compiler that users have.
OPTIMISED = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": 32,
}


def optimised(case):
    """With all of XLA's optimisations: `make test-slow` runs the rest with few."""
    found = jax.jit(jax.vmap(derived(case)), compiler_options=OPTIMISED)(batch(case))
    assert_same(found, stacked(plain(case)), 10 * case.tolerance)


def export(case):
    """Lowered for all platforms in one file, and what was read back runs here."""
    platforms = ("cpu", "cuda", "tpu")
    arrays = on_device(case.draw())
    exported = jax.export.export(jax.jit(case), platforms=platforms)(arrays)
    found = jax.jit(exported.call)(arrays)
    assert_same(found, plain(case)[0][0], case.tolerance)


MODES = [
    eager,
    numpy,
    vmap_twice,
    vmap_of_one_argument,
    scan,
    remat,
    forward_mode,
    second_derivative,
    x64_with_float32,
    x64_with_float64,
    shard_map,
    shard_map_of_one_argument,
    explicit_mesh,
    explicit_mesh_of_one_argument,
    empty_axis,
    strict_promotion,
    strict_promotion_of_other_floats,
    debug_nans,
    leaked_tracers,
    optimised,
    export,
]


# -- The matrix ------------------------------------------------------------------------


def name_of(function) -> str:
    function = inspect.unwrap(function)
    return f"{function.__module__.rsplit('.', 1)[-1]}.{function.__name__}"


# What the default suite runs: one row, and a column that only traces.
REPRESENTATIVE = "matching.cover"
TRACED = shard_map_of_one_argument


def matrix():
    for case in CASES:
        name = name_of(case.function)
        for mode in MODES:
            quick = name == REPRESENTATIVE or mode == TRACED
            marks = [] if quick else [pytest.mark.slow]
            yield pytest.param(mode, case, marks=marks, id=f"{name}-{mode.__name__}")


@pytest.mark.parametrize("mode, case", list(matrix()))
def test_function_runs_in(mode, case):
    message = case.errors.get(mode.__name__)
    if message is None:
        mode(case)
        return
    with pytest.raises(Exception, match=message):  # JAX's own are of many kinds
        mode(case)


PURE = (targets, cascade, losses, roi_losses, proposals, detections)


def public_functions():
    modules = [
        importlib.import_module(f"frcnn_jax.ops.{module.name}")
        for module in pkgutil.iter_modules(ops.__path__)
        if module.name != RULES
    ]
    for module in (*modules, *PURE):
        for name, f in vars(module).items():
            ours = getattr(f, "__module__", None) == module.__name__
            function = callable(f) and not inspect.isclass(f)
            if ours and function and not name.startswith("_"):
                yield name_of(f)


def test_every_public_function_has_joined():
    missing = set(public_functions()) - {name_of(case.function) for case in CASES}
    assert missing == FORMULATIONS, (
        "a public function needs a line in tests/modes/cases.py"
    )
