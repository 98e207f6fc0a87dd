"""The course: every notebook runs from top to bottom, has figures and exercises, and its links work."""

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

COURSE = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(COURSE.glob("[0-9]*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
SECONDS = 600
"""Time limit of a cell. In FAST mode a cell takes a few seconds, but a busy machine is many times slower."""

LINK = re.compile(r"\]\(([^)\s]+)\)")
ARXIV = re.compile(r"https://arxiv\.org/abs/\d{4}\.\d{5}")
FIGURE = "application/vnd.plotly.v1+json"

pytestmark = pytest.mark.filterwarnings("default")  # papermill, jupyter_client and zmq have warnings of their own
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def tagged(notebook: Any, tag: str) -> list[Any]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def prose(path: Path) -> str:
    return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def execute(path: Path, folder: Path, **parameters: Any) -> Any:
    """Run a notebook in an empty folder, as someone would who has only installed the lab."""
    here = {"cwd": folder, "progress_bar": False, "start_timeout": 120, "execution_timeout": SECONDS}
    return papermill.execute_notebook(path, folder / path.name, {"FAST": True, **parameters}, **here)


def figures(notebook: Any) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(FIGURE in output.get("data", {}) for output in outputs)


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel is a separate process; nano is slower on several threads than on one while other tests run.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_course_is_complete_and_its_contents_page_lists_every_notebook():
    assert [name[:2] for name in NAMES] == [f"{number:02d}" for number in range(1, 15)]
    page = (COURSE / "README.md").read_text(encoding="utf-8")
    assert [link for link in LINK.findall(page) if link.endswith(".ipynb")] == [path.name for path in NOTEBOOKS]


@each
def test_a_notebook_states_goals_needs_and_sources(path: Path):
    notebook = read(path)
    first = notebook.cells[0].source
    assert first.startswith(f"# {path.stem[:2]} · ")
    for part in ("**What you will learn**", "**Needs** about ", "**Papers** "):
        assert part in first, part
    assert ARXIV.search(first)
    assert notebook.metadata.kernelspec.name == "python3"
    # Prose before code in every section.
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds.count("markdown") >= 8


@each
def test_the_parameters_are_typed_and_every_notebook_can_be_fast(path: Path):
    notebook = read(path)
    (cell,) = tagged(notebook, "parameters")
    lines = ast.parse(cell.source).body
    assert all(isinstance(line, ast.AnnAssign) for line in lines)
    assert {"FAST: bool = False", "ROOT: str = 'runs'"} <= {ast.unparse(line) for line in lines}


@each
def test_exercises_have_an_answer_cell_and_a_hidden_solution_that_checks_it(path: Path):
    notebook = read(path)
    answers, solutions = tagged(notebook, "answer"), tagged(notebook, "solution")
    asked = re.findall(r"\*\*Exercise \d+\.\*\*", prose(path))
    assert len(answers) == len(solutions) == len(asked) >= 3
    for answer, solution in zip(answers, solutions, strict=True):
        assert notebook.cells.index(solution) == notebook.cells.index(answer) + 1
        assert solution.metadata.jupyter.source_hidden is True
        assert "source_hidden" not in answer.metadata.get("jupyter", {})
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(solution.source))) or (
            "check(" in solution.source
        )


@pytest.mark.parametrize("path", [*NOTEBOOKS, COURSE / "README.md"], ids=[*NAMES, "README"])
def test_links_work(path: Path):
    text = prose(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    links = LINK.findall(text)
    assert links
    for link in links:
        if link.startswith("https://arxiv.org"):
            assert ARXIV.fullmatch(link), link
        elif not link.startswith("https://"):
            assert (COURSE / link.partition("#")[0]).exists(), link


@each
def test_a_notebook_contains_no_absolute_path(path: Path):
    assert not re.search(r"""["'(\s](/[a-z]+/|[A-Z]:\\|~/)""", "\n".join(cell.source for cell in read(path).cells))


@pytest.mark.slow
@each
def test_a_notebook_runs_and_draws(path: Path, tmp_path: Path):
    # The real model takes minutes to load and train on a busy machine; it is tested elsewhere.
    small = {"BASE": "nano"} if path.stem.startswith("08") else {}
    notebook = execute(path, tmp_path, **small)
    assert figures(notebook) >= 1
    assert {entry.name for entry in tmp_path.iterdir()} <= {path.name, "runs"}


@pytest.mark.slow
def test_the_quickstart_runs_without_its_panel(tmp_path: Path):
    notebook = read(COURSE / "01_quickstart.ipynb")
    (panel,) = [cell for cell in notebook.cells if "from widgets import Lab" in cell.source]
    panel.source = "pass"
    nbformat.write(notebook, tmp_path / "quickstart.ipynb")
    assert figures(execute(tmp_path / "quickstart.ipynb", tmp_path)) >= 3


@pytest.mark.slow
def test_without_the_real_model_its_notebook_reports_it_and_continues(tmp_path: Path):
    notebook = execute(COURSE / "08_a_real_model.ipynb", tmp_path, BASE="smollm2")
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "There is no model 'smollm2'. Did you mean 'smollm2-135m'" in printed
    assert "The cells below use nano instead" in printed


@pytest.mark.slow
def test_a_wrong_answer_is_detected(tmp_path: Path):
    from papermill.exceptions import PapermillExecutionError

    notebook = read(COURSE / "05_placement_and_rank.ipynb")
    first = tagged(notebook, "answer")[0]
    assert first.source == "rank = None"
    first.source = "rank = 3"
    # Only the cells that the exercise needs.
    keep = {cell.id for cell in (notebook.cells[notebook.cells.index(first) + 1], first)}
    needed = [
        c
        for c in notebook.cells
        if c.cell_type == "code" and re.search(r"^(import|FAST|def parameters|model =)", c.source, re.M)
    ]
    notebook.cells = [c for c in notebook.cells if c.id in keep or c in needed]
    nbformat.write(notebook, tmp_path / "wrong.ipynb")
    with pytest.raises(PapermillExecutionError, match="AssertionError"):
        execute(tmp_path / "wrong.ipynb", tmp_path)
