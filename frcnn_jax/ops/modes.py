"""What a function needs to run everywhere JAX does: `vmap`, `shard_map`, any mesh."""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree, Shaped

from frcnn_jax.types import Array

T = TypeVar("T")


def carry(start: T, inputs: PyTree) -> T:
    """`start`, unchanged, as what a loop over `inputs` hands on from turn to turn.

    A loop's carry keeps its type. What a loop makes of its inputs is mapped (`vmap`),
    varies (`shard_map`) and is sharded (an Explicit mesh) as they are, and so must be
    what it starts from: constants are not. The result depends on every leaf of
    `inputs` by way of a condition that is never true and that a compiler removes.

    >>> carry(jnp.zeros(2), inputs=jnp.ones(3)).tolist()
    [0.0, 0.0]
    """
    never = [(x != x).any() & False for x in map(jnp.asarray, jax.tree.leaves(inputs))]
    if not never:
        return start
    tie = functools.reduce(jnp.logical_or, never)
    # Added to a zero, not only selected by: a selection takes the mesh of its values.
    return jax.tree.map(
        lambda x: jnp.where(tie, jnp.zeros_like(x) + tie.astype(x.dtype), x), start
    )


def take(x: Shaped[Array, "n *d"], index: Int[Array, "*r"]) -> Shaped[Array, "..."]:
    """`x[index]`, also where `x` is shared and `index` sharded over an Explicit mesh.

    There JAX asks how the result is sharded: as the index, and as the rows of `x`.
    Without rows (n = 0) the result is zeros.

    >>> take(jnp.array([5.0, 7.0]), jnp.array([1, 1, 0])).tolist()
    [7.0, 7.0, 5.0]
    """
    if len(x) == 0:
        return jnp.zeros((*index.shape, *x.shape[1:]), x.dtype)
    ours, theirs = jax.typeof(x).sharding, jax.typeof(index).sharding
    mesh = ours.mesh if theirs.mesh.empty else theirs.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return x[index]
    if index.ndim == 0:  # else a slice, which does not ask
        return take(x, index[None])[0]
    spec = PartitionSpec(*theirs.spec, *ours.spec[1:])
    return x.at[index].get(out_sharding=NamedSharding(mesh, spec))


def one_image(function: str, **arrays: tuple[Any, str]) -> None:
    """ValueError for an array with more or fewer axes than one image has.

    `arrays` are pairs of an array (or None) and its axes: `boxes=(boxes, "n 4")`.

    >>> one_image("match", boxes=(jnp.zeros((3, 4)), "n 4"), gt_valid=(None, "g"))
    """
    for name, (x, axes) in arrays.items():
        expected = len(axes.split())
        shape = getattr(x, "shape", None)  # none of None, or of a pair of numbers
        if shape is not None and len(shape) != expected:
            raise ValueError(
                f"{function}: {name} has shape {shape}, expected {expected} "
                f"axes, ({axes.replace(' ', ', ')}): {function} takes one image, use "
                "jax.vmap for a batch"
            )
