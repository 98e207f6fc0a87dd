"""A mixture of experts cannot be adapted at all, or its experts are adapted wrongly.

Area: models
Elsewhere: peft#3009, #3112, #3577, Automodel#3592, #1755: fused experts are skipped, or fitted to one version's layout.
Before: every such model was refused, at attention too.
Here: attention is adapted, trained and merged like that of a dense model; the experts stay frozen, have no roles, and
    are named by every error that asks for them.
"""

import pytest
import torch
from contract import shake
from odd_models import EXPERTS, decoder

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.errors import EmptyPlacement

IDS = torch.arange(3, 12)[None]


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss", "qwen2_moe", "olmoe", "deepseek_v3", "phimoe"])
def test_experts_rule_out_the_attention(kind: str) -> None:
    model = decoder(kind, **EXPERTS, **(MLA if kind == "deepseek_v3" else {}))
    plain = model(input_ids=IDS).logits
    for at in ("up,down", "q,down"):
        with pytest.raises(EmptyPlacement, match=r"mlp \(\w+\) in layers"):
            inject(model, LoRAConfig(rank=2), at=at)
    injection = inject(model, LoRAConfig(rank=2), at="q,o")
    assert torch.equal(model(input_ids=IDS).logits, plain)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in injection.parameters())
    assert all(p.grad is None for name, p in model.named_parameters() if "expert" in name)
    shake(injection)
    changed = model(input_ids=IDS).logits
    merge(injection)
    assert torch.allclose(model(input_ids=IDS).logits, changed, atol=1e-5) and not torch.allclose(plain, changed)


MLA = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 8}
MLA |= {"head_dim": 4, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
