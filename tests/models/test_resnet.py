import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.models import resnet

# Parameters of torchvision's ResNets less their classifier (512 or 2048 x 1000 + 1000).
PARAMETERS = {
    18: 11_689_512 - 513_000,
    34: 21_797_672 - 513_000,
    50: 25_557_032 - 2_049_000,
    101: 44_549_160 - 2_049_000,
    152: 60_192_808 - 2_049_000,
}


def shapes(module, *args):
    """Variables and output of `module` by shape alone."""

    def init(*args):
        variables = module.init(jax.random.key(0), *args)
        return variables, module.apply(variables, *args)

    return jax.eval_shape(init, *args)


def images(h=64, w=64, b=1):
    return jax.ShapeDtypeStruct((b, h, w, 3), jnp.float32)


@pytest.mark.parametrize("depth", PARAMETERS)
def test_backbone_has_the_parameters_of_the_known_network(depth):
    variables, features = shapes(resnet.Backbone(depth=depth), images())
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == PARAMETERS[depth]
    widest = 2048 if depth >= 50 else 512
    assert [f.shape[-1] for f in features.values()] == [
        widest // 8, widest // 4, widest // 2, widest
    ]  # fmt: skip


@pytest.mark.parametrize(
    "depth, groups, group_width, parameters",
    [
        (50, 32, 4, 25_028_904),  # resnext50_32x4d
        (101, 32, 8, 88_791_336),  # resnext101_32x8d
        (50, 1, 128, 68_883_240),  # wide_resnet50_2
    ],
)
def test_groups_have_the_parameters_of_the_known_network(
    depth, groups, group_width, parameters
):
    model = resnet.Backbone(depth=depth, groups=groups, group_width=group_width)
    variables, features = shapes(model, images())
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == parameters - 2_049_000
    assert features[32].shape == (1, 2, 2, 2048)


def test_dilated_c5_keeps_stride_16_and_the_same_parameters():
    model = resnet.Backbone(depth=50, out_strides=(8, 16), dilated_c5=True)
    variables, features = shapes(model, images(75, 130))
    plain, _ = shapes(resnet.Backbone(depth=50), images(75, 130))
    assert jax.tree.map(lambda x: x.shape, variables) == jax.tree.map(
        lambda x: x.shape, plain
    )
    assert {s: f.shape[1:] for s, f in features.items()} == {
        8: (10, 17, 512),
        16: (5, 9, 2048),
    }


def test_dilated_block_on_every_second_cell_is_the_plain_block_on_those_cells():
    plain = resnet.Block(4, 16, 1, True, False, "frozen", 1e-5, jnp.float32, groups=2)
    x = jax.random.normal(jax.random.key(1), (1, 9, 8, 16))
    variables = jax.jit(plain.init)(jax.random.key(0), x)
    assert variables["params"]["conv2"]["kernel"].shape == (3, 3, 2, 4)
    dilated = plain.clone(dilation=2)
    np.testing.assert_allclose(
        dilated.apply(variables, x)[:, ::2, ::2],
        plain.apply(variables, x[:, ::2, ::2]),
        atol=1e-5,
    )


def test_backbone_maps_are_image_size_over_stride_rounded_up():
    _, features = shapes(resnet.Backbone(depth=18), images(75, 130, 2))
    assert {s: f.shape[:3] for s, f in features.items()} == {
        4: (2, 19, 33),
        8: (2, 10, 17),
        16: (2, 5, 9),
        32: (2, 3, 5),
    }


