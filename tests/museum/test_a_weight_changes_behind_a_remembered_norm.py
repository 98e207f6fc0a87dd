"""A weight of the base is written through `.data`, and DoRA keeps using the norm of the old one.

Area: adapters
Elsewhere: found here.
Before: `weight.data.mul_(3)` between two passes left the norm as it was, logits 2.5 apart: torch counts no such change.
Here: the diagonal of the weight is compared too, which shows any change of the whole weight, such as averaging,
scaling or loading. A change through `.data` of other elements alone is not seen.
Verdict: silent → right
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from composition_cases import put
from contract import logits, tokens

from llm_adapters_lab.models.random_models import tiny

CHANGES: list[Callable[[torch.Tensor], Any]] = [
    lambda data: data.mul_(3.0),
    lambda data: data.copy_(torch.randn_like(data)),
    lambda data: data.lerp_(torch.ones_like(data), 0.1),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_weight_written_through_data_is_seen(family: str, change: Callable[[torch.Tensor], Any]) -> None:
    model = tiny(f"tiny:{family}")
    dora = put(model, "a", "dora", at="attn")
    logits(model, tokens())
    change(dora.host(next(iter(dora.sites))).weight.data)
    seen = logits(model, tokens())
    for adapter in dora.adapters.values():
        adapter.norm.state = adapter.factors.state = None
    assert torch.equal(seen, logits(model, tokens()))
