"""SGD with momentum, warm-up and decay; which parameters train and which decay."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from frcnn_jax import ranges


def path_name(path: Sequence[Any]) -> str:
    """`backbone/layer1/block0/conv1/kernel` for a key path of jax.tree_util."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)


def trainable_mask(params: PyTree, frozen: Sequence[str] = ()) -> PyTree:
    """True for the leaves to train: those under none of the `frozen` path prefixes.

    A prefix ends at a path's slash: "backbone/layer1" freezes backbone/layer1/... and
    not backbone/layer10. Raises ValueError for a prefix that names nothing.
    """
    names = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    for prefix in frozen:
        if not any(_under(name, prefix) for name in names):
            depth = prefix.count("/") + 1
            known = sorted({"/".join(n.split("/")[:depth]) for n in names})
            raise ValueError(
                f"frozen={prefix!r} names no parameter: expected a path prefix such as "
                + ", ".join(known[:12])
            )
    return jax.tree_util.tree_map_with_path(
        lambda p, _: not any(_under(path_name(p), prefix) for prefix in frozen), params
    )


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip("/") + "/")


NOT_DECAYED = re.compile(r"(^|/)(bias|scale|(\w+_)?positions?|class_token)$")


def decay_mask(params: PyTree, biases: bool = False) -> PyTree:
    """True for the leaves that weight decay acts on: kernels, not norms and biases.

    Positions (`positions`, `row_positions`, a Swin's table) and class tokens do not
    decay either. `biases`: also those of layers with a kernel, never a norm's.
    """
    found = jax.tree_util.tree_leaves_with_path(params)
    kernels = {name for p, _ in found if (name := path_name(p)).endswith("kernel")}

    def decays(path, _):
        name = path_name(path)
        if biases and name.endswith("bias"):
            return name.removesuffix("bias") + "kernel" in kernels
        return NOT_DECAYED.search(name) is None

    return jax.tree_util.tree_map_with_path(decays, params)


def bias_mask(params: PyTree) -> PyTree:
    """True for the biases."""
    return jax.tree_util.tree_map_with_path(
        lambda p, _: path_name(p).endswith("bias"), params
    )


def scale_by_layer(
    layers: Sequence[Sequence[str]], decay: float
) -> optax.GradientTransformation:
    """Multiply the updates of layer i of n by `decay ** (n - i)`, i from 0.

    A layer is some path prefixes, as in `trainable_mask`; parameters under none of them
    keep their updates (layer-wise learning-rate decay, Clark et al. 2020, ELECTRA).
    Raises ValueError for a prefix that names nothing when the state is made.
    """
    factors = {
        prefix: decay ** (len(layers) - i)
        for i, prefixes in enumerate(layers)
        for prefix in prefixes
    }

    def init(params):
        trainable_mask(params, tuple(factors))
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params

        def scaled(path, x):
            name = path_name(path)
            found = [f for prefix, f in factors.items() if _under(name, prefix)]
            return x * found[0] if found else x

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(init, update)


def rate_schedule(
    total_steps: int,
    *,
    base: float,
    schedule: str = "step",
    boundaries: Sequence[float] = (0.7, 0.9),
    decay: float = 0.1,
    warmup_steps: int = 0,
    warmup_factor: float = 1e-3,
) -> Callable[[Any], Any]:
    """Linear warm-up, then steps (times `decay` at each boundary) or a cosine to 0.

    Boundaries up to 1 are shares of `total_steps`, larger ones are step numbers.
    """
    _check(
        boundaries=boundaries,
        decay=decay,
        warmup_steps=warmup_steps,
        warmup_factor=warmup_factor,
    )
    if schedule not in ("step", "cosine", "constant"):
        raise ValueError(
            f"schedule={schedule!r}: expected 'step', 'cosine' or 'constant'"
        )
    steps = tuple(b * total_steps if b <= 1 else b for b in boundaries)

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        warm = warmup_factor + (1 - warmup_factor) * step / max(warmup_steps, 1)
        factor = jnp.where(step < warmup_steps, warm, 1.0)
        if schedule == "step":
            for boundary in steps:
                factor = factor * jnp.where(step >= boundary, decay, 1.0)
        elif schedule == "cosine":
            done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
            factor = factor * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        return base * factor

    return rate


