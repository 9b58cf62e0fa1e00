"""A peer's detector becomes a checkpoint like any other."""

import pathlib
from collections.abc import Collection, Sequence

import jax
import ml_collections
import optax

from frcnn_jax.training import checkpoint, pretrained, trained
from frcnn_jax.training import config as configs
from frcnn_jax.training.state import initial_state
from frcnn_jax.weights import torchvision


def convert(
    weights: str | pathlib.Path,
    config: ml_collections.ConfigDict,
    output: str | pathlib.Path,
    *,
    classes: Sequence[str],
    category_ids: Sequence[int],
    rows: Sequence[int],
    set_by_flag: Collection[str] = (),
) -> list[str]:
    """Write a checkpoint at step 0 in `output`, and return the report of every array.

    `rows` of the file (0 is background) become the `classes` 1..C with `category_ids`.
    Raises ValueError as `torchvision.load_detector` does for arrays that do not fit,
    and as `pretrained.check_detector` does for a file of another family.
    """
    c = configs.check(config)
    pretrained.check_detector(weights, c, set_by_flag=set_by_flag)
    model, variables, report = trained.read_peer(weights, config, rows)
    state = initial_state(
        jax.random.key(0),
        (64, 64, 3),
        model=model,
        optimizer=optax.identity(),
        variables=variables,
    )
    with checkpoint.manager(output) as writer:
        checkpoint.save(
            writer, state, config=config, classes=classes, category_ids=category_ids
        )
    return report


def rows_of(
    weights: str | pathlib.Path, category_ids: Sequence[int]
) -> tuple[int, ...]:
    """The rows of a peer's file that are the categories of a data set.

    As many rows as categories are these in their order (Detectron2); of more rows, as
    torchvision's 90 for the 80 categories of COCO, a category has that of its id.
    Raises ValueError where neither can be.
    """
    count = torchvision.count_classes(weights)
    if count == len(category_ids):
        return tuple(range(1, count + 1))
    if count < max(category_ids) or count < len(category_ids):
        raise ValueError(
            f"{weights} has {count} classes, the data {len(category_ids)} with ids up "
            f"to {max(category_ids)}: they are not the same classes"
        )
    return tuple(category_ids)
