"""Weights from elsewhere are compared with the experiment that they are put under."""

import logging
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from frcnn_jax.models.build import with_defaults
from frcnn_jax.training.config import leaves
from frcnn_jax.weights import families, hub

log = logging.getLogger(__name__)


def check_detector(
    path: str | pathlib.Path, config: Mapping[str, Any], *, set_by_flag: Collection[str]
) -> None:
    """ValueError where an experiment contradicts a peer's detector in a fixed leaf.

    The error lists the leaves and names the shipped experiment that fits. Leaves in
    `set_by_flag` are the user's decision: they are logged as a warning. A file of no
    known family passes.
    """
    _check(path, config, set_by_flag=set_by_flag, only=())


def check_backbone(
    path: str | pathlib.Path, config: Mapping[str, Any], *, set_by_flag: Collection[str]
) -> None:
    """The same for `backbone.pretrained`: pixel values, stride, and epsilon only."""
    if str(path).startswith(hub.PREFIX):
        path = hub.fetch(str(path))
    if pathlib.Path(path).is_file():  # `weights.load_backbone` says what is missing
        _check(path, config, set_by_flag=set_by_flag, only=families.BACKBONE)


def check_run(
    where: str | pathlib.Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    set_by_flag: Collection[str],
) -> None:
    """The same for `init_from`, whose conventions are those of the run's own config.

    Pixel values, stride and epsilon must agree, or ValueError says where they do not.
    Other leaves (anchors, RoIAlign) may be changed on purpose when a detector is
    fine-tuned: differences are logged as a warning.
    """
    fixed = {
        leaf: (value,)
        for leaf, value in _effective(old).items()
        if leaf in families.BACKBONE or leaf.startswith(_OF_A_DETECTOR)
    }
    family = families.Family("a run", "", fixed)
    found = families.contradictions(family, _effective(new))
    _report(
        f"init_from={where} was trained with other conventions",
        found,
        chosen={
            *set_by_flag,
            *(leaf for leaf in found if leaf not in families.BACKBONE),
        },
        cure="give this experiment the same values",
    )


_OF_A_DETECTOR = (
    *("model.anchors.", "model.roi_align.", "rpn_targets.stds", "roi_targets.stds"),
)


def contradicted(
    path: str | pathlib.Path, config: Mapping[str, Any], *, only: Collection[str] = ()
) -> tuple[str, str, dict[str, str]]:
    """The family of a file that a configuration fits best, and where it does not fit.

    Returns the family's name, its experiment, and `families.contradictions` of it; for
    a file of no known family all are empty.
    """
    found = _effective(config)
    options = [
        (family.name, family.experiment, families.contradictions(family, found, only))
        for family in families.families(path)
    ]
    return min(options, key=lambda option: len(option[2]), default=("", "", {}))


def _check(path, config, *, set_by_flag, only) -> None:
    family, experiment, wrong = contradicted(path, config, only=only)
    _report(
        f"{path} is of the family {family}, which the experiment contradicts",
        wrong,
        chosen=set_by_flag,
        cure=f"use --config={experiment}, or set these leaves as it does",
    )


def _report(what: str, wrong: Mapping[str, str], *, chosen, cure: str) -> None:
    chosen = {name.partition("[")[0] for name in chosen}  # pixel_mean[0] is one, too
    mine = {leaf: text for leaf, text in wrong.items() if leaf in chosen}
    if mine:
        log.warning("%s in leaves that were set on purpose: %s", what, _lines(mine))
    if rest := {leaf: text for leaf, text in wrong.items() if leaf not in chosen}:
        raise ValueError(
            f"{what}: {_lines(rest)}; {cure}. A leaf that is set by a flag is taken as "
            "it is, with a warning"
        )


def _lines(wrong: Mapping[str, str]) -> str:
    return "; ".join(f"{leaf}: {text}" for leaf, text in wrong.items())


def _effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """All leaves of a configuration, those of the model with their defaults."""
    return leaves({**config, "model": with_defaults(config["model"])})