def make_optimizer(
    total_steps: int,
    batch_size: int = 0,
    *,
    learning_rate: float,
    reference_batch: int = 0,
    name: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    clip_norm: float = 0.0,
    bias_rate: float = 1.0,
    decay_biases: bool = False,
    layer_decay: float = 1.0,
    layers: Sequence[Sequence[str]] = (),
    schedule: str = "step",
    boundaries: Sequence[float] = (0.7, 0.9),
    decay: float = 0.1,
    warmup_steps: int = 0,
    warmup_factor: float = 1e-3,
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """The optimizer and its learning-rate schedule, for `batch_size` images an update.

    `learning_rate` is that of a batch of `reference_batch`; other batches have a rate
    in proportion (the linear scaling rule, Goyal et al. 2017). `reference_batch` 0 uses
    the rate for every batch. "sgd" is momentum SGD with L2 decay added to the gradient
    (as the peers), "adamw" is Adam with decoupled decay. Decay skips norms, positions
    (`decay_mask`) and, unless `decay_biases` (torchvision and Detectron2 decay them),
    biases; `clip_norm` > 0 clips the gradient's global norm; biases learn `bias_rate`
    times as fast (Caffe's have 2). `layers` are those of a backbone, first to last, as
    tuples of path prefixes: each learns `layer_decay` times as fast as the next.
    """
    _check(
        learning_rate=learning_rate,
        reference_batch=reference_batch,
        momentum=momentum,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        bias_rate=bias_rate,
        decay_biases=decay_biases,
        layer_decay=layer_decay,
        layers=layers,
    )
    rate = rate_schedule(
        total_steps,
        base=learning_rate * _times(batch_size, reference_batch),
        schedule=schedule,
        boundaries=boundaries,
        decay=decay,
        warmup_steps=warmup_steps,
        warmup_factor=warmup_factor,
    )
    mask = partial(decay_mask, biases=decay_biases)
    update = _named(name, rate, momentum, weight_decay, mask)
    if bias_rate != 1:
        update = optax.chain(update, optax.masked(optax.scale(bias_rate), bias_mask))
    if layer_decay != 1:
        update = optax.chain(update, scale_by_layer(layers, layer_decay))
    if clip_norm > 0:
        update = optax.chain(optax.clip_by_global_norm(clip_norm), update)
    return update, rate


def _check(**values: Any) -> None:
    """ValueError names the first argument that is out of its range."""
    rules = dict(
        learning_rate=ranges.POSITIVE,
        reference_batch=ranges.COUNT_OR_NONE,
        momentum=ranges.number(0, below=1),
        weight_decay=ranges.NOT_NEGATIVE,
        clip_norm=ranges.NOT_NEGATIVE,
        bias_rate=ranges.NOT_NEGATIVE,
        decay_biases=ranges.TRUTH,
        layer_decay=ranges.number(above=0, most=1),
        layers=ranges.several(ranges.several(ranges.WORDS), least=0),
        boundaries=ranges.several(ranges.POSITIVE, least=0),
        decay=ranges.SHARE,
        warmup_steps=ranges.COUNT_OR_NONE,
        warmup_factor=ranges.SHARE,
    )
    ranges.check("optimizer", **{k: (v, rules[k]) for k, v in values.items()})


def _times(batch_size: int, reference_batch: int) -> float:
    """How often the reference fits into a batch; ValueError without a batch."""
    if not reference_batch:
        return 1.0
    if batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size}: reference_batch={reference_batch} scales the "
            "rate with it, so it must be given"
        )
    return batch_size / reference_batch


def _named(name, rate, momentum, weight_decay, mask) -> optax.GradientTransformation:
    """Optax's sgd or adamw; ValueError for another name."""
    if name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(weight_decay, mask),
            optax.sgd(rate, momentum=momentum),
        )
    if name == "adamw":
        return optax.adamw(rate, b1=momentum, weight_decay=weight_decay, mask=mask)
    raise ValueError(f"optimizer.name={name!r}: expected 'sgd' or 'adamw'")
