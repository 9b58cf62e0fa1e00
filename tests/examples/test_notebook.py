"""The notebooks run from top to bottom; one ends with pictures, one with a table."""

import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parents[2] / "examples" / "shapes.ipynb"
ACCELERATOR = NOTEBOOK.with_name("accelerator.ipynb")


@pytest.mark.parametrize("path, count", [(NOTEBOOK, 6), (ACCELERATOR, 2)])
def test_notebook_imports_what_is_there(monkeypatch, path, count):
    monkeypatch.syspath_prepend(str(NOTEBOOK.parents[1]))
    code = [c.source for c in nbformat.read(path, as_version=4).cells]
    lines = re.findall(
        r"^(?:from|import) (?:frcnn_jax|experiments).*$", "\n".join(code), re.M
    )
    assert len(lines) >= count
    for line in lines:
        exec(line, {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own machinery
def test_notebook_trains_and_shows(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # That the experiment learns is asserted in tests/test_learning.py.
    (cell,) = [c for c in notebook.cells if "checkpoint_every = 300" in c.source]
    cell.source = cell.source.replace("every = 300", "every = 20")
    cell.source = cell.source.replace("val[:60]", "val[:8]")
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
    assert "step 20/20" in text and "'AP50'" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own machinery
def test_the_accelerators_notebook_prints_its_box(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(ACCELERATOR, as_version=4)
    (cell,) = [c for c in notebook.cells if "STEPS = 300" in c.source]
    cell.source = cell.source.replace("STEPS = 300", "STEPS = 20")
    cell.source = cell.source.replace("val[:60]", "val[:8]")
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(ACCELERATOR.parent)}},
    )
    client.execute()
    lines = notebook.cells[-1].outputs[-1]["text"].strip().splitlines()
    names, values = (
        [x.strip() for x in lines[i].strip("|").split("|")] for i in (0, 2)
    )
    box = dict(zip(names, values, strict=True))
    assert box["device"].endswith("cpu") and box["experiment"] == "shapes_demo"
    assert float(box["step"].removesuffix(" ms")) > 0
    assert int(box["programs compiled"].split(" ")[0]) >= 2  # a step, an evaluation
    assert float(box["memory at most"].removesuffix(" GB")) > 0.1
