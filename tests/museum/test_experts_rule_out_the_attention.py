"""A mixture of experts cannot be adapted at all, or its experts are adapted wrongly.

Area: models
Elsewhere: peft#3009, #3112, #3577, Automodel#3592, #1755: fused experts are skipped, or fitted to one version's layout.
Before: every such model was refused, at attention too.
Here: attention is adapted, trained and merged like that of a dense model; the experts stay frozen unless they are
    named (`experts`), whichever way they are stored, and errors that ask for an MLP say so.
Verdict: refused → right
"""

import pytest
import torch
from contract import shake
from odd_models import EXPERTS, FAMILIES, decoder

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.anatomy import base_parameters
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.errors import EmptyPlacement

IDS = torch.arange(3, 12)[None]


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss", "qwen2_moe", "olmoe", "deepseek_v3", "phimoe"])
def test_experts_rule_out_the_attention(kind: str) -> None:
    model = decoder(kind, **FAMILIES.get(kind, EXPERTS))
    plain = model(input_ids=IDS).logits
    for at in ("up,down", "q,down"):
        with pytest.raises(EmptyPlacement, match=r"routed experts are at `experts`"):
            inject(model, LoRAConfig(rank=2), at=at)
    for at, touched in (("q,o", "self_attn"), ("experts?", "expert")):
        injection = inject(model, LoRAConfig(rank=2), at=at)
        assert torch.equal(model(input_ids=IDS).logits, plain)
        assert injection.sites and all(touched in key for key in injection.sites)
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert any(p.grad is not None for p in injection.parameters())
        assert all(p.grad is None for _, p in base_parameters(model))
        shake(injection)
        changed = model(input_ids=IDS).logits
        merge(injection)
        assert torch.allclose(model(input_ids=IDS).logits, changed, atol=1e-5) and not torch.allclose(plain, changed)
        plain = model(input_ids=IDS).logits
