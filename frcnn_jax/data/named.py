"""Sources by name: the module, the split, and what the two splits must share.

train, evaluation = load_splits("coco", "train2017", "val2017[:100]", root=...)
"""

import importlib
import importlib.util
import os
import pathlib
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from frcnn_jax import ranges
from frcnn_jax.data import splits
from frcnn_jax.data.source import Source, subset
from frcnn_jax.data.source import merge_duplicates as merge
from frcnn_jax.data.validate import check_evaluable, check_not_empty, validate


def load_splits(
    name: str,
    train_split: str,
    eval_split: str,
    *,
    merge_duplicates: bool = False,
    **kwargs: Any,
) -> tuple[Source, Source]:
    """Both splits, validated. They may be the same; `eval_split=""` is an empty one.

    ValueError if their classes differ, or if an evaluation would be refused.
    """
    kwargs.update(merge_duplicates=merge_duplicates, loaded={})
    train = load_split(name, split=train_split, **kwargs)
    if not eval_split:
        check_not_empty(train, train_split)
        return train, Source([], train.classes, train.category_ids, valid=True)
    evaluation = train
    if eval_split != train_split:
        evaluation = load_split(name, split=eval_split, **kwargs)
    if train.classes != evaluation.classes:
        raise ValueError(
            _other_classes(name, train_split, train, eval_split, evaluation)
        )
    check_evaluable(evaluation, eval_split)
    check_not_empty(train, train_split)
    return train, evaluation


def load_split(
    name: str, *, split: str, merge_duplicates: bool = False, **kwargs: Any
) -> Source:
    """What `load_source` returns, every example of it checked by `validate`."""
    source = load_source(name, split=split, **kwargs)
    return validate(merge(source) if merge_duplicates else source)


def _other_classes(
    name: str, train_split: str, train: Source, eval_split: str, evaluation: Source
) -> str:
    """What to say of splits whose classes differ."""
    a, b = train.classes, evaluation.classes
    only = [
        f"only {split!r} has {', '.join(sorted(more)[:5])}"
        for split, more in (
            (train_split, set(a) - set(b)),
            (eval_split, set(b) - set(a)),
        )
        if more
    ]
    return (
        f"{train_split!r} has the classes {a}, {eval_split!r} has {b} "
        f"({'; '.join(only) or 'in another order'}): both need the same, in the same "
        "order: list them all in data.classes, or write the same categories into both "
        "files"
    )


def load_source(
    name: str,
    *,
    split: str,
    group: str = "",
    loaded: dict[str, Source] | None = None,
    **kwargs: Any,
) -> Source:
    """`load` of the module `name`, of `frcnn_jax.data.sources` or a dotted path.

    What follows a colon is its argument `dataset`: "tfds:voc/2007".
    `split` may end in a range of positions, "train[:100]", "val[50:]", or of percent by
    a hash of names, "all[:80%]", "all[80%:]", as `splits.share` says, with `group`.
    (TFDS has ranges of percent of its own.) `loaded` keeps a split that is shared out
    by percent, so that its second part does not read it again.
    """
    name, colon, dataset = name.partition(":")
    if colon:
        kwargs["dataset"] = dataset
    load = find_source(name).load
    check_leaves(load, kwargs)
    percent = "%" in split and name != "tfds"
    number = r"(?:(\d+)%)?" if percent else r"(-?\d+)?"
    match = re.fullmatch(rf"(.+?)(?:\[{number}:{number}\])?", split)
    if match is None or (percent and match[2] is match[3] is None):
        raise ValueError(
            f"split={split!r}: give a name, or a part: 'train[:100]', 'train[:80%]'"
        )
    source = (loaded or {}).get(match[1]) or load(split=match[1], **kwargs)
    if percent and loaded is not None:
        loaded[match[1]] = source
    start, stop = (int(v) if v else None for v in match.group(2, 3))
    if percent:
        ends = start or 0, 100 if stop is None else stop
        return splits.share(
            source, *ends, group=group, root=str(kwargs.get("root", ""))
        )
    if start is stop is None:
        return source
    return subset(source, slice(start, stop))


_PATH = ranges.Rule("a text", lambda value: isinstance(value, str | os.PathLike))
_NAMES = ranges.several(ranges.WORDS, least=0)
_TEXTS = ranges.Rule(
    "a dict of texts",
    lambda value: (
        value is None
        or isinstance(value, Mapping)
        and all(map(ranges.TEXT.holds, [*value, *value.values()]))
    ),
)
# What a leaf may be, by the annotation of the source's argument.
_KINDS: tuple[tuple[Any, ranges.Rule], ...] = (
    (str, _PATH),
    (bool, ranges.TRUTH),
    (int, ranges.number(whole=True)),
    (float, ranges.FINITE),
    (Sequence[str], _NAMES),
    (tuple[str, ...], _NAMES),
    (str | Sequence[str], ranges.either(ranges.TEXT, _NAMES)),
    (Mapping[str, str] | None, _TEXTS),
)


def check_leaves(load: Callable[..., Source], given: Mapping[str, Any]) -> None:
    """ValueError names a leaf that is not of the kind that the source's `load` takes.

    A leaf whose annotation is not one of the usual kinds is left to the source.
    """
    try:
        hints = typing.get_type_hints(load)
    except (NameError, TypeError):  # names that exist for a type checker only
        return
    rules = {
        leaf: rule
        for leaf, hint in hints.items()
        for kind, rule in _KINDS
        if hint == kind
    }
    checked = {leaf: (given[leaf], rules[leaf]) for leaf in given if leaf in rules}
    ranges.check("data", **checked)


def find_source(name: str) -> ModuleType:
    """The module of a source by its name; ValueError names those there are."""
    path = name if "." in name else f"frcnn_jax.data.sources.{name}"
    # Where the sources stood when older configurations were written.
    path = re.sub(r"^frcnn_jax\.data\.(\w+)$", r"frcnn_jax.data.sources.\1", path)
    if "." not in name and importlib.util.find_spec(path) is None:
        raise ValueError(
            f"no data source {name!r}: there are {', '.join(source_names())}, or give "
            "the dotted path of a module with a function load"
        )
    return importlib.import_module(path)


def source_names(function: str = "load") -> list[str]:
    """The modules of `sources` that have a function; none is imported."""
    files = sorted((pathlib.Path(__file__).parent / "sources").glob("*.py"))
    return [f.stem for f in files if f"\ndef {function}(" in f.read_text("utf-8")]
