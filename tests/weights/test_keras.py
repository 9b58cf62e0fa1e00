import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common
from frcnn_jax.models import build_backbone, resnet
from frcnn_jax.weights import keras as pretrained
from frcnn_jax.weights import load_backbone

BLOCKS = {2: "abc", 3: "abcd", 4: "abcdef", 5: "abc"}


def keras_names(letters=BLOCKS):
    """Every array of a Keras ResNet without its classifier."""
    layers = [("conv1", "bn_conv1")]
    for stage, blocks in letters.items():
        for block in blocks:
            branches = ["2a", "2b", "2c"] + (["1"] if block == "a" else [])
            for branch in branches:
                at = f"{stage}{block}_branch{branch}"
                layers.append((f"res{at}", f"bn{at}"))
    norms = ("gamma", "beta", "moving_mean", "moving_variance")
    for conv, norm in layers:
        yield from (f"{conv}/kernel", f"{conv}/bias")
        yield from (f"{norm}/{array}" for array in norms)


def write_small(path, rng, letters, **changes):
    """A file of the right names whose every array is tiny, all different."""
    arrays = {}
    for name in keras_names(letters):
        shape = (1, 1, 3, 2) if name.endswith("kernel") else (2,)
        arrays[name] = rng.uniform(0.5, 1.5, shape).astype(np.float16)
    arrays["fc1000/kernel"] = np.zeros((2, 10), np.float16)
    arrays.update(changes)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return arrays


def variables_like(tree, where="backbone"):
    """Zeros in the shape of `tree`, in the place where a detector keeps them."""
    zeros = jax.tree.map(np.zeros_like, tree)
    model = {collection: {where: arrays} for collection, arrays in zeros.items()}
    model["params"]["rpn_head"] = {"bias": np.float32([7])}
    return model


# The converter on small files


def test_keras_bias_moves_into_the_mean_and_conv1_turns_to_rgb(tmp_path, rng):
    file = tmp_path / "small.npz"
    arrays = write_small(file, rng, {2: "a"})
    tree = pretrained.load_keras_resnet50(file)
    params, stats = tree["params"], tree["batch_stats"]
    f32 = {name: np.float32(array) for name, array in arrays.items()}
    np.testing.assert_array_equal(
        params["conv1"]["kernel"][:, :, 0], f32["conv1/kernel"][:, :, 2]
    )
    np.testing.assert_array_equal(
        stats["bn1"]["mean"], f32["bn_conv1/moving_mean"] - f32["conv1/bias"]
    )
    block, stat = params["layer1"]["block0"], stats["layer1"]["block0"]
    for ours, keras in (("3", "2c"), ("shortcut", "1")):
        conv = ours if ours == "shortcut" else f"conv{ours}"
        norm = "shortcut_bn" if ours == "shortcut" else f"bn{ours}"
        at = f"2a_branch{keras}"
        np.testing.assert_array_equal(block[conv]["kernel"], f32[f"res{at}/kernel"])
        np.testing.assert_array_equal(block[norm]["scale"], f32[f"bn{at}/gamma"])
        np.testing.assert_array_equal(block[norm]["bias"], f32[f"bn{at}/beta"])
        np.testing.assert_array_equal(
            stat[norm]["mean"], f32[f"bn{at}/moving_mean"] - f32[f"res{at}/bias"]
        )
        np.testing.assert_array_equal(stat[norm]["var"], f32[f"bn{at}/moving_variance"])
    leaves = jax.tree.leaves(tree)
    assert len(leaves) == 5 * 5 and {a.dtype for a in leaves} == {np.dtype(np.float32)}


def test_loaded_arrays_replace_the_backbones_and_only_those(tmp_path, rng):
    write_small(tmp_path / "small.npz", rng, {2: "ab"})
    tree = pretrained.load_keras_resnet50(tmp_path / "small.npz")
    before = variables_like(tree)
    after = load_backbone(tmp_path / "small.npz", before)
    jax.tree.map(
        np.testing.assert_array_equal, after["params"]["backbone"], tree["params"]
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        after["batch_stats"]["backbone"],
        tree["batch_stats"],
    )
    assert after["params"]["rpn_head"]["bias"] == 7
    assert not any(a.any() for a in jax.tree.leaves(before["params"]["backbone"]))


