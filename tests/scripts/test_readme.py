"""What README and quickstart tell a newcomer to type is there, and runs."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ("README.md", "docs/quickstart.md")


def commands(page):
    """The lines `python scripts/...` of the page's shell blocks."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("py")]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_the_commands_name_are_there(page):
    found = commands(page)
    assert len(found) >= 3
    for command in found:
        for word in command:
            path = word.split("=")[-1].split(":")[0]
            if path.startswith(("scripts/", "experiments/", "examples/")):
                assert (ROOT / path).exists(), (page, path)


def shapes(page):
    """The commands that need no data, but for the slow run."""
    return [
        c
        for c in commands(page)
        if any("shapes" in word for word in c) and not any("slow" in word for word in c)
    ]


def test_both_pages_tell_the_same_commands():
    readme, quickstart = map(shapes, PAGES)
    assert readme == quickstart


@pytest.mark.slow
def test_the_commands_that_need_no_data_run(tmp_path):
    """In a folder that shows the repository's; the experiment takes its small form."""
    for name in ("scripts", "experiments", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    runs = shapes(PAGES[0])
    assert [pathlib.Path(c[1]).stem for c in runs] == ["train", "evaluate", "predict"]
    for command in runs:
        command = [re.sub(r"(shapes_demo\.py)$", r"\1:runlocal", w) for w in command]
        done = subprocess.run(
            [sys.executable, *command[1:]],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        json.loads(done.stdout.splitlines()[-1])
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 3


def test_every_flag_that_the_documentation_names_is_one():
    """In shell blocks and in code within a line; `--config.LEAF` are leaves."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    wrong, seen = [], 0
    for page in pages:
        text = page.read_text().replace("\\\n", " ")
        called = re.compile(
            r"(?<![\w/])((?:scripts|scripts/bench|tests/parity)/\w+\.py)"
            r"((?: [^`\n|;]+)?)"
        )
        for script, rest in called.findall(text):
            source = (ROOT / script).read_text()
            own = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
            own |= {"config"} if "define_config" in source else set()
            own |= {"set", "config"} if "define_changes" in source else set()
            for flag in re.findall(r"(?<!\S)--(\w+)", rest):
                seen += 1
                if flag not in own and flag.removeprefix("no") not in own | {"help"}:
                    wrong.append(f"{page.relative_to(ROOT)}: {script} --{flag}")
    assert not wrong
    assert seen > 100
