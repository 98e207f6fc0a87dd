"""Notebooks are valid, have no outputs, and begin with their parameters."""

from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [path for folder in ("papermill_runs", "notebooks") for path in sorted((ROOT / folder).glob("*.ipynb"))]


APP = ROOT / "notebooks" / "app.ipynb"


def parameter_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_valid_has_no_outputs_and_begins_with_its_parameters(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count]
    assert parameter_cells(notebook) == code[: path != APP]
    assert "widgets" not in notebook.metadata


def test_the_app_is_the_lab_and_nothing_else():
    (cell,) = nbformat.read(APP, as_version=4).cells
    assert cell.source == "from widgets import Lab\n\nLab()"
