"""Several devices and hosts: the only module that handles them.

What enters a step whole (None) is global: one copy on every device of every process.
What is split (0) is local: each process brings and gets back its own rows.
"""

import contextlib
import itertools
import json
import logging
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from orbax.checkpoint import multihost

log = logging.getLogger(__name__)

# After so many seconds without a sign of life a process counts as dead.
HEARTBEAT = 30


def parallel(
    step: Callable[..., Any],
    *,
    in_axes: tuple[int | None, ...],
    out_axes: Any = 0,
    how: str = "pmap",
    donate_argnums: int | tuple[int, ...] = (),
) -> Callable:
    """`step` on every device of every process, over axis "batch".

    An argument or result of axis 0 is split, `[devices, b / devices, ...]` of this
    process (see `shard`, `gather`), one of None is whole. The whole ones must have been
    made global once, see `replicated`, else the first two steps compile twice. `how` is
    "pmap" or "shard_map"; both give the same.
    """
    if how not in ("pmap", "shard_map"):
        raise ValueError(f"parallel={how!r}: expected 'pmap' or 'shard_map'")
    make = _pmapped if how == "pmap" else _shard_mapped
    return make(step, in_axes, out_axes, donate_argnums)


def _pmapped(
    step: Callable[..., Any], in_axes: tuple, out_axes: Any, donate_argnums: Any
) -> Callable:
    run = jax.pmap(
        step,
        axis_name="batch",
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=donate_argnums,
    )
    if jax.process_count() == 1:
        return run
    run = _compiled_by_all(run)

    def on_this_host(*args):
        local = [
            arg if axis == 0 else _local(arg, PartitionSpec())
            for arg, axis in zip(args, in_axes, strict=True)
        ]
        return _each(
            lambda axis, out: out if axis == 0 else _global(out, PartitionSpec()),
            out_axes,
            run(*local),
        )

    return on_this_host


def _shard_mapped(
    step: Callable[..., Any], in_axes: tuple, out_axes: Any, donate_argnums: Any
) -> Callable:
    # The same program by hand: a device sees its rows behind an axis of length one.
    # JAX checks that what comes out whole is the same on all devices.
    def on_one_device(*args):
        rows = [
            arg if axis is None else jax.tree.map(lambda x: x[0], arg)
            for arg, axis in zip(args, in_axes, strict=True)
        ]
        return _each(
            lambda axis, out: (
                out if axis is None else jax.tree.map(lambda x: x[None], out)
            ),
            out_axes,
            step(*rows),
        )

    run = jax.jit(
        jax.shard_map(
            on_one_device,
            mesh=_mesh(),
            in_specs=tuple(map(_spec, in_axes)),
            out_specs=_each(lambda axis, _: _spec(axis), out_axes, out_axes),
        ),
        donate_argnums=donate_argnums,
    )
    rows = PartitionSpec("batch")
    if jax.process_count() > 1:
        run = _compiled_by_all(run)

    def on_all_hosts(*args):
        put = [
            arg if axis is None else _global(arg, rows)
            for arg, axis in zip(args, in_axes, strict=True)
        ]
        return _each(
            lambda axis, out: out if axis is None else _local(out, rows),
            out_axes,
            run(*put),
        )

    return on_all_hosts


def replicated(tree: PyTree) -> PyTree:
    """One whole copy of `tree`, the same in all processes, on each device.

    Waits for all processes, because later collective calls have short timeouts.
    """
    _wait_for_all("replicate")
    local = Mesh(np.array(jax.local_devices()), ("batch",))
    tree = jax.device_put(tree, NamedSharding(local, PartitionSpec()))
    return _global(tree, PartitionSpec())


def shard(batch: PyTree) -> PyTree:
    """`[b, ...]` -> `[devices, b / devices, ...]`, both of this process."""
    n = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)


def gather(stacked: PyTree) -> PyTree:
    """`[devices, b / devices, ...]` -> `[b, ...]`, on the host."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(stacked))


def from_all(value: Any) -> list[Any]:
    """`value` (what JSON can hold) of every process, in their order, on every one."""
    if jax.process_count() == 1:
        return [value]
    _wait_for_all("gather")
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(text)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
    ]


def keep_compiled() -> None:
    """Keeps compiled programs on disk for the next start.

    In `JAX_COMPILATION_CACHE_DIR` where that is set (empty: nothing is kept), else in
    `~/.cache/frcnn_jax/HOST`: a CPU's programs may not run on another host's.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(caches) / "frcnn_jax" / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(folder))


def is_first() -> bool:
    """Whether this process is the one that writes shared files."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def check_batch_size(name: str, size: int) -> None:
    """ValueError unless `size` rows split over all devices, naming the nearest good."""
    n = jax.device_count()
    if size % n:
        below = size // n * n
        near = f"{below} or {below + n}" if below else f"{n}"
        hosts = f" of {jax.process_count()} processes" * (jax.process_count() > 1)
        raise ValueError(
            f"{name}={size} does not split over {n} devices{hosts}: use {near}"
        )


@contextlib.contextmanager
def connected(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Joins this process with the others of a run, from before the first array on.

    Without arguments they are detected (SLURM, Open MPI, Cloud TPU, Kubernetes). An
    error in one process ends it at once, without waiting for the others, which then
    end within `HEARTBEAT` seconds or so.
    """
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=2 * HEARTBEAT,
    )
    try:
        yield
    except (Exception, KeyboardInterrupt):
        log.exception(
            "process %d of %d ends. If the error is one of a connection or a "
            "collective, another process has died: see its own output. Start all of "
            "them again with the same commands to go on from the last checkpoint",
            jax.process_index(),
            jax.process_count(),
        )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # any other way out waits for those that are gone
    jax.distributed.shutdown()


def _compiled_by_all(run: Any) -> Callable:
    """`run`, begun only when every process has compiled it: some take much longer.

    Otherwise the processes that are ready assume after 30 seconds (on CPUs) that the
    others are dead.
    """
    known = set()

    def call(*args):
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(args))
        if shapes not in known:
            run.lower(*args).compile()
            known.add(shapes)
            _wait_for_all("compile")
        return run(*args)

    return call


_counter = itertools.count()


def _wait_for_all(name: str) -> None:
    """Until all processes are here; ends with an error after an hour."""
    if jax.process_count() == 1:
        return
    multihost.sync_global_processes(
        f"frcnn_jax/{name}/{next(_counter)}",
        timeout=3600,
        processes=set(range(jax.process_count())),
    )


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), ("batch",))


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec("batch")


def _each(f: Callable, axes: Any, tree: PyTree) -> PyTree:
    """`f(axis, part)` for the parts of a result that `out_axes` speaks of."""
    if isinstance(axes, tuple):
        return tuple(map(f, axes, tree))
    return f(axes, tree)


def _global(tree: PyTree, spec: PartitionSpec) -> PyTree:
    """Local arrays as this process's part of global ones."""
    return multihost_utils.host_local_array_to_global_array(tree, _mesh(), spec)


def _local(tree: PyTree, spec: PartitionSpec) -> PyTree:
    """This process's part of global arrays."""
    return multihost_utils.global_array_to_host_local_array(tree, _mesh(), spec)
