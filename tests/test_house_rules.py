"""The rules of CONTRIBUTING.md that a machine can check, read from the source without importing it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAB = "llm_adapters_lab"
LIBRARY = sorted((ROOT / LAB).rglob("*.py"))
PANELS = sorted((ROOT / "widgets").rglob("*.py"))
ADAPTERS = [p for p in sorted((ROOT / LAB / "adapters").glob("*.py")) if p.name != "__init__.py"]

TOP_LEVEL = {
    *("notebooks", LAB, "widgets", "papermill_runs", "tests", "environment.yml", "README.md"),
    *("pyproject.toml", "constraints.txt", "Makefile", ".ci", ".gitignore", "benchmarks"),
    *("docs", "CHANGELOG.md", "CONTRIBUTING.md", "LOG.md", "LICENSE"),
}
CORE = ("inject", "train", "evaluate", "run")
CORE_LIBRARIES = {"torch", "transformers", "accelerate", "pydantic", "safetensors"}
FRONT_ENDS = {"ipywidgets", "IPython", "ipykernel", "jupyterlab", "papermill", "nbformat", "widgets", "notebooks"}
TERMINAL = {"again.py", "cli.py", "catalogue.py", "sweeps.py", "terminal.py", "transfer.py"}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

FILE_LINES, ADAPTER_LINES, FUNCTION_LINES = 400, 100, 40
# Known to be longer, with the length they may not exceed. An entry that is no longer needed fails too.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS = {
    # It tells one story from beginning to end, which pieces would hide.
    "llm_adapters_lab/train.py:train": 69,
}


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
    if path.name not in TERMINAL:
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


def test_files_have_a_size_one_can_read():
    limits = {path: ADAPTER_LINES if path in ADAPTERS else FILE_LINES for path in LIBRARY + PANELS}
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in limits}
    _check_sizes({ids(p): n for p, n in lengths.items() if n > limits[p]}, LONG_FILES)


def test_functions_have_a_size_one_can_read():
    long = {}
    for path in LIBRARY + PANELS:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node) is not None:
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{ids(path)}:{node.name}"] = lines
    _check_sizes(long, LONG_FUNCTIONS)


def _check_sizes(found, allowed):
    too_long = {name: lines for name, lines in found.items() if lines > allowed.get(name, 0)}
    assert not too_long, "longer than agreed: shorten, or list with a reason"
    assert not set(allowed) - set(found), "no longer too long: take them off the list"


def test_there_is_one_entry_point():
    for path in LIBRARY + PANELS:
        if path == ROOT / LAB / "run.py":
            continue
        tree = parse(path)
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert "run" not in defined, f"{ids(path)} defines a second run"
        # Who trains or scores without `run` leaves no record.
        taken = {name for name in imports(tree) if name.startswith((f"{LAB}.train", f"{LAB}.evaluate"))}
        assert not taken or path == ROOT / LAB / "__init__.py", f"{ids(path)} goes around run()"


@pytest.mark.parametrize("path", [p for p in LIBRARY + PANELS if p not in ADAPTERS], ids=ids)
def test_only_its_own_file_names_an_adapter(path):
    names = {
        node.args[0].value
        for adapter in ADAPTERS
        for node in ast.walk(parse(adapter))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "register"
    }
    assert len(names) == len(ADAPTERS) >= 4
    strings = {node.value for node in ast.walk(parse(path)) if isinstance(node, ast.Constant)}
    assert not {s for s in strings if isinstance(s, str)} & names


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
