"""A projection that two layers share gets two adapters, one of which is dead.

Area: adapters
Elsewhere: found here.
Before: half of the trainable tensors were never used, without a word; to eject or merge them ended in an
AttributeError.
Here: the error names both paths; an adapter at one of them works, and so does a layer that occurs twice as a whole.
Verdict: silent → refused
"""

from typing import Any

import pytest
import torch
from composition_cases import put
from contract import logits, tokens

from llm_adapters_lab.errors import CannotInject
from llm_adapters_lab.models.random_models import tiny


def test_one_module_has_one_adapter() -> None:
    model: Any = tiny("tiny:llama")
    first, second = model.model.layers[:2]
    second.self_attn.q_proj, second.mlp.down_proj = first.self_attn.q_proj, first.mlp.down_proj
    plain = logits(model, tokens())
    for kind, at in (("lora", "q"), ("ia3", "down.in"), ("series", "mlp"), ("bitfit", "q")):
        with pytest.raises(CannotInject, match=r"layers\.0\..* and .*layers\.1\..* are one module"):
            put(model, "a", kind, at=at)
    injection = put(model, "a", at="q@0,v")
    model(input_ids=tokens()).logits.sum().backward()
    assert all(p.grad is not None for p in injection.parameters())
    assert torch.equal(logits(injection.eject(), tokens()), plain)
    model.model.layers[1] = first
    try:
        injection = put(model, "a")
    except CannotInject:
        return
    model(input_ids=tokens()).logits.sum().backward()
    assert all(p.grad is not None for p in injection.parameters())
