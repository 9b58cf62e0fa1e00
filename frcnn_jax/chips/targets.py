"""Chips that programs are compiled for and that need not be here.

A chip's compiler comes in a package (`make chips`): libtpu, or JAX's CUDA plugin. Peaks
are those that the makers publish, for dense products and one chip.
"""

import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

_NVIDIA = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  {numbers}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
# As the devices report themselves: openxla/xla, xla/backends/gpu/target_config/specs.
_H100 = """
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  device_memory_size: 84942979072
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
"""
_A100 = """
  core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41
  memory_bandwidth: 2039040000000 l2_cache_size: 41943040
  device_memory_size: 85100068864
  shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912
  cuda_compute_capability { major: 8 }
"""
_NAMES = dict(h100="NVIDIA H100 80GB HBM3", a100="NVIDIA A100-SXM4-80GB")
_NUMBERS = dict(h100=_H100, a100=_A100)
_SQUARES = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16"}
_SQUARES[256] = "16x16"
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}
_CUBES[256] = "4x8x8"


class Chip(NamedTuple):
    """A chip's published peaks: operations and bytes a second, bytes of memory.

    `float32` is what a float32 product takes by default: TF32 on a GPU, one pass in
    bfloat16 on a TPU. `clock` is in cycles a second, None where it is not published.
    """

    platform: str
    bfloat16: float
    float32: float
    bandwidth: float
    memory: float
    source: str
    clock: float | None = None


CHIPS = {
    "h100": Chip(
        "cuda", 989.4e12, 494.7e12, 3.35e12, 80e9, "NVIDIA H100 data sheet, SXM5"
    ),
    "a100": Chip(
        "cuda", 312e12, 156e12, 2.039e12, 80e9, "NVIDIA A100 data sheet, SXM4 80 GB"
    ),
    # 4 units of 128 x 128: 197e12 / (2 * 4 * 128^2) = 1.5e9 cycles a second.
    "v5e": Chip(
        *("tpu", 197e12, 197e12, 819e9, 16e9),
        *("Cloud TPU documentation, TPU v5e", 1.5e9),
    ),
    "v5p": Chip(
        "tpu", 459e12, 459e12, 2765e9, 95e9, "Cloud TPU documentation, TPU v5p"
    ),
    "v6e": Chip(
        "tpu", 918e12, 918e12, 1640e9, 32e9, "Cloud TPU documentation, TPU v6e"
    ),
}


def devices(chip: str, count: int = 1) -> list[Any]:
    """`count` devices of a chip to compile for; nothing runs on them.

    Raises ValueError for a chip or a count that there is not, and ModuleNotFoundError
    where the package with its compiler is missing.
    """
    if chip not in CHIPS:
        raise ValueError(f"chip={chip!r}: expected one of {sorted(CHIPS)}")
    make = _gpus if CHIPS[chip].platform == "cuda" else _tpus
    return make(chip, count)


def _gpus(chip, count):
    hosts, here = (1, count) if count <= 8 else (count // 8, 8)
    if count < 1 or count != hosts * here:
        raise ValueError(
            f"devices={count} for {chip}: expected 1 to 8, or a multiple of 8"
        )
    config = _NVIDIA.format(numbers=_NUMBERS[chip], name=_NAMES[chip])
    jax.devices()  # plugins are found with the first backend
    try:
        found = topologies.get_topology_desc(
            chip, "cuda", target_config=config, topology=f"1x{hosts}x{here}"
        )
    except NotImplementedError:
        raise _missing(chip, "jax-cuda12-plugin and jax-cuda12-pjrt") from None
    return found.devices


def _tpus(chip, count):
    shapes = _CUBES if chip == "v5p" else _SQUARES
    size = max(count, 4)  # one chip is one of four
    if count < 1 or size not in shapes:
        raise ValueError(
            f"devices={count} for {chip}: expected 1, 2, 3 or one of {sorted(shapes)}"
        )
    # Asked of a virtual machine with a TPU otherwise, for minutes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        found = topologies.get_topology_desc(f"{chip}:{shapes[size]}", "tpu")
    except RuntimeError as error:
        if "TPU support not installed" not in str(error):
            raise
        raise _missing(chip, "libtpu") from None
    return found.devices[:count]


def _missing(chip, packages):
    return ModuleNotFoundError(
        f"the compiler for {chip} is not installed (packages {packages}): run "
        "`make chips`, then use .venv-chips/bin/python"
    )
