"""Reading a configuration: checks, command-line changes, JSON and back.

A group of a configuration is the keyword arguments of exactly one function, so that
function names a misspelt key. The rest is checked here.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import logging
import pathlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import ml_collections
from ml_collections import config_dict

from frcnn_jax import ranges
from frcnn_jax.data import recognise
from frcnn_jax.training import algorithms, named, views

log = logging.getLogger(__name__)

RUN = {  # the leaves that are no group of keyword arguments
    *("seed", "batch_size", "eval_batch_size", "total_steps", "eval_every"),
    *("log_every", "checkpoint_every", "frozen", "init_from", "loss_weights"),
    *("accumulate", "ema_decay"),
}
OPTIONAL: dict[str, Any] = {
    "algorithm": "faster_rcnn",  # of older checkpoints, see `algorithms.name_in`
    "parallel": "pmap",  # or "shard_map", see `devices.parallel`
    "minutes": 0.0,  # instead of open `total_steps`, see `recipe`
    "roi_cls_loss": {"name": ""},  # a term of `detector_loss`, see `named`
    "roi_box_loss": {"name": ""},
    "views": {},  # of prediction, see `views`
}
GROUPS = {
    *("data", "model", "optimizer", "rpn_targets", "roi_targets", "proposals"),
    *("rpn_loss", "detector_loss", "postprocess"),
}
# The functions whose keyword arguments the groups are.
OWNERS = {
    "data": "frcnn_jax.data.pipeline.build",
    "data.augment": "frcnn_jax.data.augment.augment",
    "data.tiles": "frcnn_jax.data.tiles.cut_source",
    "model": "frcnn_jax.models.build.build_detector",
    "optimizer": "frcnn_jax.training.optimizer.make_optimizer",
    "rpn_targets": "frcnn_jax.targets.rpn_targets",
    "roi_targets": "frcnn_jax.targets.roi_targets",
    "proposals.train": "frcnn_jax.proposals.select_proposals",
    "proposals.eval": "frcnn_jax.proposals.select_proposals",
    "rpn_loss": "frcnn_jax.losses.rpn_loss",
    "detector_loss": "frcnn_jax.losses.detector_loss",
    "cascade": "frcnn_jax.training.algorithms.cascade_rcnn.later_stages",
    "postprocess": "frcnn_jax.proposals.postprocess",
}
# A flag may add what an experiment leaves to the default of the function of these.
DEFAULTED = {"optimizer", "rpn_targets", "roi_targets", "rpn_loss", "detector_loss"}


def check(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The configuration as plain dicts; ValueError names what is missing or unknown."""
    c = with_optional(config.to_dict())
    algorithm = algorithms.of(c)
    expected = RUN | GROUPS | set(OPTIONAL) | set(algorithm.GROUPS)
    if wrong := sorted(set(c) ^ expected):
        raise ValueError(
            "config: "
            + "; ".join(
                f"unknown key {k!r}" if k in c else f"missing key {k!r}" for k in wrong
            )
            + f"; expected {sorted(expected)}"
        )
    if unset := sorted(k for k in RUN if c[k] is None):
        raise ValueError(
            f"config.{unset[0]} is open: training fills it from the data; here it must "
            f"be given, as --config.{unset[0]}=..."
        )
    losses = set(c["loss_weights"]), set(algorithm.loss_names(c))
    if not losses[0] >= losses[1] or losses[0] - losses[1] - RPN_LOSSES:
        raise _wrong_keys("loss_weights", *losses)
    if set(c["proposals"]) != {"train", "eval"}:
        raise _wrong_keys("proposals", set(c["proposals"]), {"train", "eval"})
    _check_ranges(c)
    algorithm.check(c)
    return c


