"""The notebook runs from top to bottom and ends with pictures."""

import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parents[2] / "examples" / "shapes.ipynb"


def test_notebook_imports_what_is_there(monkeypatch):
    monkeypatch.syspath_prepend(str(NOTEBOOK.parents[1]))
    code = [c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells]
    lines = re.findall(
        r"^(?:from|import) (?:frcnn_jax|experiments).*$", "\n".join(code), re.M
    )
    assert len(lines) > 5
    for line in lines:
        exec(line, {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own machinery
def test_notebook_trains_and_shows(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    client.execute()  # raises where a cell does
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    kinds = [kind for o in outputs for kind in o.get("data", {})]
    assert kinds.count("image/jpeg") == 3 and kinds.count("image/svg+xml") == 1
    text = "".join(o.get("text", "") for o in outputs)
    assert "step 300/300" in text and "'AP50'" in text
