"""Adapters of users, from a notebook cell or another package, work like built-in ones."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import REGISTRY, register_adapter
from llm_adapters_lab.errors import BadSpec

ADAPTER = '''
"""Gate: one learned factor for the output of a projection."""
import torch
from typing import Literal
from pydantic import Field
from llm_adapters_lab import Adapter, AdapterConfig, register_adapter

class GateConfig(AdapterConfig):
    """Config of the gate."""
    type: Literal["gate-of-mine"] = "gate-of-mine"
    first: float = Field(default=0.0, description="the factor is 1 + this")

@register_adapter("gate-of-mine", config=GateConfig, at="o", source="nowhere yet")
class Gate(Adapter):
    """One learned factor for the output of a projection."""
    def __init__(self, config, site, base):
        super().__init__(config, site, base)
        self.factor = torch.nn.Parameter(torch.tensor(config.first))
    def forward(self, x, y):
        return y + self.factor * y
    def merged(self, own):
        return {name: value * (1 + self.factor) for name, value in own.items()}
'''
SPEC = """
base: nano
adapter: {type: gate-of-mine}
data: {task: mini-math, rows: 8, max_tokens: 128}
train: {batch: 4, max_steps: 2, learning_rate: 0.01}
eval: {tasks: mini-addsub, rows: 2, max_new_tokens: 4}
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return the path of another distribution with an entry point, as if it were installed."""
    site = tmp_path / "site"
    (site / "gates-1.0.dist-info").mkdir(parents=True)
    (site / "gates.py").write_text(ADAPTER)
    (site / "gates-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: gates\nVersion: 1.0\n")
    (site / "gates-1.0.dist-info" / "entry_points.txt").write_text("[llm_adapters_lab.adapters]\ngates = gates\n")
    (tmp_path / "spec.yaml").write_text(SPEC)
    return site


def python(tmp_path: Path, *args: str, path: Path | None = None) -> str:
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(path or ""), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_adapter_of_another_package_works_in_every_command(package: Path, tmp_path: Path) -> None:
    lab = ("-m", "llm_adapters_lab")
    listed = json.loads(python(tmp_path, *lab, "adapters", "gate-of-mine", "--json", path=package))
    assert listed["idea"] == "Gate: one learned factor for the output of a projection."
    assert [field["field"] for field in listed["fields"]][-1] == "first"
    summary = json.loads(python(tmp_path, *lab, "run", "spec.yaml", "--json", path=package))
    assert summary["adapter"]["type"] == "gate-of-mine" and summary["adapter"]["at"] == "o"
    assert summary["trainable_parameters"] == 6
    python(tmp_path, *lab, "show", summary["id"], path=package)
    python(tmp_path, *lab, "merge", summary["id"], "merged", path=package)
    assert (tmp_path / "merged" / "config.json").is_file()


def test_an_adapter_from_a_notebook_cell_runs_saves_and_loads(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    cell = ADAPTER + textwrap.dedent("""
        from llm_adapters_lab import RunSpec, run
        from llm_adapters_lab.core.registry import all_adapters
        from llm_adapters_lab.runs.restoring import restore
        record = run(RunSpec.load("spec.yaml"))
        base, injection = restore(record)
        assert injection.count() == len(base.model.model.layers) and all(p.abs() > 0 for p in injection.parameters())
        print(all_adapters()["gate-of-mine"].idea)
    """)
    (tmp_path / "cell.py").write_text(cell)
    assert python(tmp_path, "cell.py").strip().endswith("One learned factor for the output of a projection.")


def test_a_name_can_be_registered_once_but_a_cell_can_run_again() -> None:
    class MyConfig(AdapterConfig):
        """Config."""

    def define() -> type[Adapter]:
        class Mine(Adapter):
            """Mine."""

        return register_adapter("mine", config=MyConfig, at="q", source="")(Mine)

    try:
        define()
        again = define()
        assert REGISTRY["mine"].cls is again
        with pytest.raises(BadSpec, match=r"'lora' belongs to llm_adapters_lab.adapters.lora.LoRA; register .*Mine"):
            register_adapter("lora", config=MyConfig, at="q", source="")(again)
        assert REGISTRY["lora"].cls.__name__ == "LoRA"
    finally:
        REGISTRY.pop("mine", None)
