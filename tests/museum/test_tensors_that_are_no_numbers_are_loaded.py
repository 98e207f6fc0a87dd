"""Tensors of nan, inf, whole or complex numbers, or without any number, load as an adapter.

Area: export
Elsewhere: peft#286, peft#970, alpaca-lora#446 (a file of 443 bytes without a tensor); found here.
Before: six importing methods took them: nan left finite, wrong logits. Only the lab's own format refused them.
Here: one check for all formats, on loading and on saving, also for numbers that are infinite in fp32.
Verdict: silent → refused
"""

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from contract import config
from peft_folders import PEFT_WARNINGS, base, change, lora, write_folder

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import StateMismatch

pytestmark = PEFT_WARNINGS
BAD: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "holds inf or nan": lambda t: t.double() + 1e300,
    "int8": lambda t: t.to(torch.int8),
    "complex64": lambda t: t.to(torch.complex64),
    r"\(0, ": lambda t: t[:0],
}
PROMPT = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


@pytest.mark.parametrize("method", [lora(), PROMPT], ids=["lora", "prompt"])
@pytest.mark.parametrize("fault", BAD)
def test_only_finite_numbers_are_an_adapter(fault: str, method: peft.PeftConfig, tmp_path: Path) -> None:
    write_folder(tmp_path, method)
    change(tmp_path, lambda tensors: {key: BAD[fault](tensor) for key, tensor in tensors.items()})
    with pytest.raises(StateMismatch, match=fault):
        load_adapter(base(), tmp_path)
    change(tmp_path, lambda tensors: {})
    with pytest.raises(StateMismatch, match=r"has no tensors|missing .*prompt_embeddings"):
        load_adapter(base(), tmp_path)
    injection = inject(base(), config("lora"))
    injection.parameters()[0].data[0, 0] = torch.nan
    for write in (to_peft, save_adapter):
        with pytest.raises(StateMismatch, match="inf or nan"):
            write(injection, tmp_path / "new")
    assert not (tmp_path / "new").exists()
