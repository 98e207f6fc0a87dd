"""DoRA computes the norm of W + s B A at every pass.

Area: training
Elsewhere: peft#1692, #2651, #2196, PR #1474: training 2.4 times as slow as LoRA, evaluation 16 % slower even if cached.
Before: scoring through hooks took 1.3 to 2 times as long as with LoRA, generation 2.6 to 3.8 times.
Here: the norm is computed once per update, and reused only while A, B, the scale and the precision are the same, and W
as far as its version and diagonal show.
Verdict: silent → right
"""

import torch
from composition_cases import put
from contract import logits, tokens
from torch.utils.flop_counter import FlopCounterMode

from llm_adapters_lab.models.random_models import tiny


def test_the_norm_is_computed_once_per_update() -> None:
    model, ids = tiny("tiny:llama"), tokens(1, 2)
    dora = put(model, "a", "dora", rank=4, at="q,up")

    def cost() -> int:
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids).logits.sum().backward()
        return counter.get_total_flops()

    first, second = cost(), cost()
    products = sum(2 * 4 * site.d_in * site.d_out for site in dora.sites.values())
    assert first - second == products
    for change in (lambda p: p.data.mul_(1.5), lambda p: p.add_(0.01), lambda p: p.copy_(p * 0.5)):
        for parameter in (*dora.parameters(), model.model.layers[0].self_attn.q_proj.weight):
            with torch.no_grad():
                change(parameter)
        kept = logits(model, ids)
        for adapter in dora.adapters.values():
            adapter.norm.state = adapter.factors.state = None
        assert torch.equal(kept, logits(model, ids))
