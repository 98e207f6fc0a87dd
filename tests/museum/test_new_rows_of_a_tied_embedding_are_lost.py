"""Rows trained for new tokens are lost on a tied embedding, or saved with the whole embedding around them.

Area: tokens
Elsewhere: peft#1300, peft#2777, transformers#45127; peft writes the whole embedding where a vocabulary has grown.
Before: LoRA trained none of the new rows; only a whole embedding could be trained, and was saved as such.
Here: `tokens` trains and saves the new rows alone, one copy where embedding and head are tied; merged, they stay tied.
Verdict: refused → right
"""

from pathlib import Path
from typing import Any

from contract import logits, shake
from transformers import AutoModelForCausalLM

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.saving import load_adapter, save_adapter, save_merged
from llm_adapters_lab.core.tensor_files import read_tensors
from llm_adapters_lab.core.vocabulary import add_tokens
from llm_adapters_lab.models.loading import load_base


def test_the_rows_are_saved_alone_and_stay_tied(tmp_path: Path) -> None:
    base, plain = load_base("nano"), load_base("nano")
    add_tokens(base.model, base.tokenizer, {"<tool>": "the dog"})
    injection = inject(base.model, LoRAConfig(rank=2, at="q@0"))
    shake(injection)
    ids = base.tokenizer("<tool> the dog", return_tensors="pt")["input_ids"]
    wanted = logits(base.model, ids)
    save_adapter(injection, tmp_path / "adapter")
    rows = [
        tensor for name, tensor in read_tensors(tmp_path / "adapter" / "adapter.safetensors").items() if "rows" in name
    ]
    assert [row.shape for row in rows] == [(1, 128)]
    load_adapter(plain.model, tmp_path / "adapter", tokenizer=plain.tokenizer)
    assert logits(plain.model, ids).equal(wanted)
    save_merged(injection, tmp_path / "merged", base.tokenizer)
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert logits(again, ids).allclose(wanted, atol=1e-4)
