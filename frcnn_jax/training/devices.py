"""Many devices, one program: the only place that knows of them."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def parallel(step: Callable, *, in_axes: Any, out_axes: Any = 0, **kwargs) -> Callable:
    """`step` on every local device, over axis "batch": 0 splits, None enters whole.

    The state enters and leaves whole (None), not stacked by device. It must have been
    put on all devices once, see `replicated`, else the first two steps compile twice.
    """
    return jax.pmap(
        step, axis_name="batch", in_axes=in_axes, out_axes=out_axes, **kwargs
    )


def replicated(tree: PyTree) -> PyTree:
    """One whole copy of `tree` on each local device."""
    mesh = Mesh(jax.local_devices(), ("batch",))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(batch: PyTree) -> PyTree:
    """`[b, ...]` -> `[devices, b / devices, ...]`."""
    n = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)


def gather(stacked: PyTree) -> PyTree:
    """`[devices, b / devices, ...]` -> `[b, ...]`, on the host."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(stacked))
