"""The order of two adapters depends on which was injected first.

Area: adapters
Elsewhere: found here.
Before: `stack(a, b)` equalled `stack(b, a)` for LoRA at `down` with series at `mlp`; injected in the other order, the
same two differed by 0.59.
Here: adapters at the same output run in the order of the names in `stack`, however they were injected.
Verdict: silent → right
"""

import pytest
import torch
from composition_cases import put
from contract import logits, tokens

from llm_adapters_lab.core.composition import stack
from llm_adapters_lab.models.random_models import tiny

AT = {"low": ("lora", "down"), "seq": ("series", "mlp"), "other": ("lora", "down"), "both": ("series", "mlp+down")}


@pytest.mark.parametrize("pair", [("low", "seq"), ("other", "both"), ("seq", "both")])
def test_the_order_is_that_of_the_names(pair: tuple[str, str]) -> None:
    found = {}
    for injected in (pair, pair[::-1]):
        model = tiny("tiny:llama")
        for name in injected:
            put(model, name, AT[name][0], seed=len(name), at=AT[name][1])
        for order in (pair, pair[::-1]):
            stack(model, *order)
            found[injected, order] = logits(model, tokens())
    one, two = pair, pair[::-1]
    assert torch.equal(found[one, one], found[two, one]) and torch.equal(found[one, two], found[two, two])
    assert not torch.allclose(found[one, one], found[one, two], atol=1e-3)
