"""Batches: order, sharding, resuming, flips, padding, overflow and bad images.

One deep thing: what `data.pipeline` promises about the batches of an epoch.
"""

import dataclasses
import json
import sys
import time
import types

import cv2
import numpy as np
import pytest

from frcnn_jax.data import pipeline
from frcnn_jax.data.example import decode, pick_boxes
from frcnn_jax.data.source import Example, Source
from frcnn_jax.types import Batch

H, W = 24, 32
SHAPE = dict(short_side=H, max_side=W, canvas=(H, W), max_boxes=4)


def picture(i, size=(H, W)):
    """Its number in the first channel, brighter to the right in the second."""
    h, w = size
    image = np.zeros((h, w, 3), np.uint8)
    image[..., 0] = i
    image[..., 1] = np.linspace(10, 250, w).astype(np.uint8)
    return image


def make_example(i, image=None, n=1, **fields):
    boxes = np.tile(np.float32([2, 3, 10, 20]), (n, 1))
    image = picture(i) if image is None else image
    classes, ignore = np.full(n, 1 + i % 2, np.int32), np.arange(n) % 2 == 1
    return Example(image, i, boxes, classes, ignore, **fields)


def make_source(n=7):
    return Source([make_example(i) for i in range(n)], ("even", "odd"))


def train(source, steps, *, options=SHAPE, **kwargs):
    kwargs = dict(batch_size=2, seed=0) | kwargs
    iterator = iter(pipeline.train_dataset(source, threads=2, **kwargs, **options))
    return [next(iterator) for _ in range(steps)]


def evaluate(source, batch_size=3, *, options=SHAPE, **kwargs):
    options = dict(batch_size=batch_size, threads=2) | options
    return list(pipeline.eval_dataset(source, **kwargs, **options))


def indices(batches):
    return [int(i) for b in batches for i in b.index]


