"""Helpers that make a function run under `vmap`, `shard_map` and on any mesh."""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree, Shaped

from frcnn_jax.ops.primitive import on_explicit_mesh
from frcnn_jax.types import Array

T = TypeVar("T")


def carry(start: T, inputs: PyTree) -> T:
    """`start` with the same values, as the initial carry of a loop over `inputs`.

    The carry of a loop must not change its type. What a loop computes from its inputs
    is batched (`vmap`), varies over axes (`shard_map`) and is sharded (an Explicit
    mesh) as the inputs are. A constant is none of these, so it cannot be the initial
    carry. The result here depends on every leaf of `inputs` through a condition that
    is never true; the compiler removes it.

    >>> carry(jnp.zeros(2), inputs=jnp.ones(3)).tolist()
    [0.0, 0.0]
    """
    never = [(x != x).any() & False for x in map(jnp.asarray, jax.tree.leaves(inputs))]
    if not never:
        return start
    tie = functools.reduce(jnp.logical_or, never)
    # The condition is added to a zero as well: `where` takes the mesh of its values.
    return jax.tree.map(
        lambda x: jnp.where(tie, jnp.zeros_like(x) + tie.astype(x.dtype), x), start
    )


def take(x: Shaped[Array, "n *d"], index: Int[Array, "*r"]) -> Shaped[Array, "..."]:
    """`x[index]`, also where `x` is replicated and `index` sharded (Explicit mesh).

    JAX then needs the sharding of the result: first that of the index, then that of
    the rows of `x`. If `x` has no rows (n = 0) the result is zeros.

    >>> take(jnp.array([5.0, 7.0]), jnp.array([1, 1, 0])).tolist()
    [7.0, 7.0, 5.0]
    """
    if len(x) == 0:
        return jnp.zeros((*index.shape, *x.shape[1:]), x.dtype)
    if not on_explicit_mesh(x, index):
        return x[index]
    if index.ndim == 0:  # a scalar index is a slice, which takes no sharding
        return take(x, index[None])[0]
    ours, theirs = jax.typeof(x).sharding, jax.typeof(index).sharding
    mesh = ours.mesh if theirs.mesh.empty else theirs.mesh
    spec = PartitionSpec(*theirs.spec, *ours.spec[1:])
    return x.at[index].get(out_sharding=NamedSharding(mesh, spec))


def take_rows(x: Shaped[Array, "n d"], index: Int[Array, " r"]) -> Shaped[Array, "r d"]:
    """`take` for short rows, such as boxes; on a TPU column by column.

    A TPU pads each row to 128 numbers before it gathers: of 268,569 boxes it would make
    137 MB for a few thousand that are wanted.

    >>> take_rows(jnp.array([[1, 2], [3, 4]]), jnp.array([1, 1])).tolist()
    [[3, 4], [3, 4]]
    """
    if on_explicit_mesh(x, index):  # there a choice between platforms is not lowered
        return take(x, index)
    return lax.platform_dependent(x, index, tpu=_take_columns, default=take)


def _take_columns(x, index):
    return jnp.stack([take(x[:, i], index) for i in range(x.shape[1])], axis=-1)


def reshape(x: Shaped[Array, "*d"], shape: tuple[Any, ...]) -> Shaped[Array, "..."]:
    """`x.reshape(shape)`, also where the first axis is sharded (Explicit mesh).

    There JAX reshapes only one axis into several, or several into one. Here the axes
    follow one after the other, so that `vmap` over a sharded axis works, too.

    >>> reshape(jnp.zeros((2, 4, 6)), (2, 2, 2, 3, -1)).shape
    (2, 2, 2, 3, 2)
    """
    if not on_explicit_mesh(x) or 0 in x.shape:
        return x.reshape(shape)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    shape = jax.eval_shape(lambda x: x.reshape(shape), like).shape  # without -1
    for axis, size in enumerate(shape):
        if axis == x.ndim:
            x = x[..., None]
        while x.shape[axis] % size:  # merged with the next one
            merged = x.shape[axis] * x.shape[axis + 1]
            x = x.reshape((*x.shape[:axis], merged, *x.shape[axis + 2 :]))
        if x.shape[axis] != size:
            rest = x.shape[axis] // size
            x = x.reshape((*x.shape[:axis], size, rest, *x.shape[axis + 1 :]))
    return x.reshape(shape)


def one_image(function: str, **arrays: tuple[Any, str]) -> None:
    """ValueError for an array with more or fewer axes than one image has.

    `arrays` are pairs of an array (or None) and its axes: `boxes=(boxes, "n 4")`.

    >>> one_image("match", boxes=(jnp.zeros((3, 4)), "n 4"), gt_valid=(None, "g"))
    """
    for name, (x, axes) in arrays.items():
        expected = len(axes.split())
        shape = getattr(x, "shape", None)  # None and a pair of numbers have none
        if shape is not None and len(shape) != expected:
            raise ValueError(
                f"{function}: {name} has shape {shape}, expected {expected} "
                f"axes, ({axes.replace(' ', ', ')}): {function} takes one image, use "
                "jax.vmap for a batch"
            )
