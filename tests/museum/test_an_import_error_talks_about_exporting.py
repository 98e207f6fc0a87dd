"""Importing a prefix that does not fit the model fails with an error about exporting.

Area: export
Elsewhere: peft#3201, peft PR #3205 (prefixes on models whose layers have heads of several sizes).
Before: the message said what the export to peft cannot do, and advised another format.
Here: the message says what is in the way of reading, and each direction gives its own advice.
Verdict: refused → refused
"""

import json
from pathlib import Path

import peft
import pytest
from contract import config
from odd_models import decoder
from peft_folders import PEFT_WARNINGS, base, write_folder

from llm_adapters_lab.core.injection import inject, injections
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.errors import CannotConvert, StateMismatch

pytestmark = PEFT_WARNINGS


def test_an_error_names_its_own_direction(tmp_path: Path) -> None:
    write_folder(tmp_path, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    types = ["sliding_attention", "full_attention"]
    two = decoder("gemma4_text", head_dim=8, global_head_dim=16, layer_types=types, num_kv_shared_layers=0)
    with pytest.raises(CannotConvert, match=r"cannot be read\. peft has one size.*\(2, 8\), .*16.*Nothing was loaded"):
        load_adapter(two, tmp_path)
    assert not injections(two)
    with pytest.raises(CannotConvert, match=r"peft has one size.*--format lab"):
        to_peft(inject(two, config("prefix")), tmp_path / "new")
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields | {"num_attention_heads": 1}))
    with pytest.raises(StateMismatch, match="num_attention_heads is 1, but here 2"):
        load_adapter(base(), tmp_path)
