"""A region proposal network in Flax NNX, with our targets and losses.

python -m examples.rpn_nnx
"""

import sys

import jax
import optax
from flax import nnx

import frcnn_jax as frcnn
from examples.toy import ANCHORS, K, pixels, recall, shapes
from frcnn_jax.training.compiling import Announced
from frcnn_jax.training.metrics import log_to_stderr


class RPN(nnx.Module):
    """Images [b, h, w, 3] -> objectness logits [b, a] and box deltas [b, a, 4]."""

    def __init__(self, rngs: nnx.Rngs):
        channels = (3, 16, 32, 64)
        self.convs = nnx.List(
            nnx.Conv(i, o, (3, 3), strides=2, rngs=rngs)
            for i, o in zip(channels[:-1], channels[1:], strict=True)
        )
        self.conv = nnx.Conv(64, 64, (3, 3), rngs=rngs)
        self.logits = nnx.Conv(64, K, (1, 1), rngs=rngs)
        self.deltas = nnx.Conv(64, 4 * K, (1, 1), rngs=rngs)

    def __call__(self, x):
        for conv in (*self.convs, self.conv):
            x = nnx.relu(conv(x))
        b = len(x)  # (y, x, anchor): the order of ANCHORS
        return self.logits(x).reshape(b, -1), self.deltas(x).reshape(b, -1, 4)


@nnx.jit
def update(model, optimizer, key, images, gt_boxes, gt_valid):
    keys = jax.random.split(key, len(images))
    t = jax.vmap(frcnn.targets.rpn_targets, (0, None, 0, 0))(
        keys, ANCHORS, gt_boxes, gt_valid
    )

    def loss_fn(model):
        logits, deltas = model(images)
        rpn_cls, rpn_box = frcnn.losses.rpn_loss(logits, deltas, t.labels, t.deltas)
        return rpn_cls + rpn_box

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def main(steps: int = 300) -> tuple[list[float], float]:
    """The losses, and the recall of ten proposals at the end."""
    data = shapes()
    run = Announced(update, "the training step")
    model = RPN(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)
    losses = []
    for step, batch in zip(range(steps), data.train_batches(), strict=False):
        key = jax.random.fold_in(jax.random.key(1), step)
        loss = run(
            model, optimizer, key, pixels(batch.image), batch.gt_boxes, batch.gt_valid
        )
        losses.append(float(loss))
        if step % 50 == 0:
            print(f"step {step}  loss {losses[-1]:.3f}")
    found = recall(data, model)
    print(f"recall of 10 proposals at IoU 0.5: {found:.2f}")
    return losses, found


if __name__ == "__main__":
    log_to_stderr()
    main(*map(int, sys.argv[1:]))
