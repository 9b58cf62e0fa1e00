"""A region proposal network in Equinox, with our targets and losses.

python -m examples.rpn_equinox      # pip install equinox optax

Equinox writes a network for one image, channels first; anchors are ordered
(y, x, anchor), so the channels go last before they are unrolled.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import frcnn_jax as frcnn
from examples.toy import ANCHORS, K, pixels, recall, shapes
from frcnn_jax.training.compiling import Announced
from frcnn_jax.training.metrics import log_to_stderr


class RPN(eqx.Module):
    """An image [h, w, 3] -> objectness logits [a] and box deltas [a, 4]."""

    convs: list[eqx.nn.Conv2d]
    out: eqx.nn.Conv2d

    def __init__(self, key):
        *keys, last = jax.random.split(key, 5)
        shape = ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1))
        self.convs = [
            eqx.nn.Conv2d(i, o, 3, stride, padding=1, key=k)
            for (i, o, stride), k in zip(shape, keys, strict=True)
        ]
        self.out = eqx.nn.Conv2d(64, 5 * K, 1, key=last)

    def __call__(self, image):
        x = jnp.moveaxis(image, -1, 0)
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        out = jnp.moveaxis(self.out(x), 0, -1).reshape(-1, 5)
        return out[:, 0], out[:, 1:]


def loss_fn(model, key, images, gt_boxes, gt_valid):
    def one_image(key, image, gt_boxes, gt_valid):
        t = frcnn.targets.rpn_targets(key, ANCHORS, gt_boxes, gt_valid)
        return (*model(image), t.labels, t.deltas)

    keys = jax.random.split(key, len(images))
    logits, deltas, labels, targets = jax.vmap(one_image)(
        keys, images, gt_boxes, gt_valid
    )
    rpn_cls, rpn_box = frcnn.losses.rpn_loss(logits, deltas, labels, targets)
    return rpn_cls + rpn_box


OPTIMIZER = optax.adam(2e-3)


@eqx.filter_jit
def update(model, opt_state, *args):
    loss, grads = eqx.filter_value_and_grad(loss_fn)(model, *args)
    updates, opt_state = OPTIMIZER.update(grads, opt_state)
    return eqx.apply_updates(model, updates), opt_state, loss


def main(steps: int = 300) -> tuple[list[float], float]:
    """The losses, and the recall of ten proposals at the end."""
    data = shapes()
    run = Announced(update, "the training step")
    model = RPN(jax.random.key(0))
    opt_state = OPTIMIZER.init(eqx.filter(model, eqx.is_array))
    losses = []
    for step, batch in zip(range(steps), data.train_batches(), strict=False):
        key = jax.random.fold_in(jax.random.key(1), step)
        model, opt_state, loss = run(
            model, opt_state, key, pixels(batch.image), batch.gt_boxes, batch.gt_valid
        )
        losses.append(float(loss))
        if step % 50 == 0:
            print(f"step {step}  loss {losses[-1]:.3f}")
    found = recall(data, jax.vmap(model))
    print(f"recall of 10 proposals at IoU 0.5: {found:.2f}")
    return losses, found


if __name__ == "__main__":
    log_to_stderr()
    main(*map(int, sys.argv[1:]))
