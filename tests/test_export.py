import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax import export, models
from frcnn_jax.data import images
from frcnn_jax.detector import Detector
from frcnn_jax.training import checkpoint
from frcnn_jax.training.state import init_variables
from tests.training import small


def smooth(rng, size):
    coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(images.resize(coarse, size), np.uint8)


@pytest.mark.parametrize(
    "size, reduced",  # enlarged; less than 2 times as large; 2; 8; very narrow
    [((30, 40), True), ((100, 75), True), ((131, 300), True), ((1200, 900), True)]
    + [((3, 400), True), ((131, 300), False)],
)
def test_resize_is_that_of_the_pipeline_within_a_few_levels(rng, size, reduced):
    image = smooth(rng, size)
    expected, fitted = images.prepare(image, 64, 96, (64, 96), reduced=reduced)
    found = jax.jit(lambda i, s: export.resize(i, s, canvas=(64, 96), reduced=reduced))(
        image, jnp.array(fitted)
    )
    assert found.dtype == jnp.uint8
    levels = np.abs(np.asarray(found, int) - expected)
    assert levels.max() <= 4 and levels.mean() < 0.5
    assert not np.asarray(found)[fitted[0] :].any()
    assert not np.asarray(found)[:, fitted[1] :].any()


SIDES = [
    dict(short_side=300, max_side=400, canvas=((304, 400), (400, 304), (400, 400))),
    dict(short_side=800, max_side=1333, canvas=((800, 1344), (1344, 800))),
    dict(short_side=150, max_side=250, canvas=(160, 256)),
]


@pytest.mark.parametrize("sides", SIDES)
def test_sizes_are_those_of_the_pipeline(rng, sides):
    """Of 20,000 sizes all, and those of the pipeline are the exact ones."""
    log = rng.uniform(0, np.log(6000), (20_000, 2))
    sizes = np.exp(log).astype(np.int32)
    sizes[:500] = rng.integers(1, 60, (500, 2))  # halves are frequent there
    sizes[:50, 1] = sizes[:50, 0]
    found = jax.jit(jax.vmap(lambda size: export.fit(size, **sides)))(sizes)
    options = images.canvases(sides["canvas"])
    short, long = sides["short_side"], sides["max_side"]

    def exact(size):
        """Every canvas by fractions; the best is the last of the sorted ones."""
        found = []
        for i, (high, wide) in enumerate(options):
            (h, w), limit = size, Fraction(short, min(size))
            scale = min(
                limit, Fraction(long, max(size)), Fraction(high, h), Fraction(wide, w)
            )
            half = Fraction(1, 2)
            fitted = tuple(max(1, math.floor(x * scale + half)) for x in size)
            found.append((fitted[0] * fitted[1], -high * wide, -i, fitted))
        return max(found)[-1]

    sizes = [tuple(map(int, size)) for size in sizes]
    pipeline = [
        images.fit(
            s, short, long, options[images.choose_canvas(s, short, long, options)]
        )
        for s in sizes
    ]
    np.testing.assert_array_equal(found, pipeline)
    np.testing.assert_array_equal(pipeline[:3000], [exact(s) for s in sizes[:3000]])


@pytest.fixture(scope="module")
def detector():
    config = small.config()
    config.postprocess.score = 0.0  # of a model that has learnt nothing
    model = models.build_detector(num_classes=4, **config.model.to_dict())
    variables = init_variables(jax.random.key(0), (64, 64, 3), model=model)
    meta = checkpoint.Meta(config, tuple("abcd"), (1, 2, 3, 4), 0, {}, None)
    return Detector(model, variables, meta)


def loaded(exported):
    return jax.jit(jax.export.deserialize(exported.serialize()).call)


def assert_same(found, expected, i, *, atol=1e-4):
    for name in ("valid", "classes"):
        np.testing.assert_array_equal(found[name][i], getattr(expected, name)[i])
    for name in ("scores", "boxes"):
        np.testing.assert_allclose(
            found[name][i], getattr(expected, name)[i], rtol=1e-4, atol=atol
        )


