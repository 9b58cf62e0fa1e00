"""Prediction, a training step and their parts, lowered for chips that are not here.

Everything is abstract: no weights are made and nothing is computed. The images are
split over the devices, as `training.devices` does; parts run on one device.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from frcnn_jax import models
from frcnn_jax.training import algorithms
from frcnn_jax.training.algorithms import fast_rcnn
from frcnn_jax.training.optimizer import make_optimizer, trainable_mask
from frcnn_jax.training.state import init_variables, initial_state
from frcnn_jax.training.step import image_keys, predict_step, train_step
from frcnn_jax.types import Batch, Proposals

Shape = jax.ShapeDtypeStruct
WHOLE = ("prediction", "train")
PARTS = (
    *("features", "rpn_head", "proposals", "rpn_targets", "roi_targets"),
    *("roi_align", "roi_align_backward", "box_head", "postprocess"),
)


class Program(NamedTuple):
    """A function of arrays, abstract arguments, and which are split over devices."""

    function: Callable[..., Any]
    arguments: tuple[PyTree, ...]
    split: tuple[bool, ...]  # along axis 0; the others are whole on every device
    results_split: Any
    donate: tuple[int, ...] = ()


def build(
    name: str,
    config: Mapping[str, Any],
    *,
    num_classes: int,
    batch: int,
    canvas: tuple[int, int],
) -> Program:
    """The program `name` of `WHOLE` or `PARTS` for `batch` images on a canvas (h, w).

    `config` is that of `training.config.check`. Raises ValueError for a part that the
    algorithm has not.
    """
    model = models.build_detector(num_classes=num_classes, **config["model"])
    key = jax.eval_shape(jax.random.key, 0)
    variables = jax.eval_shape(
        partial(init_variables, image_shape=(*canvas, 3), model=model), key
    )
    images = abstract_batch(batch, canvas, config["data"]["max_boxes"])
    if name == "train":
        return _training(config, model, variables, images, key)
    if name == "prediction":
        predict = partial(predict_step, model=model, config=config)
        return Program(predict, (variables, images), (False, True), True)
    if config["algorithm"] != "faster_rcnn" or name not in PARTS:
        raise ValueError(
            f"part {name!r} of algorithm {config['algorithm']!r}: expected one of "
            f"{WHOLE}, or of {PARTS} with 'faster_rcnn'"
        )
    return _part(name, config, model, variables, images, key)


def lower(program: Program, devices: list[Any]) -> jax.stages.Lowered:
    """`program` lowered for `devices`, its images split over them."""
    mesh = Mesh(np.array(devices), ("batch",))

    def spec(is_split):
        return PartitionSpec("batch") if is_split else PartitionSpec()

    run = jax.shard_map(
        program.function,
        mesh=mesh,
        in_specs=tuple(map(spec, program.split)),
        out_specs=jax.tree.map(spec, program.results_split),
    )

    def placed(argument, is_split):
        where = NamedSharding(mesh, spec(is_split))
        return jax.tree.map(lambda x: Shape(x.shape, x.dtype, sharding=where), argument)

    arguments = map(placed, program.arguments, program.split)
    return jax.jit(run, donate_argnums=program.donate).lower(*arguments)


def abstract_batch(b: int, canvas: tuple[int, int], g: int) -> Batch:
    """The types of `b` images with `g` slots of ground truth."""
    sizes, slots = Shape((b, 2), jnp.int32), Shape((b, g), bool)
    found: Any = dict(
        image=Shape((b, *canvas, 3), jnp.uint8),
        image_size=sizes,
        original_size=sizes,
        gt_boxes=Shape((b, g, 4), jnp.float32),
        gt_classes=Shape((b, g), jnp.int32),
        gt_valid=slots,
        gt_ignore=slots,
        index=Shape((b,), jnp.int32),
        valid=Shape((b,), bool),
    )
    return Batch(**found)


def _training(config, model, variables, images, key):
    optimizer, _ = make_optimizer(
        config["total_steps"], config["batch_size"], **config["optimizer"]
    )
    trainable = trainable_mask(variables["params"], config["frozen"])
    options = dict(model=model, optimizer=optimizer, trainable=trainable)

    def state_of(key, variables):
        return initial_state(
            key,
            (1, 1, 3),
            **options,
            variables=variables,
            ema=config["ema_decay"] > 0,
        )

    state = jax.eval_shape(state_of, key, variables)
    step = partial(train_step, **options, config=config)
    return Program(
        step, (state, images, key), (False, True, False), (False, False), donate=(0,)
    )


def _part(name, config, model, variables, batch, key):
    """A part as a function of the variables and of what the parts before it give."""
    algorithm = algorithms.of(config)

    def bound(function, *arguments):
        """Arguments and a function of them that calls `function(model, ...)`."""

        def run(variables, *arguments):
            return model.apply(variables, *arguments, method=function)

        return run, (variables, *arguments)

    def given(name):
        run, arguments = parts[name]()
        return jax.eval_shape(run, *arguments)

    def features(model, image, image_size):
        extent = model.extent(image_size)
        return model.features(model.normalize(image, image_size), extent)

    def rpn(model, features, image_size):
        return model.rpn_of(features, model.extent(image_size))

    def pooled(model, features, rois, image_size):
        return model.pooled(features, rois, model.extent(image_size))

    def pulled(model, g, features, rois, image_size):
        extent = model.extent(image_size)
        return jax.vjp(lambda x: model.pooled(x, rois, extent), features)[1](g)[0]

    def backward():
        boxes = given("roi_targets").boxes
        _, arguments = bound(pooled, given("features"), boxes, sizes)
        g = jax.eval_shape(bound(pooled)[0], *arguments)
        return bound(pulled, g, *arguments[1:])

    def second(model, features, rois, image_size):
        return model.detect(features, rois, extent=model.extent(image_size))

    def targets(out, batch, key):
        keys = image_keys(key, jnp.int32(0), batch.index)
        return algorithm.rpn_losses(out, batch, keys[:, 0], config)

    def rois_of(props, batch, key):
        keys = image_keys(key, jnp.int32(0), batch.index)
        return fast_rcnn.sample(props, batch, keys[:, 1], config)

    def propose(out, sizes):
        return algorithm.rpn_proposals(out, sizes, **config["proposals"]["eval"])

    sizes = batch.image_size

    def levels():
        """An RPNOutput without the static numbers that it carries, and these."""
        maps, k = given("features"), model.rpn_head.num_anchors
        shapes = [maps[s].shape[1:3] for s in sorted(model.levels)]
        static = tuple(h * w * k for h, w in shapes)
        return given("rpn_head")._replace(level_sizes=()), static

    def on_levels(function, *more):
        out, static = levels()

        def run(out, *more):
            return function(out._replace(level_sizes=static), *more)

        return run, (out, *more)

    def of_rois(function):
        return bound(function, given("features"), given("proposals").boxes, sizes)

    def finish():
        props = given("proposals")
        logits, deltas = given("box_head")
        run = jax.vmap(fast_rcnn.postprocess_of(config))
        return run, (props.boxes, props.valid, logits, deltas, sizes)

    def sampling():
        props: Proposals = jax.eval_shape(
            lambda out, sizes: algorithm.rpn_proposals(
                out._replace(level_sizes=levels()[1]),
                sizes,
                **config["proposals"]["train"],
            ),
            levels()[0],
            sizes,
        )
        return rois_of, (props, batch, key)

    parts = dict(
        features=lambda: bound(features, batch.image, sizes),
        rpn_head=lambda: bound(rpn, given("features"), sizes),
        proposals=lambda: on_levels(propose, sizes),
        rpn_targets=lambda: on_levels(targets, batch, key),
        roi_targets=sampling,
        roi_align=lambda: of_rois(pooled),
        roi_align_backward=backward,
        box_head=lambda: of_rois(second),
        postprocess=finish,
    )
    run, arguments = parts[name]()
    return Program(run, arguments, (False,) * len(arguments), False)
