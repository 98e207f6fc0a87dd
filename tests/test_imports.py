"""Importing the package costs nothing, and its public names mean what they say, whoever imported what first."""

import subprocess
import sys
from types import FunctionType

import pytest

import llm_adapters_lab

HEAVY = ("torch", "transformers", "pydantic", "plotly", "datasets", "typer", "rich", "accelerate", "scipy", "numpy")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("module", ["llm_adapters_lab", "llm_adapters_lab.errors", "widgets"])
def test_import_loads_nothing_heavy(module):
    # What is loaded decides how long it takes (0.3 s is the aim), and does not depend on the machine.
    assert python(f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_help_does_not_wait_for_torch():
    loaded = python(f"import sys, llm_adapters_lab.cli; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded == "['typer', 'rich']"


@pytest.mark.parametrize("name", llm_adapters_lab.__all__)
def test_every_public_name_is_there(name):
    assert getattr(llm_adapters_lab, name) is not None
    assert name in dir(llm_adapters_lab)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        llm_adapters_lab.runn  # noqa: B018


@pytest.mark.parametrize("name", ["run", "train", "evaluate", "inject"])
@pytest.mark.parametrize(
    "order",
    [
        "from llm_adapters_lab import {0}",
        "import llm_adapters_lab.{0}; from llm_adapters_lab import {0}",
        "from llm_adapters_lab import {0}; import llm_adapters_lab.{0}; from llm_adapters_lab import {0}",
        "import llm_adapters_lab.run; from llm_adapters_lab import {0}",
    ],
    ids=["alone", "after its module", "before and after", "after run"],
)
def test_a_name_shared_with_a_module_means_the_function(name, order, monkeypatch):
    # As in a fresh interpreter, but without paying for the import of torch sixteen times.
    package = sys.modules["llm_adapters_lab"]
    monkeypatch.delitem(vars(package), name, raising=False)
    scope = {}
    exec(order.format(name), scope)
    assert isinstance(scope[name], FunctionType)
    assert scope[name] is vars(sys.modules[f"llm_adapters_lab.{name}"])[name]


def test_the_function_is_found_in_a_fresh_interpreter():
    code = "import llm_adapters_lab.run; from llm_adapters_lab import run; print(type(run).__name__, callable(run))"
    assert python(code) == "function True"


def test_submodules_without_such_a_name_stay_modules():
    from llm_adapters_lab import models, placement

    assert placement.__name__ == "llm_adapters_lab.placement"
    assert models.load is llm_adapters_lab.load
