"""What the recipe chooses, from facts made by hand; and that a run keeps it."""

import json
import logging
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from experiments import finetune
from frcnn_jax.data import facts as data_facts
from frcnn_jax.data import pipeline, validate
from frcnn_jax.data.facts import Facts, facts_of, relative_sides
from frcnn_jax.data.images import check_canvas
from frcnn_jax.data.source import Example, Source
from frcnn_jax.data.sources import shapes
from frcnn_jax.training import compiling, recipe, timing
from frcnn_jax.training import config as configs
from frcnn_jax.training.optimizer import make_optimizer
from tests.training import small

CPU = recipe.Device("cpu", 1, 16.0)
GPU = recipe.Device("gpu", 1, 80.0)


def facts(n=200, size=(480, 640), side=100.0, each=5, slots=None, num_classes=3):
    """`n` images of one size with `each` square objects of one side."""
    box = np.array([10.0, 10.0, 10.0 + side, 10.0 + side], np.float32)
    return Facts(
        images=n,
        sizes=np.tile(np.array(size), (n, 1)),
        boxes=np.tile(box, (n * each, 1)),
        image=np.repeat(np.arange(n), each),
        classes=np.ones(n * each, int),
        slots=each if slots is None else slots,
        num_classes=num_classes,
    )


def chosen(facts, device=CPU, **given):
    config: Any = finetune.get_config()
    for name, value in {"model.backbone.pretrained": "x.pth", **given}.items():
        recipe.fill(config, {name: value})
    values, lines = recipe.choose(config.to_dict(), facts, device)
    recipe.fill(config, values)
    assert len(lines) == len(values)
    return values, config


def test_facts_by_hand():
    def make(i, boxes, ignore, size=(50, 40)):
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        classes = np.full(len(boxes), 2, np.int32)
        return Example(f"{i}.png", i, boxes, classes, np.array(ignore, bool), size)

    source = Source(
        [
            make(0, [[0, 0, 10, 40], [1, 1, 9, 9]], [False, True]),
            make(1, [], []),
            make(2, [[0, 0, 5, 5]], [False], size=(90, 100)),
            make(3, [[0, 0, 5, 5]], [False], size=None),  # cannot be read
        ],
        ("a", "b"),
    )
    found = facts_of(source)
    assert (found.images, found.slots, found.num_classes) == (4, 2, 2)
    assert found.sizes.tolist() == [[50, 40], [50, 40], [90, 100]]
    assert found.boxes.tolist() == [[0, 0, 10, 40], [0, 0, 5, 5]]
    assert found.image.tolist() == [0, 2] and found.classes.tolist() == [2, 2]
    np.testing.assert_allclose(relative_sides(found), [20 / 40, 5 / 90], rtol=1e-6)
    assert found.objects == 3  # 2 in the 3 that were looked at, of 4
    nothing = facts_of(Source([], ("a",)))
    assert nothing.sizes.shape == (0, 2) and nothing.boxes.shape == (0, 4)


def test_no_leaf_stays_open():
    values, config = chosen(facts())
    assert set(values) == set(recipe.LEAVES)
    assert not [n for n in recipe.LEAVES if recipe.is_open(config, n)]
    configs.check(config)
    assert json.loads(config.to_json())["data"]["short_side"] == 288


@pytest.mark.parametrize(
    "device, size, side, expected",
    [
        (CPU, (480, 640), 100, 288),  # 300 and no small objects
        (GPU, (600, 800), 100, 800),
        (GPU, (200, 300), 100, 288),  # half again what there is (300), in 32s
        (CPU, (480, 640), 20, 384),  # 16 pixels: 384 * 20 / 480
        (CPU, (480, 640), 8, 448),  # 960 would be needed: what a CPU can do
        (CPU, (150, 200), 4, 288),  # but no more than twice the images
        (GPU, (800, 800), 10, 1024),
    ],
)
def test_the_short_side(device, size, side, expected):
    values, _ = chosen(facts(size=size, side=side), device)
    assert values["data.short_side"] == expected
    least = min(side * expected / min(size), 16)
    assert least >= 15 or expected in (448, 1024, 288)


@pytest.mark.parametrize(
    "shapes, canvas, longest",
    [
        ([(480, 640)] * 10, (288, 384), 384),
        ([(640, 480)] * 10, (384, 288), 384),
        ([(480, 640)] * 9 + [(640, 480)], (288, 384), 384),  # few: shrunk further
        ([(480, 640)] * 5 + [(640, 480)] * 5, ((288, 384), (384, 288)), 384),
        ([(500, 500)] * 10, (288, 288), 288),
        ([(480, 640)] * 8 + [(100, 900)] * 2, (288, 736), 720),
    ],
)
def test_the_canvas(shapes, canvas, longest):
    some = facts(n=len(shapes))
    values, config = chosen(some._replace(sizes=np.array(shapes)))
    assert values["data.canvas"] == canvas
    h, w = np.array(canvas).reshape(-1, 2).min(0)
    assert h % 32 == w % 32 == 0
    data = config.data
    check_canvas(data.short_side, data.max_side, data.canvas)