def with_optional(c: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the leaves that may be missing, as in older checkpoints."""
    return OPTIONAL | {"algorithm": algorithms.name_in(c)} | c


# A FastRCNN's configuration may keep the weights of what it has not.
RPN_LOSSES = {"rpn_cls", "rpn_box"}


def _wrong_keys(group: str, found: set[str], expected: set[str]) -> ValueError:
    return ValueError(
        f"config.{group} has the keys {sorted(found)}: expected {sorted(expected)}"
    )


def _check_ranges(c: Mapping[str, Any]) -> None:
    """ValueError names the first leaf of the run that is out of its range."""
    counts = ("batch_size", "eval_batch_size", "total_steps", "eval_every")
    counts += ("log_every", "checkpoint_every", "accumulate")
    ranges.check("config", **{name: (c[name], ranges.COUNT) for name in counts})
    ranges.check(
        "config",
        seed=(c["seed"], ranges.COUNT_OR_NONE),
        frozen=(c["frozen"], ranges.several(ranges.WORDS, least=0)),
        init_from=(c["init_from"], ranges.TEXT),
        ema_decay=(c["ema_decay"], ranges.FINITE),
        parallel=(c["parallel"], ranges.one_of("pmap", "shard_map")),
    )
    weights = {k: (v, ranges.NOT_NEGATIVE) for k, v in c["loss_weights"].items()}
    ranges.check("config.loss_weights", **weights)
    if not 0 <= c["ema_decay"] < 1:
        raise ValueError(
            f"config.ema_decay={c['ema_decay']}: expected 0 (no running mean of the "
            "parameters) or a share below 1 such as 0.999"
        )


def resolve(config: Any) -> Any:
    """The configuration with its data's format, leaves and splits in place of "auto".

    A copy; what was recognised and why goes to the log. Errors are those of
    `data.recognise`.
    """
    before = config.data.to_dict()
    data, lines = recognise.resolve(before)
    for line in lines:
        log.info("data: %s", line)
    if data != before:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.data = data
    return config


def source_name(config: ml_collections.ConfigDict) -> str:
    """The name of the source of a configuration's data; empty where it has none."""
    data: Any = config.get("data")
    return str(data.get("name", "")) if data is not None else ""


def admit(config: ml_collections.ConfigDict, names: Iterable[str], source: str) -> None:
    """Adds leaves that the experiment lacks and that a function takes.

    The function is the data's `source` or that of a group of `DEFAULTED`. `names` are
    those to be changed, "data.annotations". ValueError for any other that is not there,
    with the names there are.
    """
    for name in names:
        _admitted(config, name, source)


def _admitted(config: ml_collections.ConfigDict, name: str, source: str) -> Any:
    """The group that has the leaf `name`, which is added if it has to be; `admit`."""
    if is_named(name):
        return _admit_named(config, name)
    group: Any = config
    *parents, leaf = name.split(".")
    for parent in parents:
        group = group[parent] if parent in group else None
        if not isinstance(group, ml_collections.ConfigDict):
            raise ValueError(f"config.{name}: the config has no group {parent!r}")
    if leaf in group:
        return group
    default = default_of(name)
    if default is None:
        if parents != ["data"]:
            there = ", ".join(sorted(group))
            raise ValueError(f"config.{name}: there is no {leaf!r} there, but {there}")
        known = recognise.leaves(source)
        if leaf not in known and not recognise.takes_anything(source):
            raise ValueError(f"config.{recognise.unknown_leaf(leaf, source)}")
        default = known.get(leaf)
        if default is None or default is inspect.Parameter.empty:
            default = config_dict.placeholder(object)
    with config.unlocked():
        group[leaf] = default
    return group


def default_of(name: str) -> Any:
    """The default of "optimizer.clip_norm" and the like; None where there is none."""
    group, _, leaf = name.partition(".")
    if group not in DEFAULTED:
        return None
    path, _, function = OWNERS[group].rpartition(".")
    owner = getattr(importlib.import_module(path), function)
    found = inspect.signature(owner).parameters.get(leaf)
    if found is None or found.kind is not found.KEYWORD_ONLY:
        return None
    return None if found.default is found.empty else found.default


def is_named(name: str) -> bool:
    """Whether `views`, or a group whose function is found by name, takes this leaf."""
    group, _, leaf = name.partition(".")
    if group == "views":
        return leaf in views.Views._fields
    return group in named.HOMES and leaf in named.leaves(group)


def _admit_named(config: ml_collections.ConfigDict, name: str) -> Any:
    """Adds `name` or a keyword argument to a group whose function is found by name."""
    parent, _, leaf = name.partition(".")
    with config.unlocked():
        if parent not in config:
            config[parent] = {}
        group: Any = config[parent]
        if leaf not in group:
            text = leaf == "name" or name == "views.merge"
            group[leaf] = "" if text else config_dict.placeholder(object)
    return group


def load_experiment(path: str | pathlib.Path) -> ModuleType:
    """The module of an experiment's file; FileNotFoundError names it.

    The file is Python code and is run: load only files that you trust.
    """
    spec = importlib.util.spec_from_file_location("experiment", path)
    if spec is None or spec.loader is None or not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no experiment {path}: expected a file NAME.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def change(config: ml_collections.ConfigDict, changes: Iterable[str]) -> None:
    """Applies `data.root=DIR` and the like in place.

    A leaf need not be there if the source of `data` takes it, or the function of a
    group of `DEFAULTED`.
    Raises ValueError for an unknown key or a value of another type.
    """
    changes = list(changes)
    source = source_name(config)
    for item in changes:
        if item.startswith("data.name="):
            source = item.removeprefix("data.name=")
    for item in changes:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"change {item!r}: expected NAME=VALUE, as data.root=DIR")
        parent, _, leaf = name.rpartition(".")
        if parent == "data" and parent in config and leaf not in config.data:
            check_code(config, changes)  # its source is imported to ask it
        group = _admitted(config, name, source)
        try:
            value = text if isinstance(group[leaf], str) else ast.literal_eval(text)
            group[leaf] = value
        except (ValueError, SyntaxError, TypeError) as error:
            raise ValueError(
                f"change {item!r}: expected a value like {group[leaf]!r} ({error})"
            ) from None