@pytest.mark.slow
def test_export_batch_finds_what_the_detector_finds_for_any_batch(rng, detector):
    config = detector.config.to_dict()
    call = loaded(export.export_batch(detector.model, detector.variables, config))
    for b in (1, 3):
        given = [smooth(rng, size) for size in ((64, 64), (48, 64), (64, 32))[:b]]
        expected = detector(given)
        prepared = [images.prepare(x, 64, 64, (64, 64)) for x in given]
        pixels, sizes = (np.stack(x) for x in zip(*prepared, strict=True))
        found = call(pixels, sizes.astype(np.int32))
        assert found["valid"].any()
        for i in range(b):
            assert_same(found, expected, i)


CANVASES = [
    ((64, 96), (96, 64)),
    ((64, 64), (64, 96), (96, 64)),
    ((96, 96), (64, 128), (128, 64)),
]


@pytest.mark.slow
@pytest.mark.parametrize("canvases", CANVASES)
def test_a_canvas_that_holds_several_gives_what_each_gives(rng, canvases, detector):
    """Of images of 67 sizes; biases are not zero, so that padding would be seen."""
    config = detector.config.copy_and_resolve_references()
    config.data.update(canvas=canvases, short_side=64, max_side=96)
    leaves, tree = jax.tree.flatten(detector.variables)
    leaves = [x + rng.normal(0, 0.1, x.shape).astype(np.float32) for x in leaves]
    variables = tree.unflatten(leaves)
    meta = checkpoint.Meta(config, tuple("abcd"), (1, 2, 3, 4), 0, {}, None)
    own = Detector(detector.model, variables, meta)
    call = loaded(export.export_batch(detector.model, variables, config.to_dict()))
    high, wide = export.canvas_of(config.to_dict())
    for _ in range(67):
        image = smooth(rng, tuple(rng.integers(20, 200, 2).tolist()))
        pixels, size = images.prepare(image, 64, 96, canvases, reduced=True)
        whole = np.zeros((1, high, wide, 3), np.uint8)
        whole[0, : pixels.shape[0], : pixels.shape[1]] = pixels
        found = call(whole, np.array([size], np.int32))
        scale = (np.array(image.shape[:2]) / size)[[1, 0, 1, 0]]
        found["boxes"] = np.asarray(found["boxes"]) * scale[None, None]
        assert found["valid"].any()
        assert_same(found, own([image]), 0, atol=0.02)


@pytest.mark.slow
def test_export_image_takes_any_size_and_answers_in_its_pixels(rng, detector):
    config = detector.config.to_dict()
    exported = export.export_image(detector.model, detector.variables, config)
    assert exported.platforms == export.PLATFORMS
    call = loaded(exported)
    same = smooth(rng, (64, 48))  # needs no resizing: equal to the last digits
    found = {name: x[None] for name, x in call(same).items()}
    assert_same(found, detector([same]), 0)
    larger = same.repeat(2, 0).repeat(2, 1)  # means of 2 x 2 give it back
    twice = {name: x[None] for name, x in call(larger).items()}
    np.testing.assert_allclose(twice["boxes"], 2 * found["boxes"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(twice["scores"], found["scores"], rtol=1e-4)


@pytest.mark.slow
def test_export_of_one_size_refuses_another(detector):
    config = detector.config.to_dict()
    exported = export.export_image(
        detector.model, detector.variables, config, size=(40, 64), platforms=("cpu",)
    )
    assert exported.platforms == ("cpu",)
    with pytest.raises(ValueError, match="40"):
        exported.call(np.zeros((64, 64, 3), np.uint8))


def test_what_needs_proposals_from_outside_is_refused():
    config = small.config()
    del config.model.anchors, config.model.rpn
    config.algorithm, config.model.external_proposals = "fast_rcnn", True
    model = models.build_detector(num_classes=4, **config.model.to_dict())
    with pytest.raises(ValueError, match="'fast_rcnn' needs proposals from outside"):
        export.export_image(model, {}, config.to_dict())


def test_canvas_of_several_holds_them_all():
    config = {"data": {"canvas": ((8, 9), (10, 4))}}
    assert export.canvas_of(config) == (10, 9)
