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
from frcnn_jax.types import Batch

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
    parts = _Parts(config, model, variables, images, key)
    run, arguments = getattr(parts, name)()
    return Program(run, arguments, (False,) * len(arguments), False)


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


class _Parts:
    """The parts: a method for each, which returns a function and its arguments.

    The arguments are abstract, what the parts before it give.
    """

    def __init__(self, config, model, variables, batch, key):
        self.config, self.model, self.variables = config, model, variables
        self.batch, self.key, self.sizes = batch, key, batch.image_size
        self.algorithm = algorithms.of(config)

    def given(self, name):
        run, arguments = getattr(self, name)()
        return jax.eval_shape(run, *arguments)

    def bound(self, function, *arguments):
        """A call of `function(model, *arguments)`, the variables before those."""

        def run(variables, *arguments):
            return self.model.apply(variables, *arguments, method=function)

        return run, (self.variables, *arguments)

    def on_levels(self, function, *more):
        """A call of `function(out, *more)` on an RPNOutput, whose sizes are static."""
        maps, k = self.given("features"), self.model.rpn_head.num_anchors
        shapes = [maps[s].shape[1:3] for s in sorted(self.model.levels)]
        static = tuple(h * w * k for h, w in shapes)

        def run(out, *more):
            return function(out._replace(level_sizes=static), *more)

        return run, (self.given("rpn_head")._replace(level_sizes=()), *more)

    def of_rois(self, function, rois):
        return self.bound(function, self.given("features"), rois, self.sizes)

    def features(self):
        return self.bound(_features, self.batch.image, self.sizes)

    def rpn_head(self):
        return self.bound(_rpn, self.given("features"), self.sizes)

    def proposals(self, use="eval"):
        propose = partial(self.algorithm.rpn_proposals, **self.config["proposals"][use])
        return self.on_levels(propose, self.sizes)

    def rpn_targets(self):
        def targets(out, batch, key):
            keys = image_keys(key, jnp.int32(0), batch.index)
            return self.algorithm.rpn_losses(out, batch, keys[:, 0], self.config)

        return self.on_levels(targets, self.batch, self.key)

    def roi_targets(self):
        def sample(props, batch, key):
            keys = image_keys(key, jnp.int32(0), batch.index)
            return fast_rcnn.sample(props, batch, keys[:, 1], self.config)

        run, arguments = self.proposals("train")
        props = jax.eval_shape(run, *arguments)
        return sample, (props, self.batch, self.key)

    def roi_align(self):
        return self.of_rois(_pooled, self.given("proposals").boxes)

    def roi_align_backward(self):
        run, arguments = self.of_rois(_pooled, self.given("roi_targets").boxes)
        g = jax.eval_shape(run, *arguments)
        return self.bound(_pulled, g, *arguments[1:])

    def box_head(self):
        return self.of_rois(_second, self.given("proposals").boxes)

    def postprocess(self):
        props, (logits, deltas) = self.given("proposals"), self.given("box_head")
        run = jax.vmap(fast_rcnn.postprocess_of(self.config))
        return run, (props.boxes, props.valid, logits, deltas, self.sizes)


# ----------------------------------------------------------- parts, of a bound model


def _features(model, image, image_size):
    extent = model.extent(image_size)
    return model.features(model.normalize(image, image_size), extent)


def _rpn(model, features, image_size):
    return model.rpn_of(features, model.extent(image_size))


def _pooled(model, features, rois, image_size):
    return model.pooled(features, rois, model.extent(image_size))


def _pulled(model, g, features, rois, image_size):
    extent = model.extent(image_size)
    return jax.vjp(lambda x: model.pooled(x, rois, extent), features)[1](g)[0]


def _second(model, features, rois, image_size):
    return model.detect(features, rois, extent=model.extent(image_size))
