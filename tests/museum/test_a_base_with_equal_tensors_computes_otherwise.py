"""An adapter is loaded onto a base with the same tensors that computes something else.

Area: models
Elsewhere: found here.
Before: another `rms_norm_eps`, `hidden_act` or `rope_theta` passed unseen; outputs were up to 0.41 apart.
Here: the error names the settings that differ; `check_base=False` leaves a trace that is saved with the adapter.
Verdict: silent → refused
"""

import json
from pathlib import Path
from typing import Any

import pytest
from composition_cases import put
from transformers import AutoModelForCausalLM

from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import WrongBase
from llm_adapters_lab.models.random_models import tiny

CHANGES: list[dict[str, Any]] = [{"rms_norm_eps": 0.1}, {"hidden_act": "gelu"}, {"rope_parameters": None}]


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_the_outputs_is_compared(change: dict[str, Any], tmp_path: Path) -> None:
    model: Any = tiny("tiny:llama")
    save_adapter(put(model, "a"), tmp_path / "a")
    settings = model.config.to_dict() | change
    if "rope_parameters" in change:
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    other = AutoModelForCausalLM.from_config(type(model.config).from_dict(settings))
    load_adapter(tiny("tiny:llama"), tmp_path / "a")
    other.load_state_dict(tiny("tiny:llama").state_dict())
    with pytest.raises(WrongBase, match=next(iter(change))):
        load_adapter(other, tmp_path / "a")
    loaded = load_adapter(other, tmp_path / "a", check_base=False)
    save_adapter(loaded, tmp_path / "b")
    assert next(iter(change)) in str(json.loads((tmp_path / "b" / "adapter.json").read_text())["other_base"])
