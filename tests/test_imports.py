"""Importing the package costs nothing, and its public names mean what they say, whoever imported what first."""

import gc
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import llm_adapters_lab
from llm_adapters_lab._lazy import uncollected

HEAVY = ("torch", "transformers", "pydantic", "plotly", "datasets", "typer", "rich", "accelerate", "scipy", "numpy")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("module", ["llm_adapters_lab", "llm_adapters_lab.errors", "widgets"])
def test_import_loads_nothing_heavy(module):
    # What is loaded decides how long it takes (0.3 s is the aim), and does not depend on the machine.
    assert python(f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_help_does_not_wait_for_torch():
    loaded = python(f"import sys, llm_adapters_lab.cli.app; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded == "['typer', 'rich']"


@pytest.mark.parametrize("on", [True, False])
def test_garbage_is_collected_after_an_import_as_before(on: bool) -> None:
    was_on = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(ImportError), uncollected():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == on
    finally:
        (gc.enable if was_on else gc.disable)()


@pytest.mark.parametrize("name", llm_adapters_lab.__all__)
def test_every_public_name_is_there(name):
    assert getattr(llm_adapters_lab, name) is not None
    assert name in dir(llm_adapters_lab)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        llm_adapters_lab.runn  # noqa: B018


ROOMS = ("core", "models", "tasks", "evaluation", "training", "inspection", "runs", "sweeps", "results")


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_of_a_room_is_there_and_no_module_hides_a_function(room):
    face = importlib.import_module(f"llm_adapters_lab.{room}")
    modules = {path.stem for path in Path(face.__file__).parent.iterdir() if path.suffix in (".py", "")}
    for name in face.__all__:
        value = getattr(face, name)
        assert name in dir(face)
        assert isinstance(value, ModuleType) == (name in modules)


def test_the_function_is_found_in_a_fresh_interpreter():
    code = "import llm_adapters_lab.runs; from llm_adapters_lab import run; print(type(run).__name__, callable(run))"
    assert python(code) == "function True"


def test_submodules_without_such_a_name_stay_modules():
    from llm_adapters_lab.core import placement
    from llm_adapters_lab.models import loading

    assert placement.__name__ == "llm_adapters_lab.core.placement"
    assert loading.load_base is inspect.unwrap(llm_adapters_lab.load_base)
