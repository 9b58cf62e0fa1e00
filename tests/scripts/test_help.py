"""Every script says what it does, how it is called, and what each option means."""

import ast
import re
import subprocess
import sys

import pytest

from tests.scripts.test_scripts import ROOT

SCRIPTS = {path.stem: path.read_text() for path in sorted(ROOT.glob("scripts/*.py"))}
ABSL = [name for name, text in SCRIPTS.items() if "from absl import" in text]


def definitions(text):
    """The calls of flags.DEFINE_* and their arguments that are written out."""
    for call in ast.walk(ast.parse(text)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            if call.func.attr.startswith("DEFINE_"):
                yield call.func.attr, call.args


@pytest.mark.parametrize("name", SCRIPTS)
def test_docstring_is_the_usage(name):
    doc = ast.get_docstring(ast.parse(SCRIPTS[name]))
    title = doc.partition("\n\n")[0]
    assert re.search(r"[.:]$", title) and len(title) < 180
    if name in ABSL:
        assert f"python scripts/{name}.py" in doc
        assert not re.search(r"\S {3,}--", doc), "a line that ends in \\ needs r'''"


@pytest.mark.parametrize("name", ABSL)
def test_every_option_is_explained(name):
    found = list(definitions(SCRIPTS[name]))
    assert found
    for kind, arguments in found:
        place = 3 if kind == "DEFINE_enum" else 2
        text = ast.literal_eval(arguments[place])
        assert text.endswith("."), (arguments[0].value, text)


def test_help_is_a_success():
    done = run("plot_curves", "-h")
    assert done.returncode == 0 and "--output" in done.stdout and not done.stderr
    done = run("plot_curves", "--no_such_option")
    assert done.returncode == 1 and "no_such_option" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ABSL)
def test_help_of_every_script(name):
    done = run(name, "--help")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    doc = ast.get_docstring(ast.parse(SCRIPTS[name]))
    assert done.stdout.startswith(doc.splitlines()[0])
    for _, arguments in definitions(SCRIPTS[name]):
        assert arguments[0].value in done.stdout


def run(name, *arguments):
    return subprocess.run(
        [sys.executable, f"scripts/{name}.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
