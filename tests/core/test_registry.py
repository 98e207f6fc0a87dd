"""The registry reads the heads of adapter files, with the same result as importing them."""

import importlib
import json
import subprocess
import sys

import pytest

from llm_adapters_lab.core import registry
from llm_adapters_lab.core.registry import ADAPTERS, all_adapters, get_adapter
from llm_adapters_lab.errors import BadSpec

HEADS = """
import json, sys
from llm_adapters_lab.core.registry import all_adapters
found = {
    name: [e.at, e.source, e.colour, e.idea, e.module, e.placed, e.config.model_json_schema()]
    for name, e in all_adapters().items()
}
print(json.dumps([found, [name for name in ("torch", "transformers", "numpy") if name in sys.modules]]))
"""


def test_heads_agree_with_the_imported_modules_and_do_not_load_torch() -> None:
    done = subprocess.run([sys.executable, "-c", HEADS], capture_output=True, text=True, check=True)
    heads, heavy = json.loads(done.stdout)
    assert heavy == []
    for name in heads:
        entry = all_adapters()[name]
        importlib.import_module(entry.module)
        entry = all_adapters()[name]
        facts = [entry.at, entry.source, entry.colour, entry.idea, entry.module, entry.placed]
        assert json.loads(json.dumps([*facts, entry.config.model_json_schema()])) == heads[name]
        assert entry.cls.__module__ == entry.module == entry.config.__module__
    assert len(heads) >= 15


def test_a_class_is_imported_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    registry._read_own.cache_clear()
    monkeypatch.setattr(registry, "REGISTRY", {})
    monkeypatch.delitem(sys.modules, f"{ADAPTERS}.krona")
    entry = get_adapter("krona")
    assert entry.loaded is None
    assert entry.cls.__name__ == "KronA"
    assert get_adapter("krona").loaded is entry.cls
    before, after = entry.config(type="krona", factor=4), get_adapter("krona").config(factor=4)
    assert before == after and hash(before) == hash(after)
    assert before.model_dump() == after.model_dump()
    monkeypatch.undo()
    registry._read_own.cache_clear()


def test_a_validator_in_a_head_runs() -> None:
    program = """
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.spec import RunSpec
import sys
try:
    RunSpec.parse({"adapter": {"type": "prompt-tuning", "init": "text"}})
except BadSpec as error:
    print(error, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("adapter: init: text needs an init_text") and done.stdout.rstrip().endswith("False")


def test_an_unknown_adapter_is_rejected_with_the_closest_names() -> None:
    with pytest.raises(BadSpec, match="no adapter 'lorra'.*'lora'"):
        get_adapter("lorra")
