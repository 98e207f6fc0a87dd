"""Names that torch.compile, DDP or FSDP have prefixed match nothing, and the base answers as if adapted.

Area: export
Elsewhere: Soup#335, Soup#351 (`_orig_mod.`), alpaca-lora#446, accelerate PR #4206 (the part of one process).
Before: such names were refused as unknown modules.
Here: the prefixes are removed, and the adapter is whole; any other name is refused and named.
Verdict: refused → right
"""

from pathlib import Path

import pytest
from contract import logits
from peft_folders import IDS, PEFT_WARNINGS, base, change, write_folder

from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.errors import CannotConvert, StateMismatch

pytestmark = PEFT_WARNINGS
ROOT = "base_model.model."
PREFIXES = ["_orig_mod." + ROOT, ROOT + "_orig_mod.", "module." + ROOT, ROOT * 2, "_fsdp_wrapped_module." + ROOT, ""]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixed_names_are_understood(prefix: str, tmp_path: Path) -> None:
    expected = write_folder(tmp_path)
    change(tmp_path, lambda old: {prefix + key.removeprefix(ROOT): tensor for key, tensor in old.items()})
    model = base()
    load_adapter(model, tmp_path)
    assert logits(model, IDS).equal(expected)
    change(tmp_path, lambda old: old | {key.replace("lora_A", "_orig_mod.lora_A"): t.clone() for key, t in old.items()})
    with pytest.raises(StateMismatch, match="occurs twice"):
        load_adapter(base(), tmp_path)
    write_folder(tmp_path)
    change(tmp_path, lambda old: {prefix + key.replace("layers", "blocks"): tensor for key, tensor in old.items()})
    with pytest.raises((CannotConvert, StateMismatch), match=r"blocks\.0.*"):
        load_adapter(base(), tmp_path)