def test_a_flag_overrides_and_the_rest_follows():
    values, config = chosen(facts(), **{"batch_size": 4, "data.short_side": 512})
    assert "batch_size" not in values and "data.short_side" not in values
    assert values["optimizer.learning_rate"] == 0.01  # 0.0025 an image
    assert values["total_steps"] == 500  # 10 epochs of 200 images
    assert values["data.canvas"] == (512, 704) and config.data.short_side == 512
    assert values["model.anchors.sizes"][0] != 16.0
    values, config = chosen(facts(), **{"total_steps": 90})
    assert (values["eval_every"], values["optimizer.warmup_steps"]) == (45, 6)


@pytest.mark.parametrize(
    "given, device, steps",
    [
        (facts(n=50), CPU, 800),  # 1600 images at the least
        (facts(n=300), CPU, 1500),  # 10 epochs
        (facts(n=5000), CPU, 2000),  # 4000 images at the most
        (facts(n=1000), GPU, 1500),  # 12 epochs of batches of 8
        (facts(n=400, each=1), CPU, 2000),
        (facts(n=20_000), GPU, 30_000),
    ],
)
def test_steps(given, device, steps):
    assert chosen(given, device)[0]["total_steps"] == steps


def test_rare_objects_are_visited_often_enough():
    sparse = facts(n=1000, each=0)._replace(
        boxes=np.float32([[1, 1, 200, 200]] * 100), image=np.arange(100)
    )
    assert sparse.objects == 100
    values, _ = chosen(sparse, GPU)
    assert values["total_steps"] * values["batch_size"] * 0.1 >= 1500


def test_the_batch_follows_the_memory():
    for memory, count, batch in ((80, 1, 8), (2, 1, 1), (80, 8, 16), (4, 4, 8)):
        device = recipe.Device("gpu", count, float(memory))
        values, _ = chosen(facts(n=5000, size=(800, 1344)), device)
        assert values["batch_size"] == batch and batch % count == 0
    for count in (1, 2, 3):
        device = recipe.Device("cpu", count, 16.0)
        assert chosen(facts(), device)[0]["batch_size"] % count == 0


def test_slots_cover_every_image():
    assert chosen(facts(slots=3))[0]["data.max_boxes"] == 8
    assert chosen(facts(slots=41))[0]["data.max_boxes"] == 48


def test_what_is_frozen():
    few, many = facts(n=100), facts(n=5000)
    assert chosen(few, GPU)[0]["frozen"][-1] == "backbone/layer2"
    assert chosen(many, GPU)[0]["frozen"] == recipe.STEM
    assert chosen(many, CPU)[0]["frozen"][-1] == "backbone/layer2"
    scratch, _ = chosen(few, **{"model.backbone.pretrained": ""})
    assert scratch["frozen"] == () and scratch["model.backbone.norm"] == "group"
    assert scratch["total_steps"] == 2 * chosen(few)[0]["total_steps"]


def test_anchors_only_where_they_reach_more():
    """Squares of 64 pixels on the lattice of anchors: one of them is each square."""
    low = 16.0 * np.stack(np.meshgrid(np.arange(1, 19), np.arange(1, 13)), -1)
    low = low.reshape(-1, 2)
    exact = np.concatenate([low, low + 64], axis=1).astype(np.float32)
    fits = facts(n=len(exact), size=(288, 384), each=1)._replace(boxes=exact)
    assert chosen(fits)[0]["model.anchors.sizes"] == (16.0, 32.0, 64.0, 128.0, 256.0)
    rng = np.random.default_rng(0)
    low = rng.uniform((0, 0), (180, 220), (1000, 2))
    flat = np.concatenate([low, low + (200, 60)], axis=1).astype(np.float32)
    values, _ = chosen(facts(size=(288, 384))._replace(boxes=flat))
    assert min(values["model.anchors.aspect_ratios"]) < 0.4
    kept, _ = chosen(
        facts(size=(288, 384))._replace(boxes=flat),
        **{"model.anchors.aspect_ratios": (1.0,)},
    )
    assert "model.anchors.aspect_ratios" not in kept


def test_no_objects_and_no_known_sizes():
    empty = facts(each=0)
    chosen(empty)
    unknown = empty._replace(sizes=np.zeros((0, 2), int))
    assert chosen(unknown)[0]["data.canvas"] == (288, 384)


def test_the_weights_file_says_what_it_needs(shared):
    path = str(shared / "weights" / "resnet50_imagenet_keras_fp16.npz")
    values, config = chosen(facts(), **{"model.backbone.pretrained": path})
    assert values["model.backbone.stride_in_1x1"] is True
    assert values["model.backbone.norm_eps"] == 1e-3
    assert values["model.pixel_mean"] == (123.68, 116.779, 103.939)
    assert values["model.pixel_std"] == (1.0, 1.0, 1.0)
    other, _ = chosen(facts())
    assert other["model.backbone.stride_in_1x1"] is False
    assert other["model.backbone.norm_eps"] == 1e-5


# ------------------------------------------------------------------------------- a run


