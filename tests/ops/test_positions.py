"""Positions of other sizes against timm, and an image's part of a larger map."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.ops import positions

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDENS / "positions.npz") as file:
        return dict(file)


def cases(goldens, name):
    table = goldens[f"{name}/table"]
    found = [k for k in goldens if k.startswith(f"{name}/") and not k.endswith("table")]
    assert len(found) >= 3
    return table, [(k.split("/")[1], goldens[k]) for k in found]


def test_absolute_ones_are_those_of_timm(goldens):
    table, found = cases(goldens, "absolute")
    table = table.reshape((5, 5, 4))
    for size, expected in found:
        size = tuple(map(int, size.split("_")))
        ours = positions.absolute(jnp.asarray(table), size)
        np.testing.assert_allclose(ours, expected, atol=2e-6)
    same = positions.absolute(jnp.asarray(table), (5, 5))
    np.testing.assert_array_equal(same, table)


def test_relative_ones_are_those_of_timm(goldens):
    table, found = cases(goldens, "relative")
    for n, expected in found:
        ours = positions.relative(jnp.asarray(table), int(n))
        np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.parametrize("inside", [(7, 11), (3, 2), (5, 5), (1, 9)])
def test_an_image_on_a_larger_map_has_the_positions_of_its_own_size(inside, rng):
    table = jnp.asarray(rng.normal(size=(5, 5, 4)), jnp.float32)
    place = jax.jit(positions.absolute, static_argnums=1)
    found = place(table, (8, 12), jnp.asarray(inside, jnp.int32))
    alone = positions.absolute(table, inside)
    h, w = inside
    np.testing.assert_allclose(found[:h, :w], alone, atol=2e-6)
    assert np.isfinite(found).all()
    rows = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)
    relative = jax.jit(positions.relative, static_argnums=1)
    for n in inside:
        found = relative(rows, 12, jnp.int32(n))
        alone = positions.relative(rows, n)
        np.testing.assert_allclose(found[:n, :n], alone, atol=2e-6)
        assert np.isfinite(found).all()