def assert_same(a: Batch, b: Batch):
    for name, x, y in zip(Batch._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.fixture
def tiny(monkeypatch):
    """A module with a `load`, as a user would write one."""
    module = types.ModuleType("my_lab.tiny")
    module.load = lambda *, split, n=7: make_source(n if split == "train" else n + 1)
    monkeypatch.setitem(sys.modules, "my_lab", types.ModuleType("my_lab"))
    monkeypatch.setitem(sys.modules, "my_lab.tiny", module)
    return "my_lab.tiny"


def build(name, **changes):
    settings = dict(batch_size=2, eval_batch_size=3, seed=0, **SHAPE)
    settings |= dict(train_split="train", eval_split="val")
    return pipeline.build(name, **(settings | changes))


# ------------------------------------------------------------------------------ order


def test_batches_are_padded_numpy():
    (batch,) = train(make_source(), 1)
    assert isinstance(batch, Batch)
    assert batch.proposals is None
    arrays = zip(batch._fields[:-1], batch[:-1], strict=True)
    described = {k: (v.shape, v.dtype.name) for k, v in arrays}
    assert described == {
        "image": ((2, H, W, 3), "uint8"),
        "image_size": ((2, 2), "int32"),
        "original_size": ((2, 2), "int32"),
        "gt_boxes": ((2, 4, 4), "float32"),
        "gt_classes": ((2, 4), "int32"),
        "gt_valid": ((2, 4), "bool"),
        "gt_ignore": ((2, 4), "bool"),
        "index": ((2,), "int32"),
        "valid": ((2,), "bool"),
    }
    assert batch.valid.all()
    np.testing.assert_array_equal(batch.image[:, 0, 0, 0], batch.index)
    np.testing.assert_array_equal(batch.gt_classes[:, 0], 1 + batch.index % 2)


def test_every_epoch_is_another_permutation():
    order = indices(train(make_source(7), 7, batch_size=3))  # three epochs
    epochs = [order[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(e) == list(range(7)) for e in epochs)
    assert len({tuple(e) for e in epochs}) > 1


def test_the_seed_fixes_everything():
    for a, b in zip(*[train(make_source(), 6) for _ in range(2)], strict=True):
        assert_same(a, b)
    assert indices(train(make_source(), 6)) != indices(train(make_source(), 6, seed=1))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_make_the_batch_of_one(count):
    whole = train(make_source(), 5, batch_size=4)
    shares = [
        train(make_source(), 5, batch_size=4, process_index=p, process_count=count)
        for p in range(count)
    ]
    for step, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert all(len(p.index) == 4 // count for p in parts)
        fields = zip(*(part[:-1] for part in parts), strict=True)  # no proposals
        assert_same(step, Batch(*map(np.concatenate, fields)))


def test_more_images_in_a_batch_than_in_the_set():
    (batch,) = train(make_source(3), 1, batch_size=8)
    assert sorted(batch.index[:3]) == sorted(batch.index[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("steps", [0, 3, 9])
def test_a_restored_iterator_continues_with_the_next_batch(tiny, steps):
    iterator = build(tiny).train_batches()
    for _ in range(steps):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(4)]
    iterator.set_state(state)  # the same, gone back
    assert_same(next(iterator), expected[0])
    fresh = build(tiny).train_batches()
    fresh.set_state(state)
    for batch in expected:
        assert_same(next(fresh), batch)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_evaluation_sees_every_example_once_and_in_order(batch_size):
    batches = evaluate(make_source(7), batch_size)
    assert all(len(b.index) == batch_size for b in batches)
    valid = np.concatenate([b.valid for b in batches])
    assert np.array(indices(batches))[valid].tolist() == list(range(7))
    padding = batches[-1]
    assert not padding.gt_valid[~padding.valid].any()
    assert not padding.image[~padding.valid].any()


def test_evaluation_in_processes():
    shares = [
        evaluate(make_source(7), 4, process_index=p, process_count=2) for p in range(2)
    ]
    assert [len(s) for s in shares] == [2, 2]
    seen = [int(i) for s in shares for b in s for i in b.index[b.valid]]
    assert sorted(seen) == list(range(7))


def test_share_of_a_batch_must_be_whole():
    with pytest.raises(ValueError, match="batch_size=3.*multiple.*2"):
        evaluate(make_source(), 3, process_count=2)
    with pytest.raises(ValueError, match="process_index=2 of 2"):
        evaluate(make_source(), 4, process_index=2, process_count=2)


# ---------------------------------------------------------------------- geometry, flip


def test_boxes_follow_the_exact_ratio_of_sizes():
    example = make_example(0, picture(0, (35, 41)))._replace(
        boxes=np.float32([[0, 0, 41, 35], [4, 5, 20.5, 17.5]]),
        classes=np.int32([1, 2]),
        ignore=np.array([False, True]),
    )
    (batch,) = evaluate(Source([example], ("a", "b")), 1)
    h, w = batch.image_size[0]
    assert (h, w) == (24, 28)  # 41 * 24 / 35 = 28.1
    assert batch.original_size[0].tolist() == [35, 41]
    np.testing.assert_allclose(
        batch.gt_boxes[0, :2],
        [[0, 0, w, h], [4 * w / 41, 5 * h / 35, w / 2, h / 2]],
        rtol=1e-6,
    )
    assert batch.gt_valid[0].tolist() == [True, True, False, False]
    assert batch.gt_ignore[0].tolist() == [False, True, False, False]
    assert not batch.gt_boxes[0, 2:].any() and not batch.gt_classes[0, 2:].any()
    assert not batch.image[0, :, w:].any()


def test_flips_are_drawn_per_epoch_and_example_and_move_the_boxes():
    batches = train(make_source(8), 40, batch_size=4)
    flipped = {}
    for position, (i, image, boxes, size) in enumerate(
        (b.index[k], b.image[k], b.gt_boxes[k], b.image_size[k])
        for b in batches
        for k in range(4)
    ):
        mirrored = bool(image[0, 0, 1] > image[0, W - 1, 1])
        box = [W - 10, 3, W - 2, 20] if mirrored else [2, 3, 10, 20]
        np.testing.assert_array_equal(boxes[0], box)
        assert size.tolist() == [H, W]
        flipped[position // 8, int(i)] = mirrored
    assert len(flipped) == 160 and 50 < sum(flipped.values()) < 110
    assert len({flipped[e, 0] for e in range(20)}) == 2
    never = train(make_source(8), 20, flip=False)
    assert all((b.image[:, 0, 0, 1] == 10).all() for b in never)


def test_flips_do_not_depend_on_the_batch_size():
    def by_place(batch_size):
        batches = train(make_source(6), 24 // batch_size, batch_size=batch_size)
        return np.concatenate([b.image for b in batches])

    np.testing.assert_array_equal(by_place(1), by_place(4))


def test_flips_of_narrow_images_stay_inside_them():
    narrow = Source([make_example(0, picture(0, (48, 30)))], ("a",))
    for batch in train(narrow, 20, batch_size=1):
        h, w = batch.image_size[0]
        assert (h, w) == (24, 15)
        assert not batch.image[0, :, w:].any()
        assert batch.gt_boxes[0, 0, 2] <= w


def test_images_without_boxes_are_legal():
    empty = Source([make_example(i, n=0) for i in range(3)], ("a",))
    for batch in [*train(empty, 4), *evaluate(empty)]:
        assert not batch.gt_valid.any() and not batch.gt_boxes.any()


# --------------------------------------------------------------------- overflow, cache


def test_too_many_boxes_is_an_error_before_training():
    example = make_example(0, n=130)._replace(image_id="000123")
    message = (
        r"image 000123 has 130 boxes but data.max_boxes=100: raise it, or set "
        r"data.on_overflow='drop_smallest'"
    )
    options = SHAPE | dict(max_boxes=100)
    source = Source([make_example(1), example], ("a", "b"))
    with pytest.raises(ValueError, match=message):
        pipeline.train_dataset(source, batch_size=1, seed=0, **options)
    with pytest.raises(ValueError, match=message):
        pick_boxes(example, 100, "error")


def test_the_smallest_boxes_are_dropped_on_request():
    sizes = np.float32([3, 9, 1, 7, 5, 8])
    boxes = np.stack([0 * sizes, 0 * sizes, sizes, sizes], axis=1)
    example = make_example(0, n=6)._replace(boxes=boxes, classes=np.arange(1, 7))
    source = Source([example], tuple("abcdef"))
    options = SHAPE | dict(on_overflow="drop_smallest")
    (batch,) = evaluate(source, 1, options=options)
    assert batch.gt_boxes[0, :, 2].tolist() == [9, 7, 5, 8]
    assert batch.gt_classes[0].tolist() == [2, 4, 5, 6]
    assert source.report == [
        "0: dropped the smallest of 6 boxes (data.max_boxes=4)",
    ]


def test_the_cache_changes_nothing_and_reads_once(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), picture(9, (50, 60)))
    source = Source([make_example(0, str(path))], ("a",))
    plain = train(source, 6, batch_size=1)
    cached = pipeline.train_dataset(source, batch_size=1, seed=0, cache=True, **SHAPE)
    first = cached[0]
    path.unlink()
    assert_same(first, plain[0])
    for i, batch in enumerate(plain):
        assert_same(cached[i], batch)


# -------------------------------------------------------------------------- bad images


def on_disk(tmp_path, n=4, bad=()):
    examples = []
    for i in range(n):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), picture(i)[..., ::-1])
        if i in bad:
            path.write_bytes(path.read_bytes()[:60])
        examples.append(make_example(i, str(path)))
    return Source(examples, ("even", "odd"))


def test_a_bad_image_is_an_error_that_names_the_file(tmp_path):
    source = on_disk(tmp_path, bad=[2])
    cure = r"(?s)2\.png .*data.on_bad_image='skip'"
    with pytest.raises(ValueError, match=cure):
        train(source, 2)
    with pytest.raises(ValueError, match=cure):
        evaluate(source)
    (tmp_path / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=cure.replace(" ", "")):
        evaluate(source)


SKIP = SHAPE | dict(on_bad_image="skip")


def test_skipped_images_are_replaced_named_and_counted_once(tmp_path):
    source = on_disk(tmp_path, bad=[2])
    with pytest.warns(UserWarning, match="2.png: skipped"):
        batches = train(source, 6, options=SKIP)
    order = indices(batches)
    assert 2 not in order and order.count(3) == 6 and order.count(0) == 3
    assert [b.image[0, 0, 0, 0] for b in batches] == [b.index[0] for b in batches]
    assert len(source.report) == 1 and "2.png: skipped" in source.report[0]
    # Known from now on.
    assert indices(train(source, 6, options=SKIP)) == order
    assert len(source.report) == 1


def test_a_run_says_what_it_skipped_and_how_often(tmp_path, monkeypatch):
    source = on_disk(tmp_path, bad=[1])
    module = types.ModuleType("my_lab.photos")
    module.load = lambda *, split: source
    monkeypatch.setitem(sys.modules, "my_lab", types.ModuleType("my_lab"))
    monkeypatch.setitem(sys.modules, "my_lab.photos", module)
    data = build("my_lab.photos", on_bad_image="skip")
    assert data.skipped() == []
    with pytest.warns(UserWarning, match="1.png: skipped"):
        stream = data.train_batches()
        for _ in range(6):  # three epochs
            next(stream)
        list(data.eval_batches())
    (line,) = data.skipped()
    assert "1.png: skipped: cannot decode" in line and line.endswith("(4 times)")


def test_an_image_that_vanishes_in_the_middle_is_skipped_or_named(tmp_path):
    for policy in ("error", "skip"):
        source = on_disk(tmp_path)
        options = SHAPE | dict(on_bad_image=policy)
        batches = pipeline.train_dataset(source, batch_size=4, seed=0, **options)
        stream = iter(batches)
        assert sorted(next(stream).index) == [0, 1, 2, 3]
        (tmp_path / "3.png").unlink()
        if policy == "error":
            with pytest.raises(FileNotFoundError, match="3.png.*'?"):
                [next(stream) for _ in range(4)]
            continue
        with pytest.warns(UserWarning, match="3.png: skipped: no image file"):
            later = [next(stream) for _ in range(6)]
        assert 3 not in later[-1].index and later[-1].valid.all()
        (line,) = batches.skipped
        assert "3.png" in line


def test_skipped_images_are_not_valid_in_evaluation(tmp_path):
    source = on_disk(tmp_path, bad=[1])
    with pytest.warns(UserWarning, match="1.png: skipped"):
        (batch,) = evaluate(source, 4, options=SKIP)
    assert batch.valid.tolist() == [True, False, True, True]
    assert batch.index.tolist() == [0, 1, 2, 3]
    assert not batch.gt_valid[1].any() and not batch.image[1].any()


def test_nothing_left_to_train_on(tmp_path):
    source = on_disk(tmp_path, 1, bad=[0])
    with pytest.raises(ValueError, match="none of the images can be read: .*0.png"):
        train(source, 1, options=SKIP)
    with pytest.raises(ValueError, match="the split is empty"):
        train(Source([], ("a",)), 1)
    assert evaluate(Source([], ("a",))) == []


def test_an_image_of_another_size_than_annotated_is_an_error(tmp_path):
    source = on_disk(tmp_path, 1)
    wrong = Source([source[0]._replace(size=(99, 77))], source.classes)
    with pytest.raises(ValueError, match="0.png is 32x24 but .* says 77x99"):
        evaluate(wrong, 1)


def test_an_annotation_of_the_stored_orientation_wins(tmp_path):
    from tests.data.test_images import with_orientation

    path = tmp_path / "turned.jpg"
    data = cv2.imencode(".jpg", picture(0))[1].tobytes()
    path.write_bytes(with_orientation(data, 6))
    for size, shape in (((H, W), (H, W)), ((W, H), (W, H)), (None, (W, H))):
        example = make_example(0, str(path), size=size)
        assert decode(example).shape[:2] == shape


def test_arrays_of_another_kind_are_errors():
    for image in (np.zeros((8, 9), np.uint8), np.zeros((8, 9, 3), np.float32)):
        with pytest.raises(ValueError, match="expected uint8"):
            decode(make_example(3)._replace(image=image))


# -------------------------------------------------------------------- build, by module


def test_build(tiny):
    data = build(tiny)
    assert (len(data.train), len(data.eval)) == (7, 8)
    assert data.steps_per_epoch == 4 and len(data.eval_batches()) == 3
    for _ in range(2):  # each pass starts anew
        assert sum(int(b.valid.sum()) for b in data.eval_batches()) == 8
    assert len(build(tiny, n=20).train) == 20


def test_parts_of_a_split(tiny):
    data = build(tiny, train_split="train[:3]", eval_split="val[5:]")
    assert sorted(indices([next(data.train_batches())]))[0] < 3
    assert [e.image_id for e in data.train] == [0, 1, 2]
    assert [e.image_id for e in data.eval] == [5, 6, 7]
    with pytest.raises(ValueError, match="split=''"):
        build(tiny, train_split="")


def test_built_in_sources_by_name():
    data = build("shapes", num_images=4, size=64, max_boxes=6)
    batch = next(data.train_batches())
    assert batch.image.shape == (2, H, W, 3)
    assert batch.original_size.tolist() == [[64, 64]] * 2


def test_wrong_names_and_values(tiny):
    with pytest.raises(ValueError, match="no data source 'cocoo'.*coco, csv, dicts"):
        build("cocoo")
    with pytest.raises(ModuleNotFoundError, match="my_lab.huge"):
        build("my_lab.huge")
    with pytest.raises(TypeError, match="fliip"):
        build(tiny, fliip=True)
    with pytest.raises(ValueError, match="data.on_overflow='crop'"):
        build(tiny, on_overflow="crop")
    with pytest.raises(ValueError, match="data.on_bad_image='ignore'"):
        build(tiny, on_bad_image="ignore")
    with pytest.raises(ValueError, match="canvas=.*short_side=24"):
        build(tiny, canvas=(16, 16))


def test_splits_of_different_classes(tiny, monkeypatch):
    module = sys.modules[tiny]
    monkeypatch.setattr(
        module, "load", lambda *, split: Source([make_example(0)], (split,))
    )
    with pytest.raises(ValueError, match="'train' has the classes"):
        build(tiny)


def test_bccd(shared):
    root = str(shared / "data" / "bccd")
    shape = dict(short_side=120, max_side=160, canvas=(128, 160), max_boxes=40)
    data = build("voc", root=root, **shape, eval_batch_size=16)
    batches = list(data.eval_batches())
    assert sum(int(b.valid.sum()) for b in batches) == 87
    assert sum(int(b.gt_valid.sum()) for b in batches) == sum(
        len(e.boxes) for e in data.eval
    )
    for b in batches:
        w = b.gt_boxes[..., 2:] - b.gt_boxes[..., :2]
        assert (w[b.gt_valid] > 0).all() and (b.gt_boxes <= 160).all()


@pytest.mark.parametrize("reduced", [True, False])
def test_large_photographs_are_read_reduced(tmp_path, reduced):
    h, w = 8 * H + 3, 8 * W + 5
    path = tmp_path / "large.jpg"
    cv2.imwrite(str(path), picture(90, (h, w))[..., ::-1])
    example = make_example(0, str(path))._replace(boxes=np.float32([[9, 9, w, h]]))
    source = Source([example], ("a", "b"))
    (batch,) = evaluate(source, 1, options=SHAPE | dict(reduced=reduced))
    size = batch.image_size[0]
    assert batch.original_size[0].tolist() == [h, w]
    expected = np.array([9, 9, w, h]) * np.tile(size[::-1] / [w, h], 2)
    np.testing.assert_allclose(batch.gt_boxes[0, 0], expected, rtol=1e-5)
    whole = cv2.resize(picture(90, (h, w)), size[::-1].tolist())
    shown = batch.image[0, : size[0], : size[1]].astype(int)
    assert np.abs(shown - whole).mean() < 3
    wrong = Source([example._replace(size=(99, 77))], ("a", "b"))
    with pytest.raises(ValueError, match="large.jpg is .* says 77x99"):
        evaluate(wrong, 1, options=SHAPE | dict(reduced=reduced))


def test_evaluation_is_not_reduced_where_training_is_augmented(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (4 * H, 4 * W, 3), np.uint8)
    module = types.ModuleType("my_lab.noise")
    module.load = lambda *, split: Source([make_example(0, noise)], ("a", "b"))
    monkeypatch.setitem(sys.modules, "my_lab", types.ModuleType("my_lab"))
    monkeypatch.setitem(sys.modules, "my_lab.noise", module)
    spread = []
    for options in (dict(), dict(reduced=False), dict(augment=dict(brightness=0.1))):
        (batch,) = build("my_lab.noise", **options).eval_batches()
        spread.append(batch.image[0].std())
    assert spread[0] < 0.6 * spread[1] and spread[1] == spread[2]


def test_the_same_split_twice_is_loaded_once(tiny):
    data = build(tiny, train_split="val")
    assert data.train is data.eval
    assert len(data.eval_batches()) == 3 and next(data.train_batches()).valid.all()


def test_json_can_hold_the_state(tiny):
    stream = build(tiny).train_batches()
    next(stream)
    assert json.loads(json.dumps(stream.get_state())) == {"next_index": 1}


def test_batches_made_ahead_are_not_in_the_state(tiny):
    stream = build(tiny, threads=4).train_batches()
    first = next(stream)
    time.sleep(0.05)  # others are made meanwhile
    stream.set_state({"next_index": 0})
    assert_same(next(stream), first)


@pytest.mark.slow
def test_worker_processes_make_the_same_batches_and_share_their_state():
    options = dict(num_images=9, size=64, max_boxes=6)
    expected = build("shapes", **options).train_batches()
    expected = [next(expected) for _ in range(9)]
    taken = 0
    for workers, steps in ((2, 3), (3, 2), (0, 2), (2, 2)):
        stream = build("shapes", workers=workers, **options).train_batches()
        stream.set_state({"next_index": taken})
        for k in range(taken, taken + steps):
            assert_same(next(stream), expected[k])
        taken = stream.get_state()["next_index"]
        stream.close()
    assert taken == 9


@pytest.mark.slow
def test_what_workers_skip_is_named_and_counted(tmp_path):
    source = on_disk(tmp_path, bad=[2])
    found = []
    for workers in (0, 2):
        data = dataclasses.replace(source, report=[])
        batches = pipeline.train_dataset(
            data, batch_size=2, seed=0, workers=workers, **SKIP
        )
        stream = iter(batches)
        with pytest.warns(UserWarning, match="2.png: skipped") as caught:
            seen = [next(stream) for _ in range(8)]
        stream.close()
        assert len(caught) == 1
        found.append((indices(seen), dict(batches.skipped), data.report))
    assert found[0] == found[1]
    _, skipped, report = found[1]
    assert list(skipped) == report and sum(skipped.values()) == 4  # once an epoch
