"""Whole detectors: the file beside the checkpoint, detection by detection."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from experiments import common
from frcnn_jax import export, models, to_onnx
from frcnn_jax.data.images import prepare, reduced_of
from frcnn_jax.models import vit
from frcnn_jax.to_onnx import quantize
from frcnn_jax.training.state import init_variables
from tests.training import small


def detector(cascade=False, **parts):
    config = small.config()
    if cascade:
        common.cascade(config)
    whole = config.model.to_dict() | parts
    config.model = {name: part for name, part in whole.items() if part is not None}
    config.postprocess.score = 0.0  # of a model that has learnt nothing
    model = models.build_detector(num_classes=4, **config.model.to_dict())
    variables = init_variables(jax.random.key(0), (64, 64, 3), model=model)
    if config.model.backbone.name in TODAY:
        variables = jax.tree_util.tree_map_with_path(stirred, variables)
    return model, variables, config.to_dict()


TODAY = ("convnext", "swin", "vit")


def stirred(path, x):
    """Noise on small initial values: branches, tables and tokens change the maps."""
    name = jax.tree_util.keystr(path)
    if "backbone" not in name or "kernel" in name:
        return x
    noise = np.random.default_rng(list(name.encode())).normal(0, 0.2, x.shape)
    return x + jnp.asarray(noise, x.dtype)


def images(b):
    rng = np.random.default_rng(0)
    sizes = np.int32([(64, 64), (48, 60), (33, 64), (20, 20)][-b:])
    image = rng.integers(0, 256, (b, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    for x, (h, w) in zip(image, sizes, strict=True):
        x[h:], x[:, w:] = 0, 0
    return image, sizes


def run(file, **inputs):
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return dict(zip(to_onnx.OUTPUTS, session.run(None, inputs), strict=True))


def assert_same(found, expected):
    expected = jax.device_get(expected)
    np.testing.assert_array_equal(found["count"], expected["valid"].sum(-1))
    np.testing.assert_array_equal(found["classes"], expected["classes"])
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=2e-3)
    assert (found["count"] > 3).all()


VARIANTS = dict(
    fpn={},
    c4=dict(
        fpn=None,
        backbone=dict(name="resnet", depth=10, out_strides=(16,)),
        anchors=dict(strides=(16,), sizes=((16.0, 32.0),), rounding="legacy"),
        roi_align=dict(strides=(16,), output_size=4, sampling_ratio=0),
        box_head=dict(name="resnet", depth=10),
    ),
    softmax_rpn=dict(rpn=dict(channels=8, objectness="softmax", depth=2)),
    cascade=dict(cascade=True),
    unaligned=dict(
        roi_align=dict(strides=(4, 8), output_size=3, aligned=False),
        box_head=dict(widths=(16,), convs=(8,), norm="group", class_agnostic=True),
    ),
    # Windows of 7 cells on maps of 16 and 8: padded, shifted, and cut by the extents.
    convnext=dict(
        backbone=dict(
            name="convnext", depths=(1, 2, 1, 1), width=8, out_strides=(4, 8)
        ),
    ),
    swin=dict(
        backbone=dict(name="swin", depths=(2, 2, 1, 1), width=32, out_strides=(4, 8))
    ),
    vitdet=dict(
        backbone=dict(
            name="vit",
            depth=2,
            width=16,
            heads=2,
            window=3,
            global_blocks=(1,),
            positions=3,
            relative=3,
        ),
        fpn=dict(name="simple_pyramid", channels=8, scales=(4, 2), pool_levels=0),
        rpn=dict(channels=8, depth=2),
        box_head=dict(widths=(16,), convs=(8,), norm="layer", class_agnostic=False),
    ),
    dinov2=dict(
        backbone=dict(
            name="vit", depth=2, width=16, heads=2, **(vit.DINOV2 | dict(positions=3))
        ),
        fpn=None,
        anchors=dict(strides=(14,), sizes=((16.0, 32.0),)),
        roi_align=dict(strides=(14,), output_size=3, sampling_ratio=0),
    ),
)


@pytest.mark.parametrize("b", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_batch_finds_what_the_checkpoint_finds(b):
    assert_batch("fpn", b)


@pytest.mark.slow
def test_a_batch_of_four_too():
    assert_batch("fpn", 4)


@pytest.mark.slow
@pytest.mark.parametrize("name, b", [(n, 2) for n in VARIANTS if n != "fpn"])
def test_other_detectors_too(name, b):
    assert_batch(name, b)


def assert_batch(name, b):
    model, variables, config = detector(**VARIANTS[name])
    image, sizes = images(b)
    file = to_onnx.batch_model(model, variables, config, batch_size=b)
    expected = jax.jit(
        lambda image, size: export.detect_batch(
            variables, image, size, model=model, config=config
        )
    )(image, sizes)
    assert_same(run(file, image=image, image_size=sizes), expected)
    shapes = {x.name: shape_of(x) for x in file.graph.output}
    assert shapes == dict(boxes=(b, 10, 4), scores=(b, 10), classes=(b, 10), count=(b,))


def shape_of(value):
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)


@pytest.mark.slow
def test_an_image_of_one_size_is_resized_inside():
    model, variables, config = detector()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(15, 0).repeat(15, 1)
    file = to_onnx.image_model(model, variables, config, size=image.shape[:2])
    expected = jax.jit(
        lambda image: export.detect_image(variables, image, model=model, config=config)
    )(image)
    assert_same(run(file, image=image), expected)


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_an_image_of_any_size_is_the_batch_of_its_canvas(quantized):
    model, variables, config = detector()
    batch = to_onnx.batch_model(model, variables, config)
    image, sizes = images(3)
    if quantized:
        feeds = [
            dict(image=x[None], image_size=s[None])
            for x, s in zip(image, sizes, strict=True)
        ]
        batch = quantize.quantize(batch, feeds)
    file = to_onnx.with_resizing(batch, config)
    onnx.checker.check_model(file, full_check=not quantized)
    assert [to_onnx.shape_of(x) for x in file.graph.input] == [["h", "w", 3]]
    shapes = {x.name: shape_of(x) for x in file.graph.output}
    assert shapes == dict(boxes=(10, 4), scores=(10,), classes=(10,), count=())
    rng = np.random.default_rng(0)
    data = config["data"]
    sides = data["short_side"], data["max_side"], data["canvas"]
    for h, w in ((48, 64), (100, 77), (400, 310)):
        image = rng.integers(0, 256, (6, 8, 3), np.uint8)
        image = np.kron(image, np.ones((67, 52, 1), np.uint8))[:h, :w]
        pixels, size = prepare(image, *sides, reduced=reduced_of(**data))
        expected = run(batch, image=pixels[None], image_size=np.int32([size]))
        found = run(file, image=image)
        scale = np.tile(np.divide((h, w), size)[::-1], 2)
        np.testing.assert_array_equal(found["count"], expected["count"][0])
        # A level or two of a pixel apart.
        np.testing.assert_allclose(found["scores"], expected["scores"][0], atol=2e-3)
        boxes = expected["boxes"][0] * scale
        np.testing.assert_allclose(found["boxes"], boxes, atol=0.5)
        assert found["boxes"][: found["count"]].max() > 0.5 * max(h, w)


@pytest.mark.slow
def test_outputs_are_static_by_inference_alone():
    """Not by declaration: the rows of NMS become a fixed number in the graph."""
    model, variables, config = detector()
    file = to_onnx.batch_model(model, variables, config, batch_size=2)
    for output in file.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(file, strict_mode=True, data_prop=True)
    assert shape_of(inferred.graph.output[0]) == (2, 10, 4)
    assert [shape_of(x) for x in inferred.graph.output[1:]] == [(2, 10), (2, 10), (2,)]
    assert {o.domain for o in file.opset_import} == {""}


def test_external_proposals_are_refused():
    config = small.config()
    del config.model.anchors, config.model.rpn
    config.algorithm, config.model.external_proposals = "fast_rcnn", True
    model = models.build_detector(num_classes=4, **config.model.to_dict())
    with pytest.raises(ValueError, match="'fast_rcnn' needs proposals from outside"):
        to_onnx.batch_model(model, {}, config.to_dict())
