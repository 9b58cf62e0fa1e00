"""Experiments in words: which there are, and what their leaves mean.

A leaf's meaning is the comment beside it in the experiment's file or in `common/`,
else what the docstring of the function that takes it says under "Args".
"""

import ast
import difflib
import importlib
import inspect
import io
import pathlib
import re
import tokenize
from collections.abc import Mapping
from typing import Any

from frcnn_jax.training import config as configs


def listed(root: pathlib.Path, wanted: str = "") -> str:
    """The experiments in `root/experiments` in a line, the likeliest first."""
    folder = root / "experiments"
    found = sorted(p for p in folder.glob("*.py") if p.stem != "__init__")
    if not found:
        return "expected the path of an experiment's file"
    names = [p.stem for p in found]
    stem = pathlib.PurePath(wanted).stem
    near = difflib.get_close_matches(stem, names, 1) if stem else []
    said = f"is it {folder.name}/{near[0]}.py? " if near else ""
    return f"{said}there are {folder.name}/{{{', '.join(names)}}}.py"


def leaves(config: Mapping[str, Any], path: str | pathlib.Path) -> str:
    """A line a leaf: `--config.NAME=VALUE`, and what it means."""
    path = pathlib.Path(path)
    meanings: dict[str, str] = {}
    source = path.read_text()
    for shared in sorted(path.parent.glob("common/*.py")):
        meanings |= comments(shared.read_text(), only=called(source))
    meanings |= comments(source)
    lines, group, arguments = [], None, {}
    rows = configs.leaves(config).items()
    for name, value in sorted(rows, key=lambda row: row[0].rpartition(".")[::2]):
        parent, _, leaf = name.rpartition(".")
        if parent != group:
            group, owner = parent, configs.OWNERS.get(parent, "")
            arguments = documented(owner) if owner else {}
            title = f"# {parent or 'the run'}"
            lines.append(f"\n{title}: {owner}" if owner else f"\n{title}")
        meaning = meanings.get(leaf) or arguments.get(leaf, "")
        lines.append(
            f"--config.{name}={shown(value)}" + (f"  # {meaning}" if meaning else "")
        )
    return "\n".join(lines).strip()


def shown(value: Any) -> str:
    """A value as it may be typed in a shell."""
    text = value if isinstance(value, str) else repr(value)
    plain = re.fullmatch(r"[\w.,:/+-]*", text)
    return text if plain else f"'{text}'" if "'" not in text else f'"{text}"'


def called(source: str) -> set[str]:
    """The functions of `common` that an experiment calls, `common.NAME(...)`."""
    return set(re.findall(r"common\.(\w+)\(", source))


def comments(source: str, *, only: set[str] | None = None) -> dict[str, str]:
    """Names of keyword arguments and attributes, and the comments on their lines.

    `only` names the functions to look in; those that they call count too.

    >>> comments("dict(\\n  seed=0,  # of everything\\n  step=1,\\n)")
    {'seed': 'of everything'}
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    tree = ast.parse(source)
    parts: list[ast.AST] = [tree]
    if only is not None:
        parts = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
        parts = [n for n in parts if n.name in only]  # pyright: ignore
    first: dict[int, tuple[int, str]] = {}  # of a line: the leftmost name
    for node in (n for part in parts for n in ast.walk(part)):
        name = getattr(node, "arg", None) if isinstance(node, ast.keyword) else None
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            name = node.targets[0].attr
        if name and node.lineno == node.end_lineno:  # pyright: ignore
            place = node.col_offset, name  # pyright: ignore
            line = node.lineno  # pyright: ignore
            first[line] = min(first.get(line, place), place)
    found = {}
    for line, (_, name) in first.items():
        text = said.get(line, "").lstrip("# ")
        if text and not text.startswith(("noqa", "fmt:", "pyright")):
            found.setdefault(name, text)
    return found


def documented(path: str) -> dict[str, str]:
    """What the docs of a function, or of its module, say of each argument."""
    path, _, name = path.rpartition(".")
    module = importlib.import_module(path)
    doc = inspect.getdoc(getattr(module, name)) or ""
    _, _, args = doc.partition("Args:\n")
    if not args:  # where they are many, the module's head lists them
        _, _, args = (module.__doc__ or "").partition(f"Arguments of `{name}`")
    found = re.findall(r"^    (\w+): (.+(?:\n {6,}.+)*)", args, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in found}
