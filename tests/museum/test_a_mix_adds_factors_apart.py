"""A mix of two LoRAs adds their factors apart, which leaves cross terms.

Area: merging
Elsewhere: peft#3004, PR #3013: Σ A and Σ B were multiplied, so that (1, -1) of one adapter was not the base either.
Here: a mix is the exact linear combination of the ΔW, of any ranks and places, hooked and merged.
Verdict: right → right
"""

import pytest
import torch
from composition_cases import put
from contract import logits, tokens

from llm_adapters_lab.core.composition import merge_mix, mix
from llm_adapters_lab.inspection.weight_metrics import weight_change
from llm_adapters_lab.models.random_models import tiny


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_mix_is_the_sum_of_the_weight_changes(kind: str) -> None:
    model = tiny("tiny:llama")
    a, b = put(model, "a", rank=4, at="q,v@0", seed=1), put(model, "b", rank=16, at="v,up", seed=2)
    base = {name: p.clone() for name, p in model.named_parameters() if "adapters" not in name}
    wanted = {name: p.clone() for name, p in base.items()}
    for share, injection in ((0.7, a), (-0.3, b)):
        for key in injection.sites:
            wanted[f"{key}.weight"] += share * weight_change(injection, key)
    mix(model, {"a": 0.7, "b": -0.3})
    mixed = logits(model, tokens())
    merge_mix(model)
    assert all(torch.allclose(p, wanted[name], atol=1e-6) for name, p in model.named_parameters())
    assert torch.allclose(logits(model, tokens()), mixed, atol=1e-5)
    model = tiny("tiny:llama")
    for name in ("one", "same"):
        put(model, name, kind, rank=4, seed=1)
    mix(model, {"one": 1, "same": -1})
    merge_mix(model)
    assert all(torch.allclose(p, base[name], atol=1e-6) for name, p in model.named_parameters())
