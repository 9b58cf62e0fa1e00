import numpy as np
import pytest

from frcnn_jax.training import faults
from frcnn_jax.types import Proposals
from tests.training import small


@pytest.mark.parametrize("with_proposals", [False, True])
def test_a_batch_comes_back_as_it_was(with_proposals, tmp_path):
    batch = small.batch(3)
    if with_proposals:
        boxes = np.ones((2, 5, 4), np.float32)
        own = Proposals(boxes, boxes[..., 0], boxes[..., 0] > 0)
        batch = batch._replace(proposals=own)
    faults.save_batch(tmp_path / "b.npz", batch, step=7)
    found, step = faults.load_batch(tmp_path / "b.npz")
    assert step == 7
    small.assert_trees_equal(found, batch)


def test_another_file_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", step=3, image=np.zeros(3))
    with pytest.raises(ValueError, match="x.npz holds no batch .*not_finite_STEP"):
        faults.load_batch(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", step=np.array([{}], object))
    with pytest.raises(ValueError, match="y.npz is not a readable .npz"):
        faults.load_batch(tmp_path / "y.npz")


def test_the_term_and_the_file_are_named(tmp_path):
    faults.check({"rpn_cls": 1.0}, small.batch(0), step=4, workdir=tmp_path)
    assert not list(tmp_path.iterdir())
    values = {"rpn_cls": 1.0, "roi_box": float("nan"), "grad_norm_fpn": float("inf")}
    with pytest.raises(FloatingPointError) as error:
        faults.check(values, small.batch(5), step=4, workdir=tmp_path)
    for word in ("step 4: roi_box, grad_norm_fpn (", "not_finite_4.npz", "replay.py"):
        assert word in str(error.value)
    small.assert_trees_equal(
        faults.load_batch(tmp_path / "not_finite_4.npz")[0], small.batch(5)
    )