@pytest.mark.parametrize(
    "letters, message",
    [
        ({2: "a"}, "not in the file: params/backbone/layer1/block1/.*another depth"),
        ({2: "abc"}, "not in the model: params/backbone/layer1/block2/"),
        ({2: "ab", 3: "a"}, "not in the model: .*/backbone/layer2/block0/"),
    ],
)
def test_file_of_another_network_is_named(tmp_path, rng, letters, message):
    write_small(tmp_path / "right.npz", rng, {2: "ab"})
    model = variables_like(pretrained.load_keras_resnet50(tmp_path / "right.npz"))
    write_small(tmp_path / "other.npz", rng, letters)
    with pytest.raises(ValueError) as error:
        load_backbone(tmp_path / "other.npz", model)
    parts = message.split(".*")
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "other.npz" in str(error.value) and len(str(error.value)) < 1500


def test_wrong_shape_is_named_with_both_shapes(tmp_path, rng):
    file = tmp_path / "small.npz"
    write_small(file, rng, {2: "a"})
    model = variables_like(pretrained.load_keras_resnet50(file))
    write_small(
        file, rng, {2: "a"}, **{"res2a_branch2b/kernel": np.zeros((3, 3, 3, 2))}
    )
    with pytest.raises(ValueError) as error:
        load_backbone(file, model)
    assert "params/backbone/layer1/block0/conv2/kernel" in str(error.value)
    assert "(3, 3, 3, 2), the model (1, 1, 3, 2)" in str(error.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"res2a_branch3a/kernel": np.zeros(2)}, "cannot place res2a_branch3a/kernel"),
        ({"bn2a_branch1/gama": np.zeros(2)}, "cannot place bn2a_branch1/gama"),
        ({"conv1/kernel": None}, "no conv1/kernel"),
        ({"bn2a_branch1/moving_mean": None}, "no mean at layer1/block0/shortcut_bn"),
    ],
)
def test_unknown_and_missing_arrays_are_named(tmp_path, rng, changes, message):
    write_small(tmp_path / "small.npz", rng, {2: "a"}, **changes)
    with pytest.raises(ValueError, match=message):
        pretrained.load_keras_resnet50(tmp_path / "small.npz")


def test_missing_and_unreadable_files_are_clear(tmp_path):
    variables = {"params": {"backbone": {}}, "batch_stats": {}}
    with pytest.raises(FileNotFoundError, match=r"backbone.pretrained=.*none.npz"):
        load_backbone(tmp_path / "none.npz", variables)
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "pickle.npz", **{"conv1/kernel": np.array([{}], object)})
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    for name in ("text.npz", "empty.npz", "pickle.npz", "single.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a readable .npz"):
            load_backbone(tmp_path / name, variables)


# The real weights


