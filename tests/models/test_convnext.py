import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.models import convnext

NARROW = dict(depths=(1, 1, 1, 1), width=8)
LATE = re.compile("stage[34]|norm(16|32)")  # not of strides 4 and 8
SHAPE = jax.ShapeDtypeStruct((2, 40, 52, 3), np.float32)


@pytest.fixture(scope="module")
def image():
    drawn = np.random.default_rng(0).normal(size=SHAPE.shape)
    return jnp.asarray(drawn, jnp.float32)


@pytest.fixture(scope="module")
def variables():
    """Initial values, with a scale of the branches that lets them matter."""
    drawn = jax.jit(convnext.Backbone(**NARROW).init)(
        jax.random.key(0), jnp.zeros(SHAPE.shape)
    )
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.5 * ("layer_scale" in jax.tree_util.keystr(path)), drawn
    )


@pytest.mark.parametrize(
    "depths, width, parameters",
    [
        ((3, 3, 9, 3), 96, 28_589_128),
        pytest.param((3, 3, 27, 3), 96, 50_223_688, marks=pytest.mark.slow),
        pytest.param((3, 3, 27, 3), 128, 88_591_464, marks=pytest.mark.slow),
    ],
)
def test_parameters_are_as_many_as_published(depths, width, parameters):
    """By torchvision's tables, with the classifier and its norm."""
    model = convnext.Backbone(depths=depths, width=width, out_norm=False)
    shapes = jax.eval_shape(model.init, jax.random.key(0), SHAPE)
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count + 2 * 8 * width + 8 * width * 1000 + 1000 == parameters


def test_every_output_has_its_stride_and_channels_and_nothing_is_built_beyond(image):
    model = convnext.Backbone(**NARROW, out_strides=(4, 16))
    out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert {s: x.shape for s, x in out.items()} == {
        4: (2, 10, 13, 8),
        16: (2, 3, 4, 32),
    }
    assert "stage3" in variables["params"] and "stage4" not in variables["params"]
    assert {"out_norm4", "out_norm16"} == {
        name for name in variables["params"] if name.startswith("out_norm")
    }


@pytest.mark.slow
def test_remat_changes_neither_values_nor_gradients(image, variables):
    def loss(variables, remat):
        model = convnext.Backbone(**NARROW, out_strides=(4, 8), remat=remat)
        maps = model.apply(variables, image)
        return sum(
            (x.sum((0, 1, 2)) * (1 + jnp.arange(x.shape[-1]))).sum()
            for x in maps.values()
        )

    plain, again = (
        jax.jit(jax.grad(lambda v, r=r: loss(v, r)))(variables) for r in (False, True)
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        scale = np.abs(a).max()
        np.testing.assert_allclose(b, a, atol=1e-4 * scale + 1e-6)
    used = {k: v for k, v in plain["params"].items() if not LATE.search(k)}
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(used))


def test_outputs_are_normalised_cell_by_cell_and_images_do_not_mix(image, variables):
    apply = jax.jit(convnext.Backbone(**NARROW).apply)
    low = jax.jit(convnext.Backbone(**NARROW, dtype=jnp.bfloat16).apply)
    maps, rough = apply(variables, image), low(variables, image)
    other = apply(variables, jnp.stack([image[0], image[1, ::-1]]))
    for s, x in maps.items():
        np.testing.assert_allclose(x.mean(-1), 0, atol=1e-4)
        np.testing.assert_allclose(x.std(-1), 1, atol=1e-2)
        np.testing.assert_allclose(other[s][0], x[0], atol=1e-5)
        assert np.abs(other[s][1] - x[1]).max() > 1e-3
        assert rough[s].dtype == jnp.bfloat16  # from the same float32 parameters
        assert np.sqrt(((np.float32(rough[s]) - x) ** 2).mean()) < 0.05


@pytest.mark.parametrize(
    "wrong", [dict(depths=(3, 3, 9)), dict(depths=(3, 3, 0, 3)), dict(width=0)]
)
def test_a_value_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=f"model.backbone.{next(iter(wrong))}="):
        convnext.Backbone(**wrong)


def test_unknown_outputs_are_refused():
    with pytest.raises(ValueError, match=r"out_strides=\(64,\).*4, 8, 16, 32"):
        convnext.Backbone(out_strides=(64,))
