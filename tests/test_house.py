"""Where things stand: what scripts import, and that the pages name files that exist."""

import ast
import json
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "mkdocs.yml")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# A path as it is written in a page: from the root, the package's folder or the tests'.
PATH = re.compile(
    r"(?<![\w./-])((?:frcnn_jax|scripts|tests|docs|experiments|examples|ops|models|data"
    r"|training|evaluation|weights|sweeps)/[\w/]+\.(?:py|md|sh|npz|json|ipynb|jpg))\b"
)

# Files of the reader's own.
YOURS = {"experiments/X.py", "experiments/mine.py"}


def imported(path):
    """The names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("folder", ["scripts", "frcnn_jax", "experiments"])
def test_nothing_that_users_run_imports_torch(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 10
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imported(path)
        if name.split(".")[0] in ("torch", "torchvision", "detectron2", "timm")
    }
    assert not found


def test_a_long_module_is_one_deep_thing():
    """One over 400 lines says in its docstring which thing it is."""
    folders = ("frcnn_jax", "scripts", "experiments", "examples", "tests")
    files = [path for name in folders for path in (ROOT / name).rglob("*.py")]
    long = [path for path in files if len(path.read_text().splitlines()) > 400]
    assert len(long) > 4
    silent = [
        str(path.relative_to(ROOT))
        for path in long
        if "One deep thing"
        not in (ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert not silent, "split it, or say which one deep thing it is"


def test_what_is_left_out_of_the_default_suite_is_there():
    """`long.txt` names functions of tests that exist, each line once."""
    lines = (ROOT / "tests/long.txt").read_text().splitlines()
    assert lines == sorted(set(lines))
    for line in lines:
        file, _, name = line.partition("::")
        text = (ROOT / "tests" / file).read_text()
        assert f"def {name.partition('[')[0]}(" in text, line


# The loop itself, and files that are configurations.
LONG = {
    "frcnn_jax/training/loop.py: run",
    "experiments/common/py_faster_rcnn.py: paper",
}


def test_no_function_of_the_product_is_over_sixty_lines():
    found = {}
    for folder in ("frcnn_jax", "scripts", "experiments", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or 0) - node.lineno + 1
                    found[f"{path.relative_to(ROOT)}: {node.name}"] = lines
    assert len(found) > 500
    assert {name for name, lines in found.items() if lines > 60} == LONG
    assert found["frcnn_jax/training/loop.py: run"] <= 150


def strings(path):
    """The lines that string literals touch, with their columns: [(row, from, to)]."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            last = node.end_col_offset if node.end_lineno == node.lineno else 10**6
            yield node.lineno, node.col_offset, last


def test_no_name_is_undefined():
    """Ruff's rule is off in pyproject.toml: axes in shape strings look like names."""
    ruff = shutil.which("ruff") or str(ROOT / ".venv/bin/ruff")
    if not pathlib.Path(ruff).exists():
        pytest.skip("needs ruff, of the extra dev")
    folders = ["frcnn_jax", "scripts", "experiments", "examples", "docs", "tests"]
    options = ["--select=F821", "--isolated", "--output-format=json", "--exit-zero"]
    done = subprocess.run(
        [ruff, "check", *options, *folders], cwd=ROOT, capture_output=True, check=True
    )
    found = json.loads(done.stdout)
    assert len(found) > 10  # the axes
    undefined = []
    for entry in found:
        path, at = pathlib.Path(entry["filename"]), entry["location"]
        row, column = at["row"], at["column"] - 1
        if not any(r == row and a <= column < b for r, a, b in strings(path)):
            undefined.append(f"{path}:{row}: {entry['message']}")
    assert not undefined


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page):
    missing = {
        name
        for name in set(PATH.findall(page.read_text())) - YOURS
        if not any((ROOT / base / name).exists() for base in ("", "frcnn_jax", "tests"))
    }
    assert not missing


def test_the_pages_name_files():
    found = {name for page in PAGES for name in PATH.findall(page.read_text())}
    assert {"scripts/train.py", "training/algorithms/faster_rcnn.py"} <= found


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_help_lists_the_targets():
    done = subprocess.run(
        ["make", "--silent", "help"], capture_output=True, text=True, cwd=ROOT
    )
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.M)
    assert listed == set(phony.split()) and "demo" in listed
