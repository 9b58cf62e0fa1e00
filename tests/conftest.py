"""Strict numerics for every test: two CPU devices, no silent rank promotion."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 2)
# The same program is compiled by several tests, workers and scripts: once is enough.
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 2.0)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Run by hand, some beside torch: no tests, and no doctests either.
collect_ignore_glob = [
    "parity/peer_*.py",
    "parity/compare_*.py",
    "parity/kill_*.py",
    "goldens/make_*.py",
]

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
