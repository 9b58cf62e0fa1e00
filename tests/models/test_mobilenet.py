import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.models import layers, mobilenet
from frcnn_jax.ops import convolution


def slow_depthwise(x, kernel, stride):
    k = len(kernel)
    n, h, w, c = x.shape
    padded = np.zeros((n, h + k - 1, w + k - 1, c))
    padded[:, k // 2 : k // 2 + h, k // 2 : k // 2 + w] = x
    out = np.zeros((n, -(-h // stride), -(-w // stride), c))
    for y in range(out.shape[1]):
        for z in range(out.shape[2]):
            window = padded[:, y * stride : y * stride + k, z * stride : z * stride + k]
            out[:, y, z] = (window * kernel[:, :, 0]).sum((1, 2))
    return out


@pytest.mark.parametrize("formulation", ["_on_cpu", "_direct", None])
@pytest.mark.parametrize(
    "k, stride, size", [(3, 1, (5, 6)), (5, 2, (7, 8)), (5, 2, (1, 2)), (7, 1, (9, 5))]
)
def test_depthwise_in_both_formulations(rng, formulation, k, stride, size):
    x = rng.normal(size=(2, *size, 4)).astype(np.float32)
    kernel = rng.normal(size=(k, k, 1, 4)).astype(np.float32)
    if formulation is None:  # that of this platform
        out = layers.depthwise_conv(jnp.asarray(x), jnp.asarray(kernel), stride=stride)
    else:
        compute = getattr(convolution, formulation)
        out = compute(jnp.asarray(x), jnp.asarray(kernel), "depthwise", stride)
    np.testing.assert_allclose(out, slow_depthwise(x, kernel, stride), atol=1e-5)


@pytest.mark.parametrize(
    "k, stride, size", [(7, 1, (9, 5)), (7, 2, (8, 7)), (7, 2, (1, 3))]
)
def test_gradients_of_a_large_depthwise_are_those_of_the_plain_convolution(
    rng, k, stride, size
):
    x = jnp.asarray(rng.normal(size=(2, *size, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(k, k, 1, 4)), jnp.float32)

    def loss(convolve):
        def of(x, kernel):
            out = convolve(x, kernel)
            return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()

        return jax.jit(jax.grad(of, (0, 1)))

    plain = loss(lambda *a: convolution._direct(*a, "depthwise", stride))(x, kernel)
    ours = loss(lambda *a: layers.depthwise_conv(*a, stride=stride))(x, kernel)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-6)


def test_every_output_has_its_stride_and_channels():
    model = mobilenet.Backbone(out_strides=tuple(mobilenet.OUTPUTS))
    image = jax.ShapeDtypeStruct((1, 65, 97, 3), np.float32)
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    channels = {2: 16, 4: 24, 8: 40, 16: 80, 32: 160, 33: 960}
    assert {key: x.shape for key, x in out.items()} == {
        key: (1, -(-65 // (key // 2 * 2)), -(-97 // (key // 2 * 2)), c)
        for key, c in channels.items()
    }


def test_nothing_is_built_beyond_the_last_output():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    model = mobilenet.Backbone(out_strides=(8,))
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert sorted(params) == ["block1", "block2", "block3", "block4", "stem", "stem_bn"]


def test_parameters_are_those_of_the_paper():
    """5.4 M with the classifier (table 3): 960 x 1280 and 1280 x 1000 and biases."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    params = jax.eval_shape(mobilenet.Backbone().init, jax.random.key(0), image)
    count = sum(x.size for x in jax.tree.leaves(params["params"]))
    classifier = 960 * 1280 + 1280 + 1280 * 1000 + 1000
    assert round((count + classifier) / 1e6, 1) in (5.4, 5.5)


def test_a_block_adds_its_input_and_squeezes_to_one_number_a_channel(rng):
    block = mobilenet.Block(3, 16, 8, True, True, 1, "frozen", 1e-5, jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 4, 4, 8)), jnp.float32)
    variables = jax.jit(block.init)(jax.random.key(0), x)
    apply = jax.jit(block.apply)
    params = dict(variables["params"])
    params["project"] = {"kernel": jnp.zeros((1, 1, 16, 8))}
    out = apply({**variables, "params": params}, x)
    np.testing.assert_array_equal(out, x)
    # With its last bias far below -3 the hard sigmoid shuts every channel.
    params = dict(variables["params"])
    params["excite"] = {**params["excite"], "bias": jnp.full(16, -100.0)}
    out = apply({**variables, "params": params}, x)
    np.testing.assert_array_equal(out, x)
    # Images do not mix.
    alone = apply(variables, x[1:])
    np.testing.assert_allclose(apply(variables, x)[1:], alone, atol=1e-6)


def test_unknown_outputs_are_refused():
    with pytest.raises(ValueError, match=r"out_strides=\(64,\).*2, 4, 8, 16, 32, 33"):
        mobilenet.Backbone(out_strides=(64,))
