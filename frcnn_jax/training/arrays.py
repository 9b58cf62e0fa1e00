"""Arrays by name: are they those of a model, are they finite, which start another."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from frcnn_jax.training.optimizer import path_name


def fine_tune(
    source: Mapping[str, Any],
    target: PyTree,
    *,
    where: str | pathlib.Path,
    same_classes: bool = True,
) -> tuple[PyTree, list[str]]:
    """`target`'s arrays replaced by `source`'s, and the names of those that were kept.

    Arrays must have the same names. One of another shape stays as freshly drawn if it
    belongs to the class-dependent last layers (`class_logits`, `class_deltas`; both do
    in any case unless `same_classes`) and is an error anywhere else. The RPN
    (`rpn_head`) stays as drawn where the source, a FastRCNN, has none.
    """
    source_leaves, target_leaves = named_leaves(source), named_leaves(target)
    has_rpn = "rpn_head" in source.get("params", {})
    kept, wrong = [], []
    for name, leaf in target_leaves.items():
        other = source_leaves.get(name)
        parts = name.split("/")
        last = other is not None and {"class_logits", "class_deltas"} & set(parts)
        same = other is not None and tuple(other.shape) == tuple(leaf.shape)
        if same and (same_classes or not last):
            continue
        if last or (not has_rpn and "rpn_head" in parts):
            kept.append(name)
        else:
            wrong.append(name)
    unknown = [name for name in source_leaves if name not in target_leaves]
    if wrong or unknown:
        raise ValueError(_difference(target_leaves, source_leaves, where))

    def pick(path, leaf):
        name = path_name(path)
        return leaf if name in kept else np.asarray(source_leaves[name], leaf.dtype)

    return jax.tree_util.tree_map_with_path(pick, target), kept


def check_same_arrays(expected: PyTree, found: PyTree, where: Any) -> None:
    """ValueError lists the arrays that are missing, unexpected or of another shape."""
    want, have = named_leaves(expected), named_leaves(found)
    if {k: tuple(v.shape) for k, v in want.items()} != {
        k: tuple(v.shape) for k, v in have.items()
    }:
        raise ValueError(_difference(want, have, where))


def check_finite(variables: PyTree, where: Any) -> None:
    """ValueError names weights that are not finite: such a network finds nothing."""
    wrong = [n for n, x in named_leaves(variables).items() if not np.isfinite(x).all()]
    if wrong:
        raise ValueError(
            f"{where} has weights that are not finite, {wrong[0]} and {len(wrong) - 1} "
            "more: its training had diverged; take an earlier checkpoint"
        )


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """`{"params/backbone/conv1/kernel": leaf}`."""
    return {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda x: hasattr(x, "shape")
        )
    }


def _difference(want: Mapping, have: Mapping, where: Any) -> str:
    lines = [f"missing {n} {tuple(want[n].shape)}" for n in want if n not in have]
    lines += [f"unexpected {n} {tuple(have[n].shape)}" for n in have if n not in want]
    lines += [
        f"{n} has shape {tuple(have[n].shape)}, expected {tuple(want[n].shape)}"
        for n in want
        if n in have and tuple(have[n].shape) != tuple(want[n].shape)
    ]
    shown = "\n  ".join(lines[:20]) + (
        f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else ""
    )
    return (
        f"{where} holds another model than the configuration builds:\n  {shown}\n"
        "use the configuration it was trained with (it lies in the checkpoint and in "
        "the run's config.json), or another --workdir"
    )
