"""A run on two canvases: one compilation each, the same result in every way."""

import numpy as np
import pytest

from frcnn_jax.detector import load
from frcnn_jax.training import loop, metrics
from frcnn_jax.training.evaluate import evaluate_checkpoint
from tests.training import small

CANVAS = ((64, 32), (32, 64))


def pictures(split):
    rng = np.random.default_rng(len(split))
    out = []
    for i in range(8):
        h, w = CANVAS[i % 3 > 0]
        image = rng.integers(0, 256, (h, w, 3), np.uint8)
        out.append(dict(image=image, boxes=[[4, 4, 28, 28]], labels=["a"]))
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Where the run lies, and how often the step was traced, with what shapes."""
    workdir, traced = tmp_path_factory.mktemp("buckets"), []
    c = small.config(total_steps=6, checkpoint_every=6, eval_every=6)
    c.data = dict(
        name="dicts:tests.training.test_buckets.pictures",
        train_split="train",
        eval_split="val",
        classes=("a", "b"),
        short_side=32,
        max_side=64,
        canvas=CANVAS,
        max_boxes=2,
        augment=dict(jitter=(0.8, 1.5), brightness=0.1),
    )

    def counted(state, batch, key, **kwargs):
        traced.append(batch.image.shape[1:3])
        return train_step(state, batch, key, **kwargs)

    train_step = loop.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", counted)
        result = loop.train_and_evaluate(c, workdir)
    return workdir, traced, result


@pytest.mark.slow
def test_one_compilation_for_each_canvas(run):
    workdir, traced, _ = run
    assert sorted(traced) == sorted(CANVAS)
    rows = [r for r in metrics.read(workdir / "metrics.jsonl") if r["group"] == "train"]
    assert len(rows) == 6 and all(np.isfinite(r["total"]) for r in rows)
    assert all(0 <= r["padding"] < 1 for r in rows)
    waiting = [r["waiting"] for r in rows if "waiting" in r]
    # Each compilation starts the clock again: one row of no speed for each.
    assert len(waiting) >= 4 and all(0 <= share <= 1 for share in waiting)


@pytest.mark.slow
def test_evaluation_and_detector_agree_on_every_image(run, tmp_path):
    workdir, _, result = run
    name = "dicts:tests.training.test_buckets.pictures"
    with pytest.raises(
        ValueError, match="would be imported and called.*--set=data.name"
    ):
        evaluate_checkpoint(workdir, tmp_path)
    changes = ["postprocess.score=0.0", f"data.name={name}"]
    annotations, *_ = evaluate_checkpoint(workdir, tmp_path, changes=changes)
    assert len(annotations["images"]) == 8
    assert result.keys() >= {"AP"}
    images = [p["image"] for p in pictures("val")]
    one, three = (load(workdir, batch_size=b)(images) for b in (1, 3))
    assert one.boxes.shape[0] == 8
    np.testing.assert_allclose(one.scores, three.scores, atol=1e-5)
    np.testing.assert_allclose(one.boxes, three.boxes, atol=1e-2)
