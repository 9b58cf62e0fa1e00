"""Files of plain ViT: what is resized, what is left out, and what is refused."""

import pathlib

import jax
import numpy as np
import pytest

from frcnn_jax import weights
from frcnn_jax.models import vit
from frcnn_jax.ops import positions
from frcnn_jax.weights import families, timm
from frcnn_jax.weights import files as weight_files

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
NARROW = dict(depth=1, width=8, heads=2, window=3, global_blocks=(), positions=4)


def state(depth=1, c=8, positions=16, relative=0, token=True, norm=True):
    """A state dict of timm's, each array random."""
    shapes = {
        "pos_embed": (1, positions + token, c),
        "patch_embed.proj.weight": (c, 3, 16, 16),
        "patch_embed.proj.bias": (c,),
    }
    if token:
        shapes["cls_token"] = (1, 1, c)
    if norm:
        shapes |= {"norm.weight": (c,), "norm.bias": (c,)}
    for i in range(depth):
        parts = {
            **{f"norm{k}.{kind}": (c,) for k in "12" for kind in ("weight", "bias")},
            **{"attn.qkv.weight": (3 * c, c), "attn.qkv.bias": (3 * c,)},
            **{"attn.proj.weight": (c, c), "attn.proj.bias": (c,)},
            **{"mlp.fc1.weight": (4 * c, c), "mlp.fc1.bias": (4 * c,)},
            **{"mlp.fc2.weight": (c, 4 * c), "mlp.fc2.bias": (c,)},
        }
        if relative:
            parts |= {f"attn.rel_pos_{k}": (2 * relative - 1, c // 2) for k in "hw"}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in parts.items()}
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def load(tmp_path, arrays, **fields):
    file = tmp_path / "model.safetensors"
    weight_files.write_safetensors(file, arrays)
    model = vit.Backbone(**(NARROW | fields))
    start = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    start = jax.tree.map(lambda x: np.full(x.shape, 7, np.float32), start)
    variables = {"params": {"backbone": start["params"]}}
    return weights.load_backbone(file, variables)["params"]["backbone"], file


def test_an_mae_file_leaves_relative_positions_as_they_are(tmp_path):
    arrays = state()
    found, file = load(tmp_path, arrays)
    grid = arrays["pos_embed"][0, 1:].reshape((4, 4, 8))
    np.testing.assert_array_equal(found["positions"], grid)
    attention = found["block0"]["attention"]
    np.testing.assert_array_equal(attention["row_positions"], 7)
    qkv = arrays["blocks.0.attn.qkv.weight"]
    np.testing.assert_array_equal(attention["qkv"]["kernel"], qkv.T)
    assert "class_token" not in found and "out_norm" not in found
    (family,) = families.families(file)
    assert family.name.startswith("a ViT without a classifier")


def test_positions_of_another_grid_are_resized(tmp_path):
    arrays = state(positions=36, relative=5, token=False, norm=False)
    found, _ = load(tmp_path, arrays)
    grid = arrays["pos_embed"][0].reshape((6, 6, 8))
    expected = positions.absolute(jax.numpy.asarray(grid), (4, 4))
    np.testing.assert_allclose(found["positions"], expected, atol=1e-6)
    table = arrays["blocks.0.attn.rel_pos_h"]  # 9 rows, the model's windows have 5
    rows = found["block0"]["attention"]["row_positions"]
    at = (np.arange(5) + 0.5) * 9 / 5 - 0.5
    expected = np.stack([np.interp(at, np.arange(9), x) for x in table.T], 1)
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_a_class_token_is_read_where_the_model_has_one(tmp_path):
    arrays = state()
    found, _ = load(
        tmp_path, arrays, window=0, relative=0, class_token=True, out_norm=True
    )
    np.testing.assert_array_equal(found["class_token"], arrays["cls_token"][0, 0])
    np.testing.assert_array_equal(found["class_position"], arrays["pos_embed"][0, 0])
    np.testing.assert_array_equal(found["out_norm"]["scale"], arrays["norm.weight"])


@pytest.mark.parametrize(
    "more, less, says",
    [
        ({"reg_token": (1, 4, 8)}, "", "not in the model: reg_token"),
        ({}, "blocks.0.mlp.fc1.bias", "not in the file: block0/mlp_expand/bias"),
        ({}, "pos_embed", "not in the file: positions"),
        ({"blocks.1.norm1.bias": (8,)}, "", "not in the model: blocks.1.norm1.bias"),
        ({"patch_embed.proj.weight": (8, 3, 8, 8)}, "", "embed/kernel has shape"),
    ],
)
def test_what_does_not_fit_is_named(more, less, says, tmp_path):
    arrays = state() | {k: np.zeros(shape, np.float32) for k, shape in more.items()}
    arrays = {k: v for k, v in arrays.items() if k != less}
    with pytest.raises(ValueError, match=says):
        load(tmp_path, arrays)


def test_tables_of_swin_are_resized_as_timm_does():
    """tests/goldens/make_position_goldens.py asked timm."""
    with np.load(GOLDENS / "positions.npz") as golden:
        table = golden["swin/table"]
        for n in (4, 8, 12):
            found = timm.swin_table(table, (2 * n - 1) ** 2)
            np.testing.assert_allclose(found, golden[f"swin/{n}"], atol=2e-6)
        np.testing.assert_array_equal(timm.swin_table(table, 169), table)
