"""A region proposal network in nothing but jax and numpy, with our targets and losses.

python -m examples.rpn_plain_jax

It runs where `pip install .` has installed the pure layer alone. Parameters are a list
of arrays, the optimizer is two lines, and the pictures are drawn with numpy.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import frcnn_jax as frcnn

SIDE, STRIDE, K, SLOTS = 64, 8, 3, 4  # pixels, pixels a cell, anchors a cell, boxes
ANCHORS = frcnn.anchors.grid(
    frcnn.anchors.cell_anchors((10.0, 18.0, 28.0), (1.0,)),
    (SIDE // STRIDE, SIDE // STRIDE),
    STRIDE,
    offset=0.5,
)  # [a, 4], a = 8 * 8 * 3, ordered (y, x, anchor)
CHANNELS = (3, 16, 32, 64, 64)  # 3x3 convolutions; the first three halve the map


def pictures(rng, count):
    """`count` pictures of rectangles and ellipses on noise: pixels, boxes, validity."""
    image = rng.normal(0, 0.2, (count, SIDE, SIDE, 3))
    boxes = np.zeros((count, SLOTS, 4))
    valid = np.arange(SLOTS) < rng.integers(1, SLOTS + 1, (count, 1))
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    for i, slot in np.argwhere(valid):
        w, h = size = rng.integers(10, 29, 2)
        x1, y1 = rng.integers(0, SIDE - size)
        u, v = 2 * (x - x1) / w - 1, 2 * (y - y1) / h - 1  # -1 to 1 inside of the box
        round_ = rng.random() < 0.5
        inside = (u**2 + v**2 if round_ else np.maximum(abs(u), abs(v))) <= 1
        image[i, inside] = rng.choice([-1, 1]) * rng.uniform(0.6, 1, 3)
        boxes[i, slot] = x1, y1, x1 + w, y1 + h
    return image.astype(np.float32), boxes.astype(np.float32), valid


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


def recall(params, rng, *, iou=0.5):
    """The share of objects of 40 new pictures that one of 10 proposals covers."""
    images, gt_boxes, gt_valid = pictures(rng, 40)
    logits, deltas = network(params, images)
    proposals = jax.vmap(
        lambda logits, deltas: frcnn.proposals.select_proposals(
            ANCHORS, logits, deltas, jnp.array([SIDE, SIDE]), post_nms=10
        )
    )(logits, deltas)
    best = jax.vmap(frcnn.boxes.iou)(proposals.boxes, jnp.asarray(gt_boxes)).max(axis=1)
    return float(np.mean(np.asarray(best)[gt_valid] >= iou))


def main(steps: int = 300) -> tuple[list[float], float]:
    """The losses, and the recall of ten proposals at the end."""
    rng = np.random.default_rng(0)
    params = init(jax.random.key(0))
    velocity = jax.tree.map(jnp.zeros_like, params)
    losses = []
    for step in range(steps):
        key = jax.random.fold_in(jax.random.key(1), step)
        params, velocity, loss = update(params, velocity, key, *pictures(rng, 8))
        losses.append(float(loss))
        if step % 50 == 0:
            print(f"step {step}  loss {losses[-1]:.3f}")
    found = recall(params, np.random.default_rng(1))
    print(f"recall of 10 proposals at IoU 0.5: {found:.2f}")
    return losses, found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
