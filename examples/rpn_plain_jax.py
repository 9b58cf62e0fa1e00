"""A region proposal network in nothing but jax, with our targets and losses.

python -m examples.rpn_plain_jax

Parameters are a list of arrays, the optimizer is two lines.
"""

import sys

import jax
import jax.numpy as jnp

import frcnn_jax as frcnn
from examples.toy import ANCHORS, K, pixels, recall, shapes

CHANNELS = (3, 16, 32, 64, 64)  # 3x3 convolutions; the first three halve the map


def init(key):
    sizes = [
        *((3, 3, i, o) for i, o in zip(CHANNELS[:-1], CHANNELS[1:], strict=True)),
        (1, 1, CHANNELS[-1], 5 * K),  # a score and four deltas an anchor
    ]
    keys = jax.random.split(key, len(sizes))
    normal = jax.nn.initializers.he_normal()
    return [(normal(k, s), jnp.zeros(s[-1])) for k, s in zip(keys, sizes, strict=True)]


def network(params, x):
    """Images [b, h, w, 3] -> objectness logits [b, a] and box deltas [b, a, 4]."""
    for i, (kernel, bias) in enumerate(params):
        stride = 2 if i < 3 else 1
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x += bias[None, None, None]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    out = x.reshape(len(x), -1, 5)  # (y, x, anchor): the order of ANCHORS
    return out[..., 0], out[..., 1:]


def loss_fn(params, key, images, gt_boxes, gt_valid):
    keys = jax.random.split(key, len(images))
    t = jax.vmap(frcnn.targets.rpn_targets, (0, None, 0, 0))(
        keys, ANCHORS, gt_boxes, gt_valid
    )
    logits, deltas = network(params, images)
    rpn_cls, rpn_box = frcnn.losses.rpn_loss(logits, deltas, t.labels, t.deltas)
    return rpn_cls + rpn_box


@jax.jit
def update(params, velocity, *args):
    loss, grads = jax.value_and_grad(loss_fn)(params, *args)
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
    params = jax.tree.map(lambda p, v: p - 0.1 * v, params, velocity)
    return params, velocity, loss


def main(steps: int = 300) -> tuple[list[float], float]:
    """The losses, and the recall of ten proposals at the end."""
    data = shapes()
    params = init(jax.random.key(0))
    velocity = jax.tree.map(jnp.zeros_like, params)
    losses = []
    for step, batch in zip(range(steps), data.train_batches(), strict=False):
        key = jax.random.fold_in(jax.random.key(1), step)
        params, velocity, loss = update(
            params, velocity, key, pixels(batch.image), batch.gt_boxes, batch.gt_valid
        )
        losses.append(float(loss))
        if step % 50 == 0:
            print(f"step {step}  loss {losses[-1]:.3f}")
    found = recall(data, lambda images: network(params, images))
    print(f"recall of 10 proposals at IoU 0.5: {found:.2f}")
    return losses, found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
