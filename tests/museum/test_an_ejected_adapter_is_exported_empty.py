"""Exporting an adapter after it was merged or ejected writes a folder without a tensor.

Area: export
Elsewhere: alpaca-lora#72, peft#970: an empty file that peft loads as the bare base.
Before: `to_peft` wrote such a folder; `save_adapter` refused.
Here: every writer refuses by name, and leaves an earlier export as it was.
Verdict: silent → refused
"""

from pathlib import Path

import pytest
from contract import config, shake
from peft_folders import base

from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.saving import save_adapter, save_merged
from llm_adapters_lab.errors import BadSpec, CannotMerge


@pytest.mark.parametrize("remove", [Injection.eject, merge])
@pytest.mark.parametrize("write", [to_peft, save_adapter, save_merged])
def test_an_adapter_that_is_gone_is_not_written(write: object, remove: object, tmp_path: Path) -> None:
    model = base()
    injection = inject(model, config("lora"))
    shake(injection)
    to_peft(injection, tmp_path / "old")
    before = (tmp_path / "old" / "adapter_model.safetensors").read_bytes()
    remove(injection)
    inject(model, config("lora"))  # of the same name: it is not taken for the one that is gone
    for folder in ("old", "new") if write is to_peft else ("new",):
        with pytest.raises((BadSpec, CannotMerge), match="has been ejected or merged"):
            write(injection, tmp_path / folder)
    assert (tmp_path / "old" / "adapter_model.safetensors").read_bytes() == before
    assert not (tmp_path / "new").exists()