def check_code(config: ml_collections.ConfigDict, changes: Iterable[str]) -> None:
    """ValueError where a checkpoint's data are Python code that no change names.

    A file from elsewhere must not choose what is imported and called.
    """
    given = " ".join(changes)
    data = config.to_dict()["data"]
    if unknown := [n for n in _code(data) if n not in given]:
        raise ValueError(
            f"the checkpoint's data come from the Python code {unknown[0]!r}, which "
            "would be imported and called: if it is yours, name it, as "
            f"--set=data.name={data['name']}"
        )


def _code(data: Mapping[str, Any]) -> list[str]:
    """The dotted paths of Python code in a group `data`."""
    name, _, dataset = str(data.get("name", "")).partition(":")
    if name == "dicts":
        dataset = dataset or str(data.get("dataset", ""))
    found = [n for n in (name, dataset if name == "dicts" else "") if "." in n]
    for part in (data.get("datasets") or {}).values():
        found += _code(part)
    return found


# Leaves that a resumed run may change without changing what is learnt.
FREE = {
    *("eval_every", "log_every", "checkpoint_every", "eval_batch_size", "init_from"),
    *("data.root", "data.cache", "data.threads", "data.workers", "data.eval_split"),
    *("model.backbone.pretrained", "model.backbone.remat", "parallel"),
}


def check_resumed(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict):
    """ValueError names the leaves in which a resumed run differs from how it began.

    Those of `FREE` may differ: where the data lies, how often to evaluate.
    """
    new = from_json(json.loads(new.to_json()))  # lists are tuples there
    a, b = (leaves(with_optional(c.to_dict())) for c in (old, new))
    missing = object()
    changed = [
        f"{name}: {a.get(name, 'not set')!r} -> {b.get(name, 'not set')!r}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name, missing) != b.get(name, missing) and name not in FREE
    ]
    if changed:
        raise ValueError(
            "the run in this folder was started with other values:\n  "
            + "\n  ".join(changed)
            + "\nuse them, or another --workdir, or --allow_changes to go on with these"
        )


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def from_json(tree: Any) -> ml_collections.ConfigDict:
    """A configuration read back from JSON, where tuples had become lists."""

    def tuples(value):
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return ml_collections.ConfigDict(tuples(tree))
