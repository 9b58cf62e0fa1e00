"""The documentation: no warning, no link that leads nowhere, nothing from elsewhere."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_site_builds_without_warnings_and_fetches_nothing():
    python = pathlib.Path(sys.executable)
    for command in (
        [python, "docs/render.py"],
        [python.with_name("zensical"), "build", "--strict", "--clean"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    site = ROOT / "build" / "site"
    pages = {
        p.relative_to(site).as_posix(): p.read_text() for p in site.rglob("*.html")
    }
    found = (site / "search.json").read_text()
    assert "elementwise_iou" in found and "results-paper.html" in found
    fetched = re.compile(
        r"""<(?:script|img|link|iframe)[^>]*(?:src|href)=["']?(?:https?:)?//"""
    )
    assert {name for name, text in pages.items() if fetched.search(text)} == set()
    assert "[6.0, 0.0]" in pages["api/boxes.html"]  # an example, shown as one
    for script in (ROOT / "scripts").glob("*.py"):
        assert f"<code>{script.name}</code>" in pages["reference/commands.html"]
    assert "{{" not in pages["results.html"] + pages["concepts/paper.html"]
