"""A whole torchvision detector against its committed answer, without torch.

Its weights are made again from a seed;
`tests/parity/compare_torchvision.py --golden=FILE` wrote the rest. Live comparisons
on other seeds and sizes: the same script.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

GOLDENS = pathlib.Path(__file__).parent / "goldens"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r50_fpn", "mobilenet_v3_low"])
def test_detector_gives_torchvisions_detections(name, tmp_path):
    from tests.parity import compare_torchvision as compare

    with np.load(GOLDENS / f"torchvision_{name}.npz") as file:
        golden = {key: file[key] for key in file.files}
    seed, size = int(golden["seed"]), tuple(golden["size"].tolist())
    layers = [k.removeprefix("bias/") for k in golden if k.startswith("bias/")]
    spread = {k: (golden[f"scale/{k}"], golden[f"bias/{k}"]) for k in layers}
    weights = compare.random_weights(compare.shapes_of(name), seed)
    file = tmp_path / "weights.npz"
    compare.write_npz(file, compare.with_spread(weights, spread))

    _, _, rpn, detect, post = compare.compiled(name)
    variables, hw = compare.load(name, file), jnp.array(size)
    out, props = rpn(variables, compare.random_image(seed, size), hw)
    for i, stride in enumerate(sorted(out.features)):
        ours = out.features[stride][:, ::7, ::7, ::16]
        assert compare.relative(ours, golden[f"features/{i}"]) < 2e-4
    assert compare.relative(out.logits[:, ::97], golden["rpn_logits"]) < 5e-4
    assert compare.relative(out.deltas[:, ::97], golden["rpn_deltas"]) < 5e-4
    n = len(golden["proposals"])
    rois = jnp.zeros_like(props.boxes).at[:n].set(golden["proposals"])
    logits, deltas = detect(variables, out.features, rois, hw)
    assert compare.relative(logits[0, :n:50], golden["class_logits"]) < 5e-4
    assert compare.relative(deltas[0, :n:50], golden["class_deltas"][:, 1:]) < 5e-4
    logits, deltas = detect(variables, out.features, props.boxes, hw)
    found = post(props.boxes, props.valid, logits[0], deltas[0], hw)
    ours = compare.ours_as_dict(found)
    assert len(ours["boxes"]) == len(golden["boxes"]) > 50
    assert compare.differing(ours, compare.picked(golden)) == 0
