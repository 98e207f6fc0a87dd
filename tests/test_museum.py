"""The museum: every exhibit has its docstring and one short test; docs/museum.md is checked with the other tables."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
EXHIBITS = sorted((ROOT / "tests" / "museum").glob("test_*.py"))
LINES = 25


@pytest.fixture(scope="module")
def make_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXHIBITS, ids=lambda path: path.stem)
def test_an_exhibit_has_its_docstring_and_one_short_test(path: Path, make_tables: ModuleType) -> None:
    assert make_tables.exhibit(path).title
    tests = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(tests) == 1
    assert (tests[0].end_lineno or 0) - tests[0].lineno + 1 <= LINES


def test_titles_are_unique(make_tables: ModuleType) -> None:
    titles = [one.title for one in make_tables.exhibits()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No area.\n\nElsewhere: x\nHere: y\nVerdict: right → right",
        "Two\nlines.\n\nArea: data\nElsewhere: x\nHere: y\nVerdict: right → right",
        "Other area.\n\nArea: weather\nElsewhere: x\nHere: y\nVerdict: right → right",
        "Other order.\n\nArea: data\nHere: y\nElsewhere: x\nVerdict: right → right",
        "Empty.\n\nArea: data\nElsewhere: x\nHere:\nVerdict: right → right",
        "No verdict.\n\nArea: data\nElsewhere: x\nBefore: y\nHere: z",
        "Other word.\n\nArea: data\nElsewhere: x\nBefore: y\nHere: z\nVerdict: silent → silent",
        "Two words.\n\nArea: data\nElsewhere: x\nBefore: y\nHere: z\nVerdict: silent → told or refused",
        "Silent without a line.\n\nArea: data\nElsewhere: x\nHere: z\nVerdict: silent → right",
    ],
)
def test_a_docstring_of_another_form_is_refused(text: str, tmp_path: Path, make_tables: ModuleType) -> None:
    path = tmp_path / "test_x.py"
    path.write_text(f'"""{text}"""\n', encoding="utf-8")
    with pytest.raises(ValueError, match="test_x"):
        make_tables.exhibit(path)
