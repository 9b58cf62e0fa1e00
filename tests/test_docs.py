"""The documentation: no warning, no link that leads nowhere, nothing from elsewhere."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_site_builds_without_warnings_and_fetches_nothing(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*build, f"--site-dir={tmp_path}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {
        p.relative_to(tmp_path).as_posix(): p.read_text()
        for p in tmp_path.rglob("*.html")
    }
    fetched = re.compile(
        r"""<(?:script|img|link|iframe)[^>]*(?:src|href)=["']?(?:https?:)?//"""
    )
    assert {name for name, text in pages.items() if fetched.search(text)} == set()
    assert "[6.0, 0.0]" in pages["api/boxes.html"]  # an example, shown as one
    for script in (ROOT / "scripts").glob("*.py"):
        assert f"<code>{script.name}</code>" in pages["reference/commands.html"]
    assert "{{" not in pages["results.html"] + pages["concepts/paper.html"]
