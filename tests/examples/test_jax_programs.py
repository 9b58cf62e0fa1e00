"""The code of docs/howto/jax-programs.md, from top to bottom."""

import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "howto" / "jax-programs.md"


@pytest.mark.slow
def test_code_of_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 6
    exec(compile("\n".join(blocks), PAGE.name, "exec"), {})