def test_backbone_stops_at_its_last_stride():
    variables, features = shapes(resnet.Backbone(depth=50, out_strides=(16,)), images())
    assert list(features) == [16]
    names = {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert set(variables["params"]) == names
    assert set(variables["params"]["layer1"]["block0"]) == {
        *("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "shortcut", "shortcut_bn")
    }
    assert set(variables["batch_stats"]) == {"bn1", "layer1", "layer2", "layer3"}


@pytest.mark.parametrize("stride_in_1x1, cells", [(True, 8), (False, 16)])
def test_backbone_takes_the_stride_where_told(stride_in_1x1, cells):
    model = resnet.Backbone(
        depth=50, out_strides=(4, 8), stride_in_1x1=stride_in_1x1
    )  # fmt: skip

    def run(x):
        variables = model.init(jax.random.key(0), x)
        return model.apply(variables, x, capture_intermediates=True)[1]

    block = jax.eval_shape(run, images())["intermediates"]["layer2"]["block0"]
    assert block["conv1"]["__call__"][0].shape[1] == cells
    assert block["conv2"]["__call__"][0].shape[1] == 8


def test_block_adds_its_shortcut():
    """With a zero last scale the block is relu(x): the residual branch is off."""
    block = resnet.Block(4, 16, 1, True, False, "frozen", 1e-5, jnp.float32)
    x = jax.random.normal(jax.random.key(1), (1, 5, 5, 16))
    variables = block.init(jax.random.key(0), x)
    assert "shortcut" not in variables["params"]
    variables["params"]["bn3"]["scale"] = jnp.zeros(16)
    np.testing.assert_array_equal(block.apply(variables, x), jnp.maximum(x, 0))


def test_gradients_reach_convolutions_and_no_norm():
    block = resnet.Block(4, 16, 2, True, False, "frozen", 1e-5, jnp.float32)
    x = jax.random.normal(jax.random.key(1), (1, 7, 6, 3))
    variables = jax.jit(block.init)(jax.random.key(0), x)

    @jax.jit
    @jax.grad
    def grads(params):
        return (block.apply({**variables, "params": params}, x) ** 2).sum()

    for path, g in jax.tree_util.tree_leaves_with_path(grads(variables["params"])):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(g).all()
        assert (np.abs(g).max() == 0) == ("bn" in name), name


def test_box_head_runs_stage_4_on_each_roi():
    head = resnet.BoxHead(num_classes=20, depth=50)
    rois = jax.ShapeDtypeStruct((2, 3, 14, 14, 1024), jnp.float32)
    variables, (logits, deltas) = shapes(head, rois)
    assert set(variables["params"]) == {"layer4", "class_logits", "class_deltas"}
    assert variables["params"]["class_logits"]["kernel"].shape == (2048, 21)
    assert logits.shape == (2, 3, 21) and deltas.shape == (2, 3, 20, 4)


def test_wrong_fields_are_named():
    with pytest.raises(ValueError, match=r"depth=49: expected one of \(10, 18, 34"):
        resnet.Backbone(depth=49)
    with pytest.raises(ValueError, match="depth=49"):
        resnet.BoxHead(num_classes=2, depth=49)
    with pytest.raises(ValueError, match=r"out_strides=\(2, 4\)"):
        resnet.Backbone(out_strides=(2, 4))
    with pytest.raises(ValueError, match=r"\(32,\): expected some of \(4, 8, 16\)$"):
        resnet.Backbone(out_strides=(32,), dilated_c5=True)
    with pytest.raises(ValueError, match="groups=32.* need the bottlenecks"):
        resnet.Backbone(depth=18, groups=32)


def test_remat_gives_the_same_gradients_and_keeps_less(rng):
    x = jnp.asarray(rng.normal(size=(1, 32, 32, 3)), jnp.float32)
    options = dict(depth=50, out_strides=(4,))
    variables = jax.jit(resnet.Backbone(**options).init)(jax.random.key(0), x)

    def loss(params, remat):
        model = resnet.Backbone(**options, remat=remat)
        maps = model.apply({**variables, "params": params}, x)
        return sum((jnp.square(m).mean() for m in maps.values()), jnp.zeros(()))

    def kept(remat):  # by the forward pass for the backward one
        pull = jax.eval_shape(
            lambda p: jax.vjp(lambda p: loss(p, remat), p)[1], variables["params"]
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    plain, again = (
        jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], remat)
        for remat in (False, True)
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(plain))
    assert kept(True) - parameters < 0.7 * (kept(False) - parameters)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max() + 1e-12
        ),
        plain,
        again,
    )
