"""The Colab demo runs from its first cell to its last, with a short training."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from adafuse_jax.input.moving_shapes import CLASSES

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "colab_demo.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def outputs(committed, tmp_path_factory):
    """{cell id: outputs} of the notebook run with a hundredth of its training."""
    workdir = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.from_dict(committed)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = f"LENGTH = 0.01\nWORKDIR = {str(workdir)!r}"
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)  # the kernel sees the machine's own devices
        client.execute()
    return {cell.id: cell.get("outputs", []) for cell in notebook.cells}


def text(outputs):
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def test_nothing_computed_is_committed(committed):
    for cell in committed.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_figures_are_shown(outputs):
    for cell in ("policies", "actions"):
        (figure,) = outputs[cell]
        assert figure.data["image/png"]


def test_prediction_names_classes_and_the_dense_cost(outputs):
    predicted = text(outputs["predict"])
    classes = re.findall(r"([\d.]+)%  ([a-z-]+)", predicted.split("cost")[0])
    assert len(classes) == 5 and {name for _, name in classes} <= set(CLASSES)
    assert sorted(classes, key=lambda c: -float(c[0])) == classes
    dense = re.compile(r"GMACs per clip of ([\d.]+) dense")
    assert dense.search(predicted).group(1) == dense.search(text(outputs["train"])).group(1)
