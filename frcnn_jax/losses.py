"""Losses: eq. (1) for the RPN, the same two terms for the detector, and box losses.

    a anchors, r RoIs, after any leading axes      C classes, without background
    labels   -1 not sampled, 0 background, >= 1 object (RPN: 1; detector: class)

Everything is float32, whatever comes in. Rows that a term does not use have no value
and no gradient, even where they hold NaN. Each term is a scalar and can be used alone:

    rpn_cls, rpn_box = rpn_loss(logits, deltas, targets.labels, targets.deltas)
    loss = rpn_cls + rpn_box
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Num

from frcnn_jax import ranges
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.types import Array

Normalizer = Num[Array, ""] | float | int


# -- Of one prediction -----------------------------------------------------------------


def smooth_l1(x: Float[Array, "*n"], *, beta: float | int) -> Float[Array, "*n"]:
    """`x^2 / (2 beta)` where |x| < beta, else `|x| - beta / 2`; |x| when beta is 0.

    Element by element; Fast R-CNN eq. (3) has beta = 1, py-faster-rcnn's RPN beta = 1/9
    (its sigma = 3).

    >>> smooth_l1(jnp.array([0.5, -2.0]), beta=1.0).tolist()
    [0.125, 1.5]
    """
    x = box_ops.as_float32(x)
    size = x * jnp.sign(x)  # not jnp.abs, whose slope at 0 is 1
    if beta == 0:
        return size
    small = jnp.minimum(size, beta)
    return size - small + small**2 / (2 * beta)


def sigmoid_focal_loss(
    logits: Float[Array, "*n"],
    targets: Num[Array, "*n"],
    *,
    alpha: float = 0.25,
    gamma: float | int = 2.0,
) -> Float[Array, "*n"]:
    """`-alpha_t (1 - p_t)^gamma log p_t`, element by element (arXiv:1708.02002, eq. 5).

    p_t is the sigmoid of the logit where the target is 1 and one minus it where it is
    0; alpha_t likewise is alpha or 1 - alpha. For C classes without background give
    one-hot rows `[a, C]`, sum, and divide by the number of objects, at least 1.

    >>> sigmoid_focal_loss(jnp.zeros(2), jnp.array([1, 0])).round(4)
    Array([0.0433, 0.13  ], dtype=float32)
    """
    logits, targets = box_ops.as_float32(logits), box_ops.as_float32(targets)
    z = jnp.where(targets > 0, logits, -logits)  # log p_t = log_sigmoid(z)
    weight = jnp.where(targets > 0, alpha, 1 - alpha)
    # 1 - p_t through its logarithm: no power of zero in the gradient.
    easy = jnp.exp(gamma * jax.nn.log_sigmoid(-z))
    return -weight * easy * jax.nn.log_sigmoid(z)


def giou_loss(
    boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]
) -> Float[Array, "*n"]:
    """`1 - GIoU` of boxes and their targets, row by row (arXiv:1902.09630).

    >>> giou_loss(jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([2.0, 0.0, 3.0, 1.0]))
    Array(1.3333334, dtype=float32)
    """
    return 1 - box_ops.elementwise_giou(boxes, targets)


def diou_loss(
    boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]
) -> Float[Array, "*n"]:
    """`1 - DIoU` of boxes and their targets, row by row (arXiv:1911.08287, eq. 7)."""
    return 1 - box_ops.elementwise_diou(boxes, targets)


def ciou_loss(
    boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]
) -> Float[Array, "*n"]:
    """`1 - CIoU` of boxes and their targets, row by row (arXiv:1911.08287, eq. 10)."""
    return 1 - box_ops.elementwise_ciou(boxes, targets)


def _log_loss(logits, labels, used):
    """Softmax cross-entropy of each row, 0 where not used."""
    logits = jnp.where(used[..., None], box_ops.as_float32(logits), 0.0)
    picked = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - picked[..., 0]
    return jnp.where(used, loss, 0.0)


def _box_loss(deltas, target_deltas, used, beta):
    """Smooth L1 of each row, summed over the four deltas, 0 where not used."""
    off = jnp.where(
        used[..., None],
        box_ops.as_float32(deltas) - box_ops.as_float32(target_deltas),
        0.0,
    )
    return smooth_l1(off, beta=beta).sum(axis=-1)


def _check_rows(function, labels, **rows):
    """The arrays have the leading axes of `labels`."""
    for name, axes in rows.items():
        if axes != labels.shape:
            raise ValueError(
                f"{function}: {name} has leading axes {axes}, labels {labels.shape}: "
                "both have a batch axis (jax.vmap of the targets) or neither has"
            )


def _number_of(rows):
    """How many are used, at least 1."""
    return jnp.maximum(rows.sum(dtype=jnp.int32), 1)


def _mean(terms, normalizer):
    total = terms.sum()
    return total / jnp.asarray(normalizer, total.dtype)


# -- Of a stage ------------------------------------------------------------------------


def rpn_loss(
    objectness_logits: Float[Array, "*a"],
    box_deltas: Float[Array, "*b 4"],
    labels: Int[Array, "*b"],
    target_deltas: Float[Array, "*b 4"],
    *,
    normalizer: Normalizer | None = None,
    box_normalizer: Normalizer | None = None,
    beta: float | int = 1 / 9,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`1/N_cls sum L_cls(p_i, p_i*)` and `1/N_reg sum p_i* L_reg(t_i - t_i*)`, eq. (1).

    i runs over the sampled anchors (labels >= 0) of all leading axes. L_cls is the log
    loss over a sigmoid (logits shaped as labels) or over a softmax (logits with one
    more axis, of two; index 1 is "object"); L_reg is `smooth_l1`, summed over the four.

    `normalizer` (N_cls) is by default the number of sampled anchors, at least 1;
    `box_normalizer` (N_reg) is by default the same. A constant, such as sampled anchors
    times images, keeps the mean over devices exact. The paper's form:

        cls, box = rpn_loss(..., normalizer=256, box_normalizer=h * w)  # locations
        loss = cls + 10 * box  # lambda = 10

    Raises ValueError when the logits fit neither form.

    >>> logits, deltas, labels = jnp.zeros(3), jnp.zeros((3, 4)), jnp.array([1, 0, -1])
    >>> cls, box = rpn_loss(logits, deltas, labels, deltas.at[0, 0].set(0.1))
    >>> f"{cls:.3f} {box:.4f}"  # log 2, and 0.1^2 / (2 beta) over two samples
    '0.693 0.0225'
    """
    ranges.check(
        "rpn_loss",
        beta=(beta, ranges.NOT_NEGATIVE),
        box_normalizer=(
            1.0 if box_normalizer is None else box_normalizer,
            ranges.POSITIVE,
        ),
    )
    _check_rows(
        "rpn_loss",
        labels,
        box_deltas=box_deltas.shape[:-1],
        target_deltas=target_deltas.shape[:-1],
    )
    sampled, found = labels >= 0, labels >= 1
    cls = _objectness_loss(objectness_logits, labels, sampled)
    box = _box_loss(box_deltas, target_deltas, found, beta)
    n_cls = _number_of(sampled) if normalizer is None else normalizer
    n_reg = n_cls if box_normalizer is None else box_normalizer
    return _mean(cls, n_cls), _mean(box, n_reg)