def own(monkeypatch, n=6):
    """The splits of a source of one's own, in place of what the config names."""
    rng = np.random.default_rng(0)

    def make(i):
        image = rng.integers(0, 255, (60, 80, 3), np.uint8)
        boxes = np.float32([[5, 5, 45, 40], [20, 10, 60, 50]])
        return Example(image, i, boxes, np.int32([1, 2]), np.zeros(2, bool), (60, 80))

    split = validate.validate(Source([make(i) for i in range(n)], ("a", "b")))
    calls = []

    def splits_of(data):
        calls.append(data)
        return split, split

    monkeypatch.setattr(recipe.pipeline, "splits_of", splits_of)
    return calls


def test_a_config_is_completed_once_and_explained(monkeypatch, caplog, tmp_path):
    own(monkeypatch)
    config = finetune.get_config()
    caplog.set_level(logging.INFO, "frcnn_jax")
    done, sources = recipe.complete(config, tmp_path)
    assert sources is not None and len(sources[0]) == 6
    assert recipe.is_open(config, "total_steps")  # the given one is left as it was
    text = caplog.text
    for name in recipe.LEAVES:
        assert f"recipe: {name}=" in text
    assert "hf:timm/resnet50" in text and "AP 0.579" in text  # no weights are named
    again, nothing = recipe.complete(done, tmp_path)
    assert again is done and nothing is None


def test_the_log_says_when_not_all_images_were_looked_at(monkeypatch, caplog):
    """Of a source that makes its examples on demand, as many as `LOOK`."""
    monkeypatch.setattr(data_facts, "LOOK", 5)
    split = shapes.load(split="val", num_images=20)
    monkeypatch.setattr(recipe.pipeline, "splits_of", lambda data: (split, split))
    caplog.set_level(logging.INFO, "frcnn_jax")
    recipe.complete(finetune.get_config())
    assert (
        "recipe: chosen from 5 of 20 training images, which lie evenly" in caplog.text
    )


def test_a_resumed_run_takes_its_values_from_the_checkpoint(
    monkeypatch, caplog, tmp_path
):
    calls = own(monkeypatch)
    done, _ = recipe.complete(finetune.get_config(), tmp_path)
    with done.unlocked():
        done.total_steps = 77
    monkeypatch.setattr(
        recipe, "_begun", lambda workdir: configs.leaves(done.to_dict())
    )
    resumed, sources = recipe.complete(finetune.get_config(), tmp_path)
    assert resumed.total_steps == 77 and sources is None and len(calls) == 1
    configs.check_resumed(done, resumed)


@pytest.mark.parametrize("minutes", [math.nan, math.inf, -1.0, 1e300])
def test_minutes_that_are_none_are_refused(minutes):
    config = finetune.get_config()
    config.minutes = minutes
    with pytest.raises(ValueError, match="config.minutes"):
        recipe.complete(config, pathlib.Path("nowhere"))


def test_minutes_become_steps_once(monkeypatch, caplog):
    own(monkeypatch)
    asked = []

    def time_steps(c, sources):
        asked.append(c["total_steps"])
        make_optimizer(c["total_steps"], c["batch_size"], **c["optimizer"])  # accepts
        return 30.0, 1.5

    monkeypatch.setattr(timing, "time_steps", time_steps)
    clock = iter((1000.0, 1100.0))
    monkeypatch.setattr(recipe.time, "perf_counter", lambda: next(clock, 1100.0))
    config = finetune.get_config()
    config.minutes = 10.0
    caplog.set_level(logging.INFO, "frcnn_jax")
    done, _ = recipe.complete(config)
    # 600 s less 60 for compiling twice, 2 x 6 images at 0.65 of a step a batch, and
    # what the timing took: a hundred seconds, says its clock. Later steps are slower.
    batch, step = done.batch_size, 1.5 * 1.05
    left = 600 - 100 - 60 - 2 * 6 / batch * step * 0.65
    assert done.total_steps == int(left / step) and len(asked) == 1
    assert done.eval_every == -(-done.total_steps // 2)
    assert done.optimizer.learning_rate == pytest.approx(0.0025 * batch)
    assert "10 minutes, of which 100 s are spent, 60 s for" in caplog.text
    configs.check(done)
    for every, times in ((100_000, 1), (100, 3)):  # 440 s are at most 279 steps
        clock = iter((1000.0, 1100.0))
        config.eval_every = every
        done, _ = recipe.complete(config)
        left = 600 - 100 - 60 - times * 6 / batch * step * 0.65
        assert (done.total_steps, done.eval_every) == (int(left / step), every)
    given = finetune.get_config()
    given.minutes, given.total_steps = 10.0, 5
    with pytest.raises(ValueError, match="config.minutes=10 and config.total_steps=5"):
        recipe.complete(given)


@pytest.mark.slow
def test_compiled_steps_are_timed():
    c = configs.check(small.config(batch_size=2))
    sources = pipeline.splits_of(c["data"])
    first, step = timing.time_steps(c, sources)
    assert first > 0 and 0 < step < 60
    before = compiling.spared()
    again, _ = timing.time_steps(c, sources)
    # From the cache of compiled programs, and counted as if it were compiled.
    assert (spared := compiling.spared() - before) > 0.5
    assert again > spared
