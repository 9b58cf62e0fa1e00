"""Steps whose numbers are not finite: the batch is saved and can be replayed."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frcnn_jax.training import checkpoint
from frcnn_jax.training import config as configs
from frcnn_jax.training.compiling import Announced
from frcnn_jax.training.step import image_keys, image_losses, norms
from frcnn_jax.types import Batch, Proposals
from frcnn_jax.weights.files import read_arrays


def check(
    values: Mapping[str, float], batch: Batch, *, step: int, workdir: pathlib.Path
) -> None:
    """FloatingPointError names the metrics that are not finite, and the batch's file.

    The file is `not_finite_STEP.npz` in `workdir` (of several processes each writes its
    own share); see `replay`.
    """
    wrong = {name: x for name, x in values.items() if not math.isfinite(x)}
    if not wrong:
        return
    process = f"_process{jax.process_index()}" * (jax.process_count() > 1)
    path = workdir / f"not_finite_{step}{process}.npz"
    save_batch(path, batch, step=step)
    raise FloatingPointError(
        f"not finite at step {step}: {', '.join(wrong)} (of {dict(values)}); its batch "
        f"is kept in {path}: `python scripts/replay.py --batch={path}` gives the losses"
        " of each image from the last checkpoint; try a lower optimizer.learning_rate, "
        "a longer warm-up or optimizer.clip_norm=10"
    )


def save_batch(path: str | pathlib.Path, batch: Batch, *, step: int) -> None:
    """Writes a batch and the step that it was for, as an `.npz` of plain arrays."""
    fields = batch._asdict()
    if (proposals := fields.pop("proposals")) is not None:
        fields |= {f"proposals/{k}": v for k, v in proposals._asdict().items()}
    np.savez_compressed(path, step=np.int64(step), **fields)


def load_batch(path: str | pathlib.Path) -> tuple[Batch, int]:
    """The batch and the step that `save_batch` wrote; ValueError for another file."""
    arrays = read_arrays(path)
    try:
        step = int(arrays.pop("step"))
        parts = {name: arrays.pop(f"proposals/{name}", None) for name in PROPOSALS}
        proposals = None if parts["boxes"] is None else Proposals(**parts)  # pyright: ignore
        return Batch(**arrays, proposals=proposals), step
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no batch ({error}): expected a not_finite_STEP.npz that a "
            "run has left"
        ) from None


PROPOSALS = Proposals._fields


def replay(
    path: str | pathlib.Path, run: str | pathlib.Path = ""
) -> tuple[int, list[dict[str, Any]]]:
    """The checkpoint's step and, for each image of a batch, its losses and gradients.

    The samples are those that the run drew, batch statistics the stored ones. `run` is
    a run or a checkpoint, by default the last one of the run that the batch lies in. If
    all numbers are finite, the batch is not the only cause: the parameters became bad
    after that checkpoint.
    """
    path = pathlib.Path(path)
    batch, step = load_batch(path)
    where = checkpoint.find(run or path.absolute().parent, best=False)
    model, variables, meta = checkpoint.load_model(where)
    params = checkpoint.read_arrays(where, "model")["params"]  # not their mean
    c = configs.check(meta.config)
    key = jax.random.key(c["seed"])

    def terms_and_norms(params, batch):
        def loss(params):
            def compute(model):
                keys = image_keys(key, jnp.int32(step - 1), batch.index)
                return image_losses(model, batch, keys, c)

            terms, _ = model.apply(dict(variables, params=params), method=compute)
            terms = {name: x[0] for name, x in terms.items()}
            return sum(c["loss_weights"][name] * terms[name] for name in terms), terms

        (total, terms), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return dict(terms, total=total, **norms("grad_norm", grads))

    look = Announced(jax.jit(terms_and_norms), "losses and gradients of an image")
    rows = []
    for i, index in enumerate(batch.index):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], batch)
        values = jax.device_get(look(params, one))
        rows.append({"index": int(index), **{k: float(v) for k, v in values.items()}})
    return meta.step, rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """One line an image; numbers that are not finite stand out as `nan` or `inf`.

    >>> print(format_table([{"index": 7, "total": 1.5}, {"index": 9, "total": np.nan}]))
       index    total
           7      1.5
           9      nan
    """
    names = list(rows[0])
    width = {name: max(8, len(name)) for name in names}
    lines = ["".join(f"{name:>{width[name]}} " for name in names)]
    lines += ["".join(f"{row[n]:>{width[n]}.5g} " for n in names) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
