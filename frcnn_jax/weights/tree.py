"""Nested dicts of arrays as flat dicts, and back, for the readers of weights."""

from collections.abc import Mapping
from typing import Any

Key = tuple[str, ...]


def flatten(tree: Mapping[str, Any]) -> dict[Key, Any]:
    """Return `{path: leaf}`; empty dicts are left out.

    >>> flatten({"a": {"b": 1, "c": {}}})
    {('a', 'b'): 1}
    """
    flat: dict[Key, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({(name, *key): leaf for key, leaf in flatten(value).items()})
        else:
            flat[name,] = value
    return flat


def unflatten(flat: Mapping[Key, Any]) -> dict[str, Any]:
    """Return the nested dict of `{path: leaf}`.

    >>> unflatten({("a", "b"): 1, ("a", "c"): 2})
    {'a': {'b': 1, 'c': 2}}
    """
    tree: dict[str, Any] = {}
    for (*path, name), leaf in flat.items():
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[name] = leaf
    return tree
