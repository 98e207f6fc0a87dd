"""The rules of CONTRIBUTING.md that a machine can check, read from the source without importing it."""

import ast
import subprocess
import sys
from pathlib import Path

import house
import pytest

from llm_adapters_lab.core.placement import ROLES

ROOT = Path(__file__).parents[1]
LAB = "llm_adapters_lab"
LIBRARY = sorted((ROOT / LAB).rglob("*.py"))
PANELS = sorted((ROOT / "widgets").rglob("*.py"))
ADAPTERS = [p for p in sorted((ROOT / LAB / "adapters").glob("*.py")) if p.name != "__init__.py"]

TOP_LEVEL = {
    *("notebooks", LAB, "widgets", "papermill_runs", "tests", "environment.yml", "README.md"),
    *("pyproject.toml", "constraints.txt", "requirements-gemma.txt", "Makefile", ".ci", ".gitignore", "benchmarks"),
    *("docs", "CHANGELOG.md", "CONTRIBUTING.md", "LOG.md", "LICENSE"),
}
CORE = ("core/injection", "training/loop", "evaluation/predictions", "runs/execution")
CORE_LIBRARIES = {"torch", "transformers", "accelerate", "psutil", "pydantic", "safetensors", "yaml"}
FRONT_ENDS = {"ipywidgets", "IPython", "ipykernel", "jupyterlab", "papermill", "nbformat", "widgets", "notebooks"}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ADAPTER_LINES = 100

# The rooms of the library from the bottom up: each imports only from rooms before it, and the ground floor.
ROOMS = (
    "tasks",
    "core",
    "models",
    "adapters",
    "evaluation",
    "training",
    "inspection",
    "runs",
    "sweeps",
    "results",
    "cli",
)
GROUND = ("_lazy", "_version", "config", "errors", "events", "files", "markup", "privacy", "signatures")
PANEL_ROOMS = ("kit", "figures", "forms", "panels", "lab")


def ids(path):
    return str(path.relative_to(ROOT))


def imports(tree, *, run_only=False):
    """Yield the dotted names a module imports; with `run_only`, those at module level that run at import."""
    for node in _at_module_level(tree) if run_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_module_level(node):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _at_module_level(child)


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def own_module(name):
    """Return the file of the lab that a dotted import names, or None."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:end])
        if place.with_suffix(".py").is_file():
            return place.with_suffix(".py")
        if (place / "__init__.py").is_file():
            return place / "__init__.py"
    return None


@pytest.mark.parametrize("path", LIBRARY, ids=ids)
def test_the_library_knows_no_front_end(path):
    roots = {name.split(".")[0] for name in imports(parse(path))}
    assert not roots & FRONT_ENDS
    if path.parent.name != "cli":
        assert not roots & {"typer", "click", "rich"}


@pytest.mark.parametrize("path", PANELS, ids=ids)
def test_panels_import_no_notebooks(path):
    assert not {name.split(".")[0] for name in imports(parse(path))} & {"notebooks", "papermill_runs", "tests"}


@pytest.mark.parametrize("name", CORE)
def test_the_core_stands_on_few_libraries(name):
    todo, seen, roots = [ROOT / LAB / f"{name}.py"], set(), set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for imported in imports(parse(path), run_only=True):
            if imported.split(".")[0] == LAB:
                todo.append(own_module(imported))
            else:
                roots.add(imported.split(".")[0])
    assert roots - set(sys.stdlib_module_names) <= CORE_LIBRARIES
    assert len(seen) > 3


@pytest.mark.parametrize("path", LIBRARY + PANELS, ids=ids)
def test_nothing_is_unpickled(path):
    tree = parse(path)
    assert not {name.split(".")[0] for name in imports(tree)} & UNSAFE
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | set(imports(tree))
    assert not used & {"torch.load", "torch.save"}


def test_an_adapter_fits_on_a_page():
    lengths = {ids(path): len(path.read_text(encoding="utf-8").splitlines()) for path in ADAPTERS}
    assert not {name: n for name, n in lengths.items() if n > ADAPTER_LINES}


@pytest.mark.parametrize(("package", "order"), [(LAB, (*GROUND, *ROOMS)), ("widgets", PANEL_ROOMS)])
def test_every_module_has_its_room_and_imports_downwards(package, order):
    rank = {room: 0 if room in GROUND else number for number, room in enumerate(order)}
    arrows = house.graph(ROOT, package)
    inside = {name: others for name, others in arrows.items() if name not in (package, f"{package}.__main__")}
    assert {house.room(name) for name in inside} == set(order)
    upward = [
        f"{name} -> {other}"
        for name, others in inside.items()
        for other in others
        if other == package or rank[house.room(other)] > rank[house.room(name)]
    ]
    assert not upward


@pytest.mark.parametrize("package", [LAB, "widgets"])
def test_there_is_no_circle_of_files(package):
    assert house.circles(house.graph(ROOT, package)) == []


@pytest.mark.parametrize("path", [p for p in LIBRARY if p.parent.name != "cli"], ids=ids)
def test_the_lab_is_imported_at_the_top_of_a_file(path):
    """An import inside a function hides an arrow; the command line has them, so that it answers at once."""
    tree = parse(path)
    top = {name for name in imports(tree, run_only=True) if name.startswith(LAB)}
    typed = {name for node in tree.body if isinstance(node, ast.If) for name in imports(node)}
    assert not {name for name in imports(tree) if name.startswith(LAB)} - top - typed


def test_there_is_one_entry_point():
    for path in LIBRARY + PANELS:
        if path == ROOT / LAB / "runs" / "execution.py":
            continue
        tree = parse(path)
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        command = path.parent.name == "cli"  # named after what it calls
        assert "run" not in defined or command, f"{ids(path)} defines a second run"
        # Who trains or scores without `run` leaves no record.
        taken = set(imports(tree)) & {f"{LAB}.training.loop.train", f"{LAB}.evaluation.predictions.evaluate"}
        assert not taken or path.parent == ROOT / LAB / "runs", f"{ids(path)} goes around run()"


@pytest.mark.parametrize("path", [p for p in LIBRARY + PANELS if p not in ADAPTERS], ids=ids)
def test_only_its_own_file_names_an_adapter(path):
    names = {
        node.args[0].value
        for adapter in ADAPTERS
        for node in ast.walk(parse(adapter))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "register_adapter"
    }
    assert len(names) == len(ADAPTERS) >= 4
    strings = {node.value for node in ast.walk(parse(path)) if isinstance(node, ast.Constant)}
    assert not {s for s in strings if isinstance(s, str)} & names - set(ROLES)  # a mixer may be a convolution too


@pytest.mark.parametrize("path", [*LIBRARY, *PANELS, *sorted((ROOT / "tests").glob("*.py"))], ids=ids)
def test_every_module_says_what_it_is(path):
    first = (ast.get_docstring(parse(path)) or "").partition("\n")[0]
    assert len(first) > 10


def test_the_top_level_is_the_agreed_one():
    # Neither ignored files nor a checkout without git are of interest.
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= TOP_LEVEL
