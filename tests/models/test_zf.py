import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from frcnn_jax.models import build, vgg, zf
from tests.models.test_layers import slow_local_response_norm


def test_zf_has_the_layers_of_its_table():
    variables = jax.eval_shape(
        zf.Backbone().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    kernels = {name: p["kernel"].shape for name, p in variables["params"].items()}
    assert kernels == {
        "conv1": (7, 7, 3, 96),
        "conv2": (5, 5, 96, 256),
        "conv3": (3, 3, 256, 384),
        "conv4": (3, 3, 384, 384),
        "conv5": (3, 3, 384, 256),
    }


def test_zf_is_its_table_step_by_step(rng):
    """Convolutions by XLA with explicit padding, the rest by NumPy."""
    x = rng.normal(0, 40, (1, 33, 40, 3)).astype(np.float32)
    model = zf.Backbone()
    variables = jax.jit(model.init)(jax.random.key(0), x)

    def conv(x, name, stride, pad):
        out = lax.conv_general_dilated(
            x,
            variables["params"][name]["kernel"],
            (stride, stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return np.maximum(np.asarray(out), 0)

    def pool(x):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        h, w = ((n - 3) // 2 + 1 for n in x.shape[1:3])
        rows = [
            [x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(w)]
            for i in range(h)
        ]
        return np.stack([np.stack(row, 1) for row in rows], 1)

    norm = slow_local_response_norm
    y = pool(norm(conv(x, "conv1", 2, 3), (3, 3, 1)))
    y = pool(norm(conv(y, "conv2", 2, 2), (3, 3, 1)))
    for name in ("conv3", "conv4", "conv5"):
        y = conv(np.float32(y), name, 1, 1)
    (found,) = jax.jit(model.apply)(variables, x).values()
    assert found.shape == (1, 3, 3, 256)
    np.testing.assert_allclose(found, y, atol=1e-3 * np.abs(y).max())


def test_zf_and_vgg_share_their_box_head():
    head = build.build_box_head("zf", num_classes=2)
    assert head == vgg.BoxHead(num_classes=2)
