"""Headless: the run notebooks under papermill's command line, their specs, and one run from every entry point."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from papermill import inspect_notebook

from llm_adapters_lab.config import change
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs import notebook_parameters
from llm_adapters_lab.runs.background import follow
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.notebook_parameters import FAST, given, papermill_line
from llm_adapters_lab.runs.record import Run, list_runs
from llm_adapters_lab.runs.spec import RunSpec
from widgets import Lab

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "papermill_runs"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SPECS = sorted((FOLDER / "specs").glob("*.yaml"))
EXTRA = {"root", "compare", "fast"}
FIGURES = {
    "run": ("loss", "norms", "accuracy", "cost"),
    "compare": ("accuracy", "cost", "loss"),
    "placement_study": ("places", "sizes"),
    "paper_table": ("means", "accuracy"),
    "benchmark": ("figures",),
}
SMALL: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 2},
    "data": {"rows": 8, "validation": 2},
    "train": {"max_steps": 3, "batch": 2},
    "eval": {"tasks": ["mini-addsub"], "rows": 2, "max_new_tokens": 2},
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels and processes compute with as many threads as this one."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def papermill(name: str, out: Path, values: dict[str, Any]) -> tuple[int, Any, str]:
    """Run a notebook with papermill's command line; return exit code, executed notebook and stderr."""
    line = shlex.split(papermill_line(f"papermill_runs/{name}.ipynb", values, str(out)))
    command = [sys.executable, "-m", *line, "--no-progress-bar"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, nbformat.read(out, as_version=4), done.stderr


def outputs(notebook: Any) -> dict[str, Any]:
    return {cell.id: cell.get("outputs", []) for cell in notebook.cells}


def timeless(record: Run) -> tuple[Any, ...]:
    summary = record.summary
    for key in ("seconds", "tokens_per_second", "peak_memory_bytes"):
        del summary["train"][key]
    return summary, [e["loss"] for e in record.events("Step")], list(record.predictions())


def declared(name: str) -> dict[str, ast.AnnAssign]:
    """Return the lines of a notebook's parameters."""
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    (cell,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    lines = ast.parse(cell.source).body
    assert all(isinstance(line, ast.AnnAssign) for line in lines)
    return {line.target.id: line for line in lines}  # type: ignore[attr-defined]


# The files


def test_the_parameters_of_run_are_the_fields_of_a_spec_with_its_defaults() -> None:
    values = {name: ast.literal_eval(line.value) for name, line in declared("run").items() if line.value}
    assert set(values) == set(RunSpec.model_fields) | EXTRA
    # A key that a spec file omits must mean the same here as on the command line.
    assert RunSpec.parse({key: value for key, value in values.items() if key not in EXTRA}) == RunSpec()


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_file_is_valid_and_fits_the_notebook(path: Path) -> None:
    spec = RunSpec.load(path)
    assert spec.eval.tasks
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= set(RunSpec.model_fields)
    assert RunSpec.load(path, FAST).id != spec.id


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_papermill_knows_the_types_of_all_parameters(name: str) -> None:
    inspected = inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    found = {key: parameter["inferred_type_name"] for key, parameter in inspected.items()}
    assert found == {key: ast.unparse(line.annotation) for key, line in declared(name).items()}
    assert "fast" in found


def test_every_papermill_command_has_time_limits() -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    kinds = (".md", ".yaml", ".ipynb", ".py", "Makefile")
    files = [ROOT / name for name in listed.stdout.splitlines() if name.endswith(kinds) and (ROOT / name).is_file()]
    text = [path.read_text(encoding="utf-8").replace("\\\n", " ") for path in files if path != Path(__file__)]
    lines = [line for each in text for line in each.splitlines() if re.search(r"papermill .*\.ipynb .*\.ipynb", line)]
    assert len(lines) >= 8
    assert not [line for line in lines if "--execution-timeout" not in line or "--start-timeout" not in line]


# Parameters


def check(source: str, injected: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    cells = ["", "%matplotlib inline", source, *([f"# Parameters\n{injected}\n"] if injected else []), "given(In)"]
    for cell in cells[2:-1]:
        exec(cell, values)
    return given(cells, values)


TYPED = (
    "rank: int = 4  # how wide\ntasks: list[str] = []\nadapter: object = None\nrate: float = 1.0\nfast: bool = False"
)


def test_given_parameters_are_distinguished_from_defaults() -> None:
    assert check(TYPED) == {}
    assert check(TYPED, "rank = 4\nrate = 2") == {"rate": 2}
    given_three = check(TYPED, 'adapter = {"type": "lora"}\nfast = True\ntasks = ["a"]')
    assert given_three == {"tasks": ["a"], "adapter": {"type": "lora"}, "fast": True}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rnak = 8", "'rnak' is not a known key. Did you mean 'rank'"),
        ("rank = '8'", "rank must be a whole number; given was '8'"),
        ("fast = 'no'", "fast must be true or false; given was 'no'"),
        ("tasks = 'mini-bool'", "tasks must be a list, each item text; given was 'mini-bool'"),
        ("tasks = [3]", "tasks[0] must be text; given was 3"),
    ],
)
def test_a_wrong_parameter_is_refused(line: str, message: str) -> None:
    with pytest.raises(BadSpec, match=re.escape(message)):
        check(TYPED, line)


def test_the_command_that_repeats_a_notebook_has_the_same_parameters() -> None:
    changed = {"adapter": {"type": "lora", "at": "q,v"}, "root": "a folder/ünd", "seed": 3, "tasks": ["it's", "null"]}
    line = shlex.split(papermill_line("n.ipynb", changed))
    assert line[:4] == ["papermill", "n.ipynb", "out.ipynb", "-y"]
    assert yaml.safe_load(line[4]) == changed
    assert line[5:] == list(notebook_parameters.LIMITS)
    assert "-y" not in papermill_line("n.ipynb", {})


# The notebooks


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_run_notebook_from_the_command_line(name: str, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    values: dict[str, Any] = {"root": str(root), "fast": True}
    spec = RunSpec.load(FOLDER / "specs" / "nano-lora.yaml", FAST)
    if name == "run":
        fields = yaml.safe_load((FOLDER / "specs" / "nano-lora.yaml").read_text(encoding="utf-8"))
        values |= {**fields, "compare": ["papermill_runs/specs/nano-base.yaml"]}
    else:
        values["out"] = str(root / f"{name}.html")
    code, notebook, stderr = papermill(name, tmp_path / "out.ipynb", values)
    assert code == 0, stderr
    made = outputs(notebook)
    for cell in FIGURES[name]:
        assert any("application/vnd.plotly.v1+json" in each.get("data", {}) for each in made[cell]), cell
    assert not [cell for cell in notebook.cells if "FigureWidget" in cell.source]
    assert not notebook.metadata.get("widgets")
    assert (tmp_path / "out.ipynb").stat().st_size < 300_000
    path, line = (text.strip() for text in made["report"][0]["text"].splitlines()[:2])
    assert Path(path.removeprefix("report: ")).stat().st_size > 1_000_000
    assert yaml.safe_load(shlex.split(line)[4]) == {key: values[key] for key in yaml.safe_load(shlex.split(line)[4])}
    assert shlex.split(line)[1] == f"papermill_runs/{name}.ipynb"
    assert {run.summary["status"] for run in list_runs(root)} == {"finished"}
    if name in ("run", "compare"):
        assert spec.id in {run.id for run in list_runs(root)}


@pytest.mark.slow
def test_an_unknown_parameter_ends_with_code_1_and_a_partial_notebook(tmp_path: Path) -> None:
    values = {"root": str(tmp_path / "runs"), "adaptor": {"type": "lora"}}
    code, notebook, stderr = papermill("run", tmp_path / "out.ipynb", values)
    assert code == 1
    assert "'adaptor' is not a known key. Did you mean 'adapter'" in stderr
    made = outputs(notebook)
    assert [each["output_type"] for each in made["given"]] == ["error"]
    assert made["check"] == made["run"] == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_failed_run_is_recorded_as_failed_and_leaves_a_partial_notebook(tmp_path: Path) -> None:
    # Gradient checkpointing discards the cache that holds a prefix, which is detected when training begins.
    fields = change(SMALL, {"adapter": {"type": "prefix"}, "train.gradient_checkpointing": True})
    code, notebook, stderr = papermill("run", tmp_path / "out.ipynb", {**fields, "root": str(tmp_path / "runs")})
    assert code == 1
    assert "CannotInject" in stderr
    made = outputs(notebook)
    assert RunSpec.parse(fields).id in made["check"][0]["text"]
    assert made["run"][-1]["ename"] == "CannotInject"
    assert made["loss"] == []
    (record,) = list_runs(tmp_path / "runs")
    assert record.id == RunSpec.parse(fields).id
    assert record.summary["status"] == "failed"


@pytest.mark.slow
def test_panel_notebook_command_line_and_python_give_bit_identical_runs(tmp_path: Path) -> None:
    spec = RunSpec.parse(SMALL)
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    found = {"python": run(spec, root=tmp_path / "python")}

    lab = Lab(tmp_path / "click", spec)
    lab.bar.start.click()
    assert not lab.problem.value
    assert list(follow(Run(tmp_path / "click" / spec.id)))[-1]["event"] == "Finished"
    lab.close()

    line = [sys.executable, "-m", "llm_adapters_lab", "run", str(file), "--root", str(tmp_path / "line"), "--json"]
    printed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    code, _, stderr = papermill("run", tmp_path / "out.ipynb", {**SMALL, "root": str(tmp_path / "notebook")})
    assert code == 0, stderr

    for way in ("click", "line", "notebook"):
        (found[way],) = list_runs(tmp_path / way)
        assert found[way].id == spec.id
        assert timeless(found[way]) == timeless(found["python"]), way
    assert json.loads(printed.splitlines()[-1])["id"] == spec.id