def _objectness_loss(logits, labels, sampled):
    """The log loss of each anchor, 0 where not sampled; ValueError for other shapes."""
    if logits.shape == labels.shape:
        z = jnp.where(sampled, box_ops.as_float32(logits), 0.0)
        loss = -jax.nn.log_sigmoid(jnp.where(labels >= 1, z, -z))
        return jnp.where(sampled, loss, 0.0)
    if logits.shape == (*labels.shape, 2):
        return _log_loss(logits, labels, sampled)
    raise ValueError(
        f"objectness_logits has shape {logits.shape}, expected that of labels, "
        f"{labels.shape} (sigmoid), or {(*labels.shape, 2)} (softmax): all arrays have "
        "the same leading axes, those of a batch after jax.vmap of rpn_targets too."
    )


def detector_loss(
    class_logits: Float[Array, "*r k"],
    class_deltas: Float[Array, "*r d 4"],
    labels: Int[Array, "*r"],
    target_deltas: Float[Array, "*r 4"],
    *,
    normalizer: Normalizer | None = None,
    beta: float | int = 1.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`1/N sum -log p_u` and `1/N sum [u >= 1] L_loc(t^u - v)`, Fast R-CNN eq. (1).

    The sums run over the sampled RoIs (labels u >= 0) of all leading axes. Index 0 of
    the logits is background; row c - 1 of the deltas belongs to class c, or there is
    one row for all classes. `normalizer` N is by default the number of sampled RoIs, at
    least 1. Raises ValueError when the deltas have neither C rows nor one.

    >>> logits, deltas = jnp.zeros((2, 3)), jnp.zeros((2, 2, 4))
    >>> wanted = jnp.zeros((2, 4)).at[0, 0].set(1.0)
    >>> cls, box = detector_loss(logits, deltas, jnp.array([2, 0]), wanted)
    >>> f"{cls:.3f} {box:.3f}"  # log 3, and 1/2 over two samples
    '1.099 0.250'
    """
    ranges.check("detector_loss", beta=(beta, ranges.NOT_NEGATIVE))
    _check_rows(
        "detector_loss",
        labels,
        class_logits=class_logits.shape[:-1],
        class_deltas=class_deltas.shape[:-2],
        target_deltas=target_deltas.shape[:-1],
    )
    rows, num_classes = class_deltas.shape[-2], class_logits.shape[-1] - 1
    if rows not in (1, num_classes):
        raise ValueError(
            f"class_deltas has shape {class_deltas.shape}: with {num_classes + 1} "
            f"class_logits (background included) it needs {num_classes} rows, or 1 for "
            "all classes."
        )
    sampled, found = labels >= 0, labels >= 1
    row = jnp.clip(labels - 1, 0, rows - 1)[..., None, None]
    used = jnp.where(found[..., None, None], class_deltas, 0)
    deltas = jnp.take_along_axis(used, row, axis=-2)[..., 0, :]
    cls = _log_loss(class_logits, labels, sampled)
    box = _box_loss(deltas, target_deltas, found, beta)
    n = _number_of(sampled) if normalizer is None else normalizer
    return _mean(cls, n), _mean(box, n)
