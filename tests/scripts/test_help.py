"""Every script says what it does, how it is called, and what each option means."""

import ast
import re

import pytest

from tests.scripts import many
from tests.scripts.test_scripts import ROOT

SCRIPTS = {path.stem: path.read_text() for path in sorted(ROOT.glob("scripts/*.py"))}
ABSL = [name for name, text in SCRIPTS.items() if "from absl import" in text]


def definitions(text):
    """The calls of flags.DEFINE_* and their arguments that are written out."""
    for call in ast.walk(ast.parse(text)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            name = call.func.attr
            if name.startswith("DEFINE_") and name != "DEFINE_alias":
                yield name, call.args


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
        text = arguments[place]
        if isinstance(text, ast.JoinedStr):  # an f-string: what follows its last value
            text = text.values[-1]
        assert ast.literal_eval(text).endswith("."), (arguments[0].value, text)


def test_help_of_every_script():
    """One sentence, two examples, the script's own flags, and then the rest."""
    ends = many.run([*((name, "--help") for name in SCRIPTS), ("plot_curves", "--x")])
    code, _, err = ends.pop()
    assert code == 2 and "no flag --x: " in err
    for name, (code, out, err) in zip(SCRIPTS, ends, strict=True):
        assert code == 0 and not err, (name, err)
        doc = ast.get_docstring(ast.parse(SCRIPTS[name]))
        sentence, calls, rest = out.partition("\n\n")[0], *out.split("\n\nflags:\n")
        assert doc.startswith(sentence) and calls.startswith(sentence)
        assert calls.count(f"python scripts/{name}.py") >= 2, name
        for _, arguments in definitions(SCRIPTS[name]):
            assert f"  --{arguments[0].value}" in rest
