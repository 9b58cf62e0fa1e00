"""Convolutions, norms and heads against loops over cells in NumPy.

One deep thing: every layer of `models.layers`, its values, gradients and padding.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from frcnn_jax.models import layers, rpn_head
from frcnn_jax.ops.direct_conv import direct_conv


def slow_conv(x, kernel, stride, padding):
    """Every output cell is the sum over its window, in float64."""
    p, k = padding, kernel.shape[0]
    x = np.pad(np.float64(x), ((0, 0), (p, p), (p, p), (0, 0)))
    h, w = ((n - k) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), h, w, kernel.shape[-1]))
    for y in range(h):
        for z in range(w):
            window = x[:, y * stride : y * stride + k, z * stride : z * stride + k]
            out[:, y, z] = np.tensordot(window, np.float64(kernel), 3)
    return out


CASES = {  # n, h, w, input channels, output channels, kernel, stride
    "1x1": (2, 5, 6, 7, 4, 1, 1),
    "1x1 stride 2, odd": (2, 5, 7, 7, 4, 1, 2),
    "3x3 narrow": (2, 6, 5, 5, 4, 3, 1),
    "3x3 wide": (2, 6, 5, 128, 130, 3, 1),
    "3x3 wide, one row": (3, 1, 4, 128, 128, 3, 1),
    "3x3 Winograd": (4, 32, 29, 64, 65, 3, 1),
    "3x3 stride 2, odd": (2, 7, 5, 5, 4, 3, 2),
    "3x3 stride 2, wide, odd": (2, 7, 5, 128, 96, 3, 2),
    "3x3 stride 2, wide, even": (2, 6, 8, 96, 128, 3, 2),
    "3x3 stride 2, wide, one row": (2, 1, 4, 96, 96, 3, 2),
    "7x7 stride 2": (1, 10, 12, 3, 4, 7, 2),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "_"))
def case(request, rng):
    n, h, w, i, o, k, stride = CASES[request.param]
    x = rng.normal(size=(n, h, w, i)).astype(np.float32)
    kernel = rng.normal(size=(k, k, i, o)).astype(np.float32)
    return x, kernel, stride, k // 2


def test_conv_is_the_windowed_sum(case):
    x, kernel, stride, padding = case
    out = jax.jit(lambda *a: layers.conv(*a, stride=stride, padding=padding))(x, kernel)
    expected = slow_conv(x, kernel, stride, padding)
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())


def test_conv_gradients_equal_those_of_the_plain_convolution(case, rng):
    x, kernel, stride, padding = case
    bias = jnp.float32(rng.normal(size=kernel.shape[-1]))

    def plain(x, kernel, bias):
        return (
            direct_conv(x, kernel, stride=stride, padding=padding)
            + bias[None, None, None]
        )

    @jax.jit
    def both(*args):
        ours = partial(layers.conv, stride=stride, padding=padding)
        g = jax.random.normal(jax.random.key(0), jax.eval_shape(plain, *args).shape)
        pairs = (jax.vjp(function, *args) for function in (ours, plain))
        return [(out, *pull(g)) for out, pull in pairs]

    for ours, expected in zip(*both(x, kernel, bias), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("stride", [1, 2])
def test_wide_conv_in_bfloat16(stride, rng):
    shapes = (2, 7, 5, 128), (3, 3, 128, 96)
    x, kernel = (jnp.bfloat16(rng.normal(size=s)) for s in shapes)
    functions = (
        partial(layers.conv, stride=stride, padding=1),
        lambda x, k: direct_conv(x, k, stride=stride, padding=1),
    )
    ours, plain = (
        jax.jit(
            jax.grad(lambda *a, f=f: (f(*a).astype(jnp.float32) ** 2).sum(), (0, 1))
        )
        for f in functions
    )
    for a, b in zip(ours(x, kernel), plain(x, kernel), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max())


def test_conv_of_a_map_as_large_as_the_kernel(rng):
    x, kernel = rng.normal(size=(4, 3, 3, 5)), rng.normal(size=(3, 3, 5, 2))
    out = layers.conv(jnp.float32(x), jnp.float32(kernel))
    np.testing.assert_allclose(out, slow_conv(x, kernel, 1, 0), atol=1e-5)
    assert layers.conv(jnp.zeros((0, 3, 3, 5)), jnp.float32(kernel)).shape[0] == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_wide_conv_gradient_under_vmap(stride, rng):
    x = jnp.float32(rng.normal(size=(3, 1, 4, 4, 128)))
    kernel = jnp.float32(rng.normal(size=(3, 3, 128, 128)))
    conv = partial(layers.conv, stride=stride, padding=1)
    grad = jax.jit(jax.grad(lambda k, x: (conv(x, k) ** 2).sum()))
    together = jax.jit(jax.vmap(grad, (None, 0)))(kernel, x)
    one_by_one = jnp.stack([grad(kernel, each) for each in x])
    np.testing.assert_allclose(together, one_by_one, rtol=1e-4, atol=1e-2)
    kernels = jnp.stack([kernel, -kernel, 2 * kernel])
    together = jax.jit(jax.vmap(grad))(kernels, x)
    one_by_one = jnp.stack([grad(*each) for each in zip(kernels, x, strict=True)])
    np.testing.assert_allclose(together, one_by_one, rtol=1e-4, atol=1e-2)


def two_outputs(weights, x, padding):
    """A head for `sampled_head`: 3x3, ReLU, then two 1x1."""
    kernel, bias, first, second = weights
    x = layers.relu(direct_conv(x, kernel, padding=padding) + bias[None, None, None])
    return x @ first, x @ second


def head_inputs(rng):
    shapes = (3, 3, 7, 5), (5,), (5, 2), (5, 4)
    weights = [jnp.float32(rng.normal(size=shape)) for shape in shapes]
    return weights, jnp.float32(rng.normal(size=(2, 5, 6, 7)))


def sampled_and_plain(weights, x, g):
    """What `sampled_head`, for 3 cells an image, and the plain head give."""
    ours, pull = jax.vjp(
        lambda *args: rpn_head.sampled_head(two_outputs, 3, *args), weights, x
    )
    plain, pull_plain = jax.vjp(lambda *a: two_outputs(*a, 1), weights, x)
    return (ours, *pull(g)), (plain, *pull_plain(g))


SAMPLED_AND_PLAIN = dict(  # compiled once for all that is tried
    eager=sampled_and_plain,
    jit=jax.jit(sampled_and_plain),
    vmap=jax.jit(jax.vmap(sampled_and_plain, (None, 0, 0))),
)


@pytest.mark.parametrize("transform", SAMPLED_AND_PLAIN)
@pytest.mark.parametrize("used", [0, 1, 6, 7, 60])
def test_sampled_head_has_the_gradients_of_the_plain_one(used, transform, rng):
    """Fewer, as many and more cells in use than the bound of 2 x 3, corners first."""
    weights, x = head_inputs(rng)
    at = [0, 59, 29, 30, *rng.permutation(np.r_[1:29, 31:59])][:used]
    g = [np.zeros((60, c), np.float32) for c in (2, 4)]
    g[0][at[::2]] = rng.normal(size=(len(at[::2]), 2))  # a cell may have one gradient
    g[1][at[1:]] = rng.normal(size=(len(at[1:]), 4))  # or the other, or both
    g[0][at[:1]] = 1
    g = tuple(jnp.asarray(a.reshape(2, 5, 6, -1)) for a in g)

    both = SAMPLED_AND_PLAIN[transform]
    if transform == "vmap":
        first = jax.tree.map(lambda a: a[None], (x, g))
        pairs = jax.tree.map(lambda a: a[0], both(weights, *first))
    else:
        pairs = both(weights, x, g)
    ours, plain = (jax.tree.leaves(one) for one in pairs)
    assert len(ours) == len(plain) == 7
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * (1 + np.abs(b).max()))


@pytest.mark.parametrize(
    ("cells", "h", "w"), [(3, 5, 6), (4, 5, 6), (30, 5, 6), (4, 48, 44)]
)
def test_layers_of_the_rpn_as_a_sampled_head(cells, h, w, rng):
    """Wide, and in the last case large enough for all a CPU has; 8 cells are used."""
    shapes = ((3, 3, 96, 96), (96,)), ((1, 1, 96, 3), (3,)), ((1, 1, 96, 12), (12,))
    weights = [
        tuple(jnp.float32(0.1 * rng.normal(size=s)) for s in pair) for pair in shapes
    ]
    x = jnp.float32(rng.normal(size=(2, h, w, 96)))
    g = {
        name: np.zeros((2 * h * w, c), np.float32)
        for name, c in (("logits", 3), ("deltas", 12))
    }
    at = [0, 5, 24, 29, 30, 35, 44, 59]
    g["logits"][at], g["deltas"][at[::2], 4:8] = 1, rng.normal(size=(4, 4))
    g = {name: jnp.asarray(a.reshape(2, h, w, -1)) for name, a in g.items()}

    @jax.jit
    def both(weights, x):
        head = rpn_head.last_layers
        ours = jax.vjp(lambda *a: rpn_head.sampled_head(head, cells, *a), weights, x)
        plain = jax.vjp(lambda *a: head(*a, 1), weights, x)
        return (ours[0], ours[1](g)), (plain[0], plain[1](g))

    for a, b in zip(*map(jax.tree.leaves, both(weights, x)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * (1 + np.abs(b).max()))


def test_rpn_head_lowers_for_any_batch_and_for_float64():
    head = rpn_head.RPNHead(3, 8)
    features = {4: jnp.zeros((2, 40, 40, 4)), 64: jnp.zeros((2, 1, 1, 4))}
    variables = jax.jit(head.init)(jax.random.key(0), features)
    (batch,) = jax.export.symbolic_shape("b")
    symbolic = {
        s: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype)
        for s, a in features.items()
    }
    exported = jax.export.export(jax.jit(head.apply))(variables, symbolic)
    assert str(exported.out_avals[0].shape[0]) == "b"
    with jax.enable_x64(True):
        double = jax.tree.map(
            lambda a: jnp.asarray(np.asarray(a, np.float64)), (variables, features)
        )
        wide = rpn_head.RPNHead(3, 8, dtype=jnp.float64)
        loss = lambda *a: sum(x.sum() for x in wide.apply(*a))  # noqa: E731
        grads = jax.eval_shape(jax.grad(loss), *double)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(grads)} == {"float64"}


def test_sampled_head_in_bfloat16(rng):
    """The whole map and the patches give gradients in the dtype of what they are of."""
    weights, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), head_inputs(rng))

    @partial(jax.jit, static_argnums=2)
    def both(weights, x, cells):
        out, pull = jax.vjp(
            lambda *args: rpn_head.sampled_head(two_outputs, cells, *args), weights, x
        )
        g = jax.tree.map(lambda a: jnp.zeros_like(a).at[0, 2, 1:4].set(1), out)
        return pull(g), jax.vjp(lambda *a: two_outputs(*a, 1), weights, x)[1](g)

    for cells in (1, 2, 30):
        ours, plain = both(weights, x, cells)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
            assert a.dtype == b.dtype == jnp.bfloat16
            a, b = np.float32(a), np.float32(b)
            np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max())


def test_sampled_head_passes_a_nan_on(rng):
    weights, x = head_inputs(rng)
    _, pull = jax.vjp(
        lambda *args: rpn_head.sampled_head(two_outputs, 3, *args), weights, x
    )
    g = jnp.zeros((2, 5, 6, 2)).at[0, 1, 1, 0].set(jnp.nan), jnp.zeros((2, 5, 6, 4))
    d_weights, d_x = pull(g)
    assert all(np.isnan(d).any() for d in d_weights[:3])
    assert np.isnan(d_x[0, :3, :3]).any() and np.isfinite(d_x[1]).all()


def test_relu_and_its_derivative():
    x = jnp.array([-2.0, -0.0, 0.0, 3.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(layers.relu(x), [0, 0, 0, 3, jnp.inf, jnp.nan])
    slopes = jax.grad(lambda x: layers.relu(x).sum())(x[:5])
    np.testing.assert_array_equal(slopes, [0, 0, 0, 1, 1])
    assert layers.relu(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.slow  # memory is planned by the compiler that users have
def test_relu_is_computed_once(rng):
    """Residual blocks keep one map each for their gradients, not all their terms."""
    kernels = jnp.float32(rng.normal(size=(4, 1, 1, 16, 16)))

    def loss(relu, kernels, x):
        for kernel in kernels:
            x = relu(x + layers.conv(x, kernel))
        return (x * x).sum()

    def planned(relu):
        x = jax.ShapeDtypeStruct((1, 64, 64, 16), jnp.float32)
        grad = jax.jit(jax.grad(lambda k, x: loss(relu, k, x)))
        return grad.lower(kernels, x).compile().memory_analysis().temp_size_in_bytes

    assert planned(layers.relu) < planned(jax.nn.relu)


def test_conv_layer_pads_half_the_kernel_and_adds_the_bias():
    layer = layers.Conv(2, 3, 2)
    x = jnp.ones((1, 5, 4, 1))
    variables = layer.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "kernel": (3, 3, 1, 2),
        "bias": (2,),
    }
    params = {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.array([0.0, 10.0])}
    out = layer.apply({"params": params}, x)
    assert out.shape == (1, 3, 2, 2)
    np.testing.assert_array_equal(out[0, :, :, 0], [[4, 6], [6, 9], [4, 6]])
    np.testing.assert_array_equal(out[..., 1], out[..., 0] + 10)


def test_conv_layer_computes_in_dtype_with_float32_parameters():
    layer = layers.Conv(2, 3, dtype=jnp.bfloat16)
    x = jnp.ones((1, 4, 4, 3))
    variables = layer.init(jax.random.key(0), x)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    grad = jax.grad(lambda v: layer.apply(v, x).astype(jnp.float32).sum())(variables)
    assert {a.dtype for a in jax.tree.leaves(grad)} == {jnp.dtype("float32")}


def test_frozen_batch_norm_normalises_and_never_learns():
    norm = layers.FrozenBatchNorm(eps=0.5)
    x = jnp.arange(6.0).reshape((1, 1, 3, 2))
    variables = {
        "params": {"scale": jnp.array([2.0, 1.0]), "bias": jnp.array([1.0, -1.0])},
        "batch_stats": {"mean": jnp.array([2.0, 0.0]), "var": jnp.array([3.5, 0.5])},
    }
    out = norm.apply(variables, x)
    np.testing.assert_allclose(out[0, 0], [[-1, 0], [1, 2], [3, 4]], rtol=1e-6)
    grads = jax.grad(lambda v: norm.apply(v, x).sum())(variables)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))
    _, changed = norm.apply(variables, x, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, changed, {
        "batch_stats": variables["batch_stats"]
    })  # fmt: skip


def test_max_pool_padding_never_wins():
    x = -jnp.arange(1.0, 13.0).reshape((1, 3, 4, 1))
    out = layers.max_pool(x, window=3, stride=2, padding=1)
    np.testing.assert_array_equal(out[0, :, :, 0], [[-1, -2], [-5, -6]])
    grad = jax.grad(lambda x: layers.max_pool(x, window=2, stride=2).sum())(x)
    np.testing.assert_array_equal(
        grad[0, :, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    )


def slow_local_response_norm(x, window, alpha=5e-5, beta=0.75):
    """Value by value, in float64, over the part of the window inside the map."""
    x = np.float64(x)
    out = np.empty_like(x)
    reach = [(size - 1) // 2 for size in window]
    for n, *place in np.ndindex(x.shape):
        around = tuple(
            slice(max(i - r, 0), i + r + 1) for i, r in zip(place, reach, strict=True)
        )
        scale = 1 + alpha / np.prod(window) * (x[n][around] ** 2).sum()
        out[n, *place] = x[n, *place] / scale**beta
    return out


@pytest.mark.parametrize("window", [(3, 3, 1), (1, 1, 3), (1, 1, 5)])
def test_local_response_norm_value_by_value(window, rng):
    x = rng.normal(0, 300, (2, 5, 4, 6)).astype(np.float32)
    norm = jax.jit(lambda x: layers.local_response_norm(x, window=window))
    expected = slow_local_response_norm(x, window)
    assert np.abs(expected / x).min() < 0.5  # it does something
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5)
    out = norm(jnp.asarray(x, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    with jax.enable_x64(True):  # float64 is computed in float64
        found = layers.local_response_norm(jnp.asarray(x, jnp.float64), window=window)
        np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_local_response_norm_worked_on_paper():
    """Three values; the scale is that of the pixels around, channel by channel."""
    x = np.zeros((1, 3, 3, 2), np.float32)
    x[0, 1, 1, 0], x[0, 0, 0, 0], x[0, 1, 1, 1] = 90.0, 1.0, 5.0
    out = layers.local_response_norm(jnp.asarray(x), alpha=0.01, beta=1.0)
    scale = 1 + 0.01 / 9 * (90.0**2 + 1)
    np.testing.assert_allclose(out[0, 1, 1, 0], 90 / scale, rtol=1e-6)
    np.testing.assert_allclose(out[0, 0, 0, 0], 1 / scale, rtol=1e-6)
    np.testing.assert_allclose(out[0, 1, 1, 1], 5 / (1 + 0.01 / 9 * 25), rtol=1e-6)
    assert (np.asarray(out) != 0).sum() == 3


def test_local_response_norm_gradient_equals_finite_differences(rng):
    x = jnp.float32(rng.normal(0, 2, (1, 3, 3, 2)))
    norm = jax.jit(lambda x: layers.local_response_norm(jnp.asarray(x), alpha=0.5))
    check_grads(norm, (x,), order=1, modes=["rev"], rtol=2e-2)


def test_max_pool_same_keeps_the_odd_row():
    x = jnp.arange(15.0).reshape((1, 3, 5, 1))
    out = layers.max_pool(x, window=2, stride=2, same=True)
    np.testing.assert_array_equal(out[0, :, :, 0], [[6, 8, 9], [11, 13, 14]])


def test_dropout_keeps_the_mean_and_the_share():
    keys = jax.random.split(jax.random.key(0), 2)
    out = layers.dropout(keys, jnp.ones((2, 100, 100)), rate=0.25)
    assert set(np.unique(out).round(4)) == {0.0, np.float32(1 / 0.75).round(4)}
    np.testing.assert_allclose(np.mean(out), 1, atol=0.02)
    assert (out[0] != out[1]).any()


def test_grouped_and_dilated_convolutions_by_their_definition(rng):
    """Each group alone; a dilated kernel is a larger one with zeros in between."""
    x = jnp.asarray(rng.normal(size=(1, 6, 7, 6)), jnp.float32)
    layer = layers.Conv(4, 3, stride=2, groups=2, dilation=2, use_bias=False)
    variables = layer.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (3, 3, 3, 4)
    spread = np.zeros((5, 5, 3, 4))
    spread[::2, ::2] = kernel
    parts = [
        slow_conv(x[..., 3 * g : 3 * g + 3], spread[..., 2 * g : 2 * g + 2], 2, 2)
        for g in range(2)
    ]
    np.testing.assert_allclose(
        layer.apply(variables, x), np.concatenate(parts, -1), atol=1e-5
    )


# ------------------------------------------------------------------------------- norms


def moving(kind, rng):
    """A norm of 8 channels, its variables away from where they start, and a batch."""

    class Net(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, x):
            return layers.norm(kind, name="bn")(x)

    x = jnp.asarray(rng.normal(2.0, 3.0, (4, 5, 6, 8)), jnp.float32)
    variables = Net().init(jax.random.key(0), x)
    variables = jax.tree.map(
        lambda v: jnp.asarray(rng.uniform(0.5, 1.5, v.shape), jnp.float32), variables
    )
    return Net(), variables, x


def normalised(x, mean, var, leaves):
    x, mean, var, scale, bias = map(
        np.asarray, (x, mean, var, *(leaves["params"]["bn"][k] for k in SHIFT))
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


SHIFT = ("scale", "bias")


@pytest.mark.parametrize("kind", ["frozen", "batch", "sync"])
def test_norm_stays_with_its_stored_statistics_where_nothing_is_mutable(kind, rng):
    net, variables, x = moving(kind, rng)
    stored = variables["batch_stats"]["bn"]
    expected = normalised(x, stored["mean"], stored["var"], variables)
    np.testing.assert_allclose(net.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_takes_the_batch_and_moves_a_tenth_of_the_way(rng):
    net, variables, x = moving("batch", rng)
    y, after = net.apply(variables, x, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(
        y, normalised(x, mean, var, variables), rtol=1e-3, atol=1e-4
    )
    for name, of_batch in (("mean", mean), ("var", var)):
        before = variables["batch_stats"]["bn"][name]
        np.testing.assert_allclose(
            after["batch_stats"]["bn"][name], 0.9 * before + 0.1 * of_batch, rtol=1e-4
        )


def test_frozen_norm_moves_and_learns_nothing(rng):
    net, variables, x = moving("frozen", rng)
    _, after = net.apply(variables, x, mutable=["batch_stats"])
    jax.tree.map(
        np.testing.assert_array_equal,
        {"batch_stats": variables["batch_stats"]},
        dict(after),
    )
    grads = jax.grad(lambda p: net.apply(variables | {"params": p}, x).sum())(
        variables["params"]
    )
    assert not any(g.any() for g in jax.tree.leaves(grads))


def test_norm_synchronised_over_devices_equals_one_device_with_all(rng):
    one, variables, x = moving("batch", rng)
    two, *_ = moving("sync", rng)

    def apply(net):
        return lambda v, x: net.apply(v, x, mutable=["batch_stats"])

    y, after = apply(one)(variables, x)
    parts = x.reshape(2, 2, *x.shape[1:])
    run = jax.pmap(apply(two), axis_name="batch", in_axes=(None, 0))
    y2, after2 = run(variables, parts)
    np.testing.assert_allclose(y2.reshape(y.shape), y, rtol=1e-4, atol=1e-5)
    for device in (0, 1):
        jax.tree.map(
            lambda a, b, d=device: np.testing.assert_allclose(a, b[d], rtol=1e-5),
            after,
            after2,
        )
    alone, _ = jax.pmap(apply(one), axis_name="batch", in_axes=(None, 0))(
        variables, parts
    )
    assert np.abs(alone.reshape(y.shape) - y).max() > 0.01  # each its own statistics


def test_group_norm_does_not_see_the_other_images(rng):
    net, variables, x = moving("group", rng)
    assert set(variables) == {"params"}
    whole, first = net.apply(variables, x), net.apply(variables, x[:1])
    np.testing.assert_allclose(whole[:1], first, rtol=1e-5, atol=1e-6)


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="fpn.norm='x'.*'none', 'frozen', 'batch'"):
        layers.check_norm("fpn", "x")
    with pytest.raises(ValueError, match="backbone.norm='none'.*'frozen', 'batch'"):
        layers.check_norm("backbone", "none", none=False)


def test_synchronised_norm_counts_the_cells_inside_on_devices_with_unequal_counts(rng):
    """Two devices of one image each; what lies beyond the extents is not a number."""
    x = np.full((2, 1, 4, 5, 3), np.nan, np.float32)
    extent = np.array([[[4, 5]], [[1, 2]]], np.int32)
    first, second = rng.normal(size=(4, 5, 3)), rng.normal(3, 2, (1, 2, 3))
    x[0, 0], x[1, 0, :1, :2] = first, second
    layer = layers.BatchNorm(axis_name="batch")
    variables = layer.init(jax.random.key(0), jnp.ones((1, 4, 5, 3)))

    def apply(x, extent):
        return layer.apply(variables, x, extent, mutable=["batch_stats"])

    y, stored = jax.vmap(apply, axis_name="batch")(jnp.asarray(x), jnp.asarray(extent))
    cells = np.concatenate([first.reshape(-1, 3), second.reshape(-1, 3)])
    mean, var = cells.mean(0), cells.var(0)
    expected = (first - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y[0, 0], expected, rtol=1e-4, atol=1e-5)
    expected = (second - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y[1, 0, :1, :2], expected, rtol=1e-4, atol=1e-5)
    for found in stored["batch_stats"]["mean"]:
        np.testing.assert_allclose(found, 0.1 * mean, rtol=1e-4)
    for found in stored["batch_stats"]["var"]:
        np.testing.assert_allclose(found, 0.9 + 0.1 * var, rtol=1e-4)


def test_group_norm_and_mean_count_the_cells_inside(rng):
    x = np.full((1, 4, 5, 8), np.nan, np.float32)
    x[0, :2, :3] = part = np.float32(rng.normal(1, 2, (2, 3, 8)))
    extent = jnp.array([[2, 3]])
    layer = layers.GroupNorm(2)
    y, _ = layer.init_with_output(jax.random.key(0), jnp.asarray(x), extent)
    groups = part.reshape(6, 2, 4)
    mean, var = (f((0, 2), keepdims=True) for f in (groups.mean, groups.var))
    expected = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(2, 3, 8)
    np.testing.assert_allclose(y[0, :2, :3], expected, rtol=1e-4, atol=1e-5)
    found = layers.mean_inside(jnp.asarray(x), extent)
    np.testing.assert_allclose(found[0, 0, 0], part.mean((0, 1)), rtol=1e-5)


def test_a_mean_inside_in_half_precision_is_no_half_precision_sum():
    """40 x 50 cells of 100 add up to more than float16 has."""
    x, extent = jnp.full((1, 40, 60, 2), 100, jnp.float16), jnp.array([[40, 50]])
    found = layers.mean_inside(x, extent)
    assert found.dtype == jnp.float16 and (found == 100).all()
