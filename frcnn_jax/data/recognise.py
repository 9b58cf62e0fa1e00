"""What a folder holds: the format, the leaves that its source takes, the splits.

    found = recognise("FOLDER")          # name, leaves, splits, why
    data, lines = resolve(dict(name="auto", root="FOLDER", ...))

Each module of `sources` that knows its format by sight has a function
`recognise(folder) -> Found | None`; nothing else knows which formats there are.
"""

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from frcnn_jax.data import folders, hints, named, pipeline

AUTO = "auto"
OPEN: tuple[Any, ...] = ("", (), None)  # what a leaf is that was not decided
OURS = (  # not leaves
    *("batch_size", "eval_batch_size", "seed", "process_index", "process_count"),
    "sources",
)


class Recognised(NamedTuple):
    """A source's name, leaves for its `load`, names of its splits, and the reason."""

    name: str
    leaves: Mapping[str, Any]
    splits: tuple[str, ...]
    why: str


def recognise(root: str, *, name: str = AUTO, **given: Any) -> Recognised:
    """The one format found below `root`, or what the source `name` finds there.

    `given` are leaves of the source that are decided already. FileNotFoundError where
    nothing is found, ValueError where more than one format is.
    """
    folder = folders.list_folder(root)
    names = named.source_names("recognise") if name == AUTO else [name]
    found, errors = {}, {}
    for candidate in names:
        try:
            seen = _look(named.find_source(candidate), folder, given)
        except ValueError as error:
            errors[candidate] = str(error)
        else:
            if seen is not None:
                found[candidate] = Recognised(candidate, *seen)
    if errors and len(found) + len(errors) == 1:
        raise ValueError(next(iter(errors.values())))
    if len(found) + len(errors) > 1:
        lines = [f"{n} ({f.why})" for n, f in found.items()]
        lines += [f"{n} ({error})" for n, error in errors.items()]
        raise ValueError(
            f"{root} holds more than one format: {'; '.join(lines)}: choose with "
            f"--config.data.name={'|'.join([*found, *errors])}"
        )
    if not found:
        raise FileNotFoundError(_nothing(folder, names))
    return next(iter(found.values()))


def resolve(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The group `data` without anything "auto", and lines that say what was found.

    What is given stays: a name, a leaf, a split; an empty leaf that the source does not
    take is left out. ValueError names another that it does not take.
    """
    data = dict(data)
    name, splits = data["name"], (data["train_split"], data["eval_split"])
    if name == AUTO and not data.get("root"):
        raise ValueError("data.root is empty: give the folder with your data")
    lines: list[str] = []
    if name == AUTO or AUTO in splits:
        data, lines = _filled(data)
    known = leaves(data["name"])
    data = {k: v for k, v in data.items() if k in known or v not in OPEN}
    unknown = sorted(set(data) - set(known))
    if unknown and not takes_anything(data["name"]):
        raise ValueError(unknown_leaf(unknown[0], data["name"]))
    return data, lines


def leaves(name: str) -> dict[str, Any]:
    """What the group `data` may hold for a source, with what it is when left out.

    `inspect.Parameter.empty` for what cannot be left out; of "auto" the leaves of every
    source that is recognised.
    """
    names = named.source_names("recognise") if name == AUTO else [name]
    functions = [named.find_source(n.partition(":")[0]).load for n in names]
    found: dict[str, Any] = dict(group="")
    for function in (*functions, pipeline.build):
        parameters = inspect.signature(function).parameters.values()
        found |= {
            p.name: "" if p.default is p.empty and p.annotation is str else p.default
            for p in parameters
            if p.name not in ("split", *OURS) and p.kind is not p.VAR_KEYWORD
        }
    return found


def takes_anything(name: str) -> bool:
    """Whether a source's `load` has `**kwargs`."""
    if name == AUTO:
        return False
    load = named.find_source(name.partition(":")[0]).load
    parameters = inspect.signature(load).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def unknown_leaf(leaf: str, name: str) -> str:
    """What to say of a leaf that neither the source nor the pipeline takes."""
    return (
        f"data.{leaf}: neither the pipeline nor the source {name!r} takes it; there "
        f"are {', '.join(sorted(leaves(name)))}"
    )


def _filled(data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The group with the name, the leaves and the splits that the folder tells."""
    known = inspect.signature(pipeline.build).parameters
    given = {k: v for k, v in data.items() if k not in known and v not in OPEN}
    root = given.pop("root", "")
    given.pop("group", None)
    name, _, dataset = data["name"].partition(":")
    module = None if name == AUTO else named.find_source(name)
    lines, splits = [], ("train", "val")
    if root and not dataset and (module is None or hasattr(module, "recognise")):
        found = recognise(str(root), name=data["name"], **given)
        data = {**data, "name": found.name, **found.leaves, **given}
        splits = found.splits
        lines.append(f"{root} is of the format {found.name}: {found.why}")
    elif module is not None and hasattr(module, "splits"):
        options = dict(given, root=root) if root else given
        splits = module.splits(**options, **(dict(dataset=dataset) if dataset else {}))
    if AUTO in (data["train_split"], data["eval_split"]):
        *chosen, why = folders.choose_splits(splits)
        for key, split in zip(("train_split", "eval_split"), chosen, strict=True):
            if data[key] == AUTO:
                data[key] = split
                lines.append(f"{key}={split!r}: {why}")
    return data, lines


def _look(
    module: ModuleType, folder: folders.Folder, given: Mapping[str, Any]
) -> folders.Found | None:
    """What a source sees, told of the leaves that are given as far as it asks."""
    asked = inspect.signature(module.recognise).parameters
    return module.recognise(folder, **{k: v for k, v in given.items() if k in asked})


def _nothing(folder: folders.Folder, names: list[str]) -> str:
    count = sum(map(folders.is_image, folder.files))
    others = [f for f in folder.files if not folders.is_image(f)][:5]
    cure = hints.hint(folder) or (
        "set data.root to the data set's folder, or data.name (docs/data.md)"
    )
    return (
        f"{folder.root}: none of {', '.join(names)} found among its "
        f"{len(folder.files)} files ({count} images; others: "
        f"{', '.join(others) or 'none'}): {cure}"
    )
