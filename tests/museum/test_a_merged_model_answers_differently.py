"""A merged model answers differently from the adapted one.

Area: merging
Elsewhere: peft#2502, #1035, #1388, #1836: outputs drift after a merge, or after saving and loading it.
Before: the same in fp32; in half precision the difference was not reported.
Here: in fp32 merged and reloaded logits equal the hooked ones up to 1e-5; in bf16 and fp16 the measured difference is
reported, and the most likely next token differs in at most 5 of 50 rows.
Verdict: silent → told
"""

from pathlib import Path

import pytest
import torch
from contract import CASES, config, logits, tokens
from transformers import AutoModelForCausalLM

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.saving import save_merged
from llm_adapters_lab.models.random_models import tiny

MERGES = [case for case in CASES if get_adapter(CASES[case]["type"]).cls.merged is not None]


@pytest.mark.filterwarnings("ignore:.*survives rounding")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", MERGES)
def test_hooked_merged_and_reloaded_agree(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = tiny("tiny:gpt2").to(dtype), tokens(50, 5)
    injection = inject(model, config(case))
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    hooked = logits(model, ids).float()
    save_merged(injection, tmp_path / "merged", round=True)
    merged = logits(model, ids).float()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=dtype).eval()
    assert torch.equal(logits(again, ids).float(), merged)
    scale, told = hooked.abs().max(), injection.rounding
    assert told is not None and told.noticeable == (dtype != torch.float32) == (told.logits is not None)
    assert (merged - hooked).abs().max() <= scale * {4: 1e-5, 2: 0.05}[dtype.itemsize]
    flips = (merged[:, -1].argmax(-1) != hooked[:, -1].argmax(-1)).sum()
    assert flips <= {4: 0, 2: 5}[dtype.itemsize]