def keras_forward(arrays, image):
    """ResNet-50 v1 as Keras describes it, in NumPy; `image` is BGR less its mean."""

    def conv_norm(x, conv, norm, stride=1, same=False):
        kernel = np.float32(arrays[f"{conv}/kernel"])
        k = kernel.shape[0]
        x = np.pad(x, ((k // 2, k // 2), (k // 2, k // 2), (0, 0))) if same else x
        x = np.lib.stride_tricks.sliding_window_view(x, (k, k), (0, 1))
        x = x[::stride, ::stride]  # [h, w, i, k, k]
        x = np.tensordot(x, kernel.transpose(2, 0, 1, 3), 3) + arrays[f"{conv}/bias"]
        gamma, beta, mean, var = (
            arrays[f"{norm}/{a}"]
            for a in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / np.sqrt(var + 1e-3) * gamma + beta

    x = np.pad(image, ((3, 3), (3, 3), (0, 0)))
    x = np.maximum(conv_norm(x, "conv1", "bn_conv1", 2), 0)
    x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (0, 1))[::2, ::2]
    x = x.max((3, 4))
    outputs = {}
    for stage, blocks in BLOCKS.items():
        for block in blocks:
            stride = 2 if block == "a" and stage > 2 else 1

            def branch(x, name, stride=1, same=False, at=f"{stage}{block}"):
                name = f"{at}_branch{name}"
                return conv_norm(x, f"res{name}", f"bn{name}", stride, same)

            y = np.maximum(branch(x, "2a", stride), 0)
            y = np.maximum(branch(y, "2b", same=True), 0)
            y = branch(y, "2c")
            x = np.maximum(y + (branch(x, "1", stride) if block == "a" else x), 0)
        outputs[2**stage] = x
    return outputs


@pytest.fixture(scope="module")
def net():
    model = build_backbone(**pretrained.KERAS_RESNET50)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return model, {c: {"backbone": tree} for c, tree in variables.items()}


def test_real_weights_give_the_features_of_keras(net, shared):
    cv2 = pytest.importorskip("cv2")
    model, variables = net
    file = shared / "weights" / "resnet50_imagenet_keras_fp16.npz"
    loaded = load_backbone(file, variables)
    loaded = {collection: tree["backbone"] for collection, tree in loaded.items()}

    names = sorted((shared / "data" / "coco_mini" / "val2017").glob("*.jpg"))[:2]
    bgr = [cv2.resize(cv2.imread(str(name)), (129, 111)) for name in names]
    bgr = np.float32([*bgr, bgr[0][:, ::-1]])
    rgb = bgr[..., ::-1] - np.float32(pretrained.KERAS_PIXELS["pixel_mean"])
    features = jax.jit(model.apply)(loaded, rgb)

    with np.load(file, allow_pickle=False) as arrays:
        assert set(arrays.files) == set(keras_names())
        mean = np.float32([103.939, 116.779, 123.68])
        expected = keras_forward(dict(arrays), bgr[0] - mean)
    assert sorted(features) == sorted(expected)
    for stride, value in expected.items():
        assert value.shape[:2] == (-(-111 // stride), -(-129 // stride))
        scale = value.max()
        np.testing.assert_allclose(features[stride][0], value, atol=1e-4 * scale)

    # Not degenerate: alive, and a mirrored picture is nearer than another picture.
    pooled = np.asarray(features[32].mean((1, 2)))
    assert 0.1 < (np.asarray(features[32]) > 0).mean() < 0.9
    pooled = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    assert pooled[0] @ pooled[2] > 0.9 > pooled[0] @ pooled[1] + 0.1


def test_the_experiments_agree_with_the_reader():
    """Experiments import nothing of the package: they repeat what the weights need."""
    written = common.keras_resnet50()
    backbone = written.pop("backbone")
    assert pretrained.KERAS_RESNET50.items() <= backbone.items()
    assert pretrained.KERAS_PIXELS.items() <= written.items()


def test_real_weights_give_stage_4_to_a_c4_head(shared):
    flags = {**pretrained.KERAS_RESNET50, "out_strides": (16,)}
    backbone = build_backbone(**flags)
    head = resnet.BoxHead(num_classes=2, depth=50, stride_in_1x1=True, norm_eps=1e-3)
    shapes = {
        "backbone": jax.eval_shape(
            backbone.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
        ),
        "box_head": jax.eval_shape(
            head.init, jax.random.key(0), jnp.zeros((1, 1, 14, 14, 1024))
        ),
    }
    variables = {
        collection: {name: tree[collection] for name, tree in shapes.items()}
        for collection in ("params", "batch_stats")
    }
    loaded = load_backbone(
        shared / "weights" / "resnet50_imagenet_keras_fp16.npz", variables
    )
    left = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(loaded)
        if isinstance(leaf, jax.ShapeDtypeStruct)
    ]
    assert len(left) == 4
    assert all("class_logits" in name or "class_deltas" in name for name in left)
