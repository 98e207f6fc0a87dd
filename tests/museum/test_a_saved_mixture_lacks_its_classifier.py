"""A saved X-LoRA lacks layers of its classifier, which start at random wherever it is loaded.

Area: export
Elsewhere: found here, in peft 0.21.2: its adapters must be called 0, 1, …, and tensors with such a part in their name,
such as layers.0.weight, are left out as those of another adapter. Two loads of one folder were 0.14 apart in logits.
Here: an X-LoRA is refused by name. A mixture that the lab has, of members with a router at each site, is saved whole.
Verdict: refused → refused
"""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from contract import logits, shake, tokens
from peft_folders import PEFT_WARNINGS, base, move, write_folder
from safetensors.torch import load_file

from llm_adapters_lab.core import inject, load_adapter, save_adapter
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import CannotConvert

pytestmark = PEFT_WARNINGS


def test_a_folder_without_its_classifier_is_refused(tmp_path: Path) -> None:
    for name in ("0", "1"):
        write_folder(tmp_path / name)
    model: Any = base()
    model.config.use_cache = False
    members = {name: str(tmp_path / name) for name in ("0", "1")}
    theirs = peft.get_peft_model(model, peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=members))
    move(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    names = [name for name, _ in theirs.base_model.internal_xlora_classifier.named_parameters()]
    assert names == ["layers.0.weight", "layers.0.bias"]
    assert not load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    with pytest.raises(CannotConvert, match="no counterpart of peft's XLORA. It reads .*LORA"):
        load_adapter(base(), tmp_path / "theirs")
    ours = inject(base(), get_adapter("molora").config(rank=2))
    shake(ours)
    save_adapter(ours, tmp_path / "ours")
    load_adapter(again := base(), tmp_path / "ours")
    assert torch.equal(logits(again, tokens()), logits(ours.model, tokens()))
