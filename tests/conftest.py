"""Strict numerics for every test: two CPU devices, no silent rank promotion."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The default suite spends its time compiling, and these flags make that two to five
# times as fast; an XLA that lacks one of them names it and ends. `make test-slow` sets
# XLA_FLAGS to nothing, the compiler that users have, for all but a few files.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import numpy as np
import pytest

# Tracing makes millions of objects that stay: to look for garbage less often saves 7 %
# of the matrix of modes.
gc.set_threshold(200_000, 20, 100)
jax.config.update("jax_num_cpu_devices", 2)
# The same program is compiled by several tests, workers and scripts: once is enough.
# JAX_COMPILATION_CACHE_DIR=$(mktemp -d) measures without it.
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Run by hand, some beside torch: no tests, and no doctests either.
collect_ignore_glob = [
    "parity/peer_*.py",
    "parity/compare_*.py",
    "parity/kill_*.py",
    "goldens/make_*.py",
]

# Too long for the default suite; `make test-slow` runs them with its flags.
LONG = pathlib.Path(__file__).with_name("long.txt")


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items):
    """Mark what `long.txt` lists."""
    names = set(LONG.read_text().splitlines())
    for item in items:
        if item.nodeid.removeprefix("tests/") in names:
            item.add_marker(pytest.mark.long)


SHARED = pathlib.Path(__file__).parents[2] / "shared"


@pytest.fixture
def rng(request) -> np.random.Generator:
    """A generator seeded by the test's own name: the same draw in any order."""
    return np.random.default_rng(list(request.node.nodeid.encode()))


@pytest.fixture
def shared() -> pathlib.Path:
    """Real images and weights for development; never part of the product."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the development data of {SHARED}, which is not there")
    return SHARED
