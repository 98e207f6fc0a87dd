"""Loads of experts: equal to a count by hand, whatever holds the experts, with and without an adapter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import NoView
from llm_adapters_lab.inspection.probes import both
from llm_adapters_lab.inspection.routing import expert_loads, has_experts
from llm_adapters_lab.models.random_models import tiny

ROWS = [[5, 9, 33, 70, 4, 6, 7], [100, 101, 3], [64]]
TOKENS = sum(map(len, ROWS))


def adapted(model: Any, kind: str = "lora", **given: Any) -> Injection:
    """Inject an adapter that has an effect."""
    injection = inject(model, get_adapter(kind).config(type=kind, **given))
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return injection


def by_hand(model: Any, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return assignments and summed weights of each expert, from the outputs of the router."""
    block = model.model.layers[layer].mlp
    router = block.gate if hasattr(block, "gate") else block.router
    counts, sums = torch.zeros(2, model.config.num_local_experts)
    with torch.no_grad():
        for row in ROWS:
            seen: list[Any] = []
            hook = router.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
            model(input_ids=torch.tensor([row]))
            hook.remove()
            logits, weights, experts = seen[0]
            assert torch.equal(logits.topk(experts.shape[-1]).indices, experts)
            for own, given in zip(experts.tolist(), weights.tolist(), strict=True):
                for expert, weight in zip(own, given, strict=True):
                    counts[expert] += 1
                    sums[expert] += weight
    return counts, sums


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_loads_are_those_counted_by_hand(family: str) -> None:
    model = tiny(f"tiny:{family}")
    assert has_experts(Anatomy.of(model))
    for given in ({}, {"at": "experts", "rank": 2}, {"at": "q,v", "rank": 2}):
        injection = adapted(model, **given) if given else None
        loads = expert_loads(model, ROWS)
        assert [load.layer for load in loads.values()] == list(range(model.config.num_hidden_layers))
        for path, load in loads.items():
            counts, sums = by_hand(model, load.layer)
            assert path == f"model.layers.{load.layer}.mlp.experts"
            assert load.tokens == TOKENS and counts.sum() == TOKENS * model.config.num_experts_per_tok
            assert float(load.share.sum()) == pytest.approx(1)
            assert load.share.tolist() == pytest.approx((counts / counts.sum()).tolist())
            assert load.weight is not None
            assert load.weight.tolist() == pytest.approx((sums / counts).tolist(), abs=1e-6, nan_ok=True)
        if injection:
            injection.eject()


def test_without_the_adapter_the_loads_are_those_of_the_base() -> None:
    model = tiny("tiny:mixtral")
    bare = expert_loads(model, ROWS)
    injection = adapted(model, at="attn+experts", rank=4)
    before, after = both(injection, lambda: expert_loads(model, ROWS))
    for path, load in bare.items():
        assert torch.equal(before[path].share, load.share)
        assert before[path].weight.tolist() == pytest.approx(load.weight.tolist(), nan_ok=True)
    assert any(not torch.equal(after[path].share, bare[path].share) for path in bare)
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    assert not any("Bank" in repr(hook) for hook in hooks)


def test_virtual_tokens_are_not_counted() -> None:
    model = tiny("tiny:mixtral")
    adapted(model, "prompt-tuning", virtual_tokens=5)
    assert {load.tokens for load in expert_loads(model, ROWS).values()} == {TOKENS}
    assert all(float(load.share.sum()) == pytest.approx(1) for load in expert_loads(model, ROWS).values())


class Listed(nn.Module):
    """A mixture with a list of experts, as code that comes with checkpoints has it."""

    def __init__(self, block: Any, sparse: bool = True) -> None:
        super().__init__()
        self.gate, self.sparse, wide = block.gate, sparse, block.experts.gate_up_proj
        self.experts = nn.ModuleList()
        for gate_up, down in zip(wide, block.experts.down_proj, strict=True):
            one = nn.Module()
            one.up_proj, one.down_proj = nn.Linear(32, len(gate_up) // 2), nn.Linear(len(gate_up) // 2, 32)
            one.up_proj.weight.data, one.down_proj.weight.data = gate_up[: len(gate_up) // 2].data, down.data
            one.forward = lambda x, one=one: one.down_proj(one.up_proj(x).relu())
            self.experts.append(one)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, 1)
        _, weights, chosen = self.gate(flat)
        table = torch.zeros(len(flat), len(self.experts)).scatter(1, chosen, weights)
        y = torch.zeros_like(flat)
        for expert, weight in zip(self.experts, table.T, strict=True):
            tokens = weight.nonzero()[:, 0] if self.sparse else torch.arange(len(flat))
            y = y.index_add(0, tokens, expert(flat[tokens]) * weight[tokens, None])
        return y.view_as(x)


def test_experts_in_a_list_are_counted_by_their_calls() -> None:
    model = tiny("tiny:mixtral")
    fused = expert_loads(model, ROWS)["model.layers.0.mlp.experts"]
    for layer in model.model.layers:
        layer.mlp = Listed(layer.mlp)
    load = expert_loads(model, ROWS)["model.layers.0.mlp.experts"]
    assert load.weight is None and load.tokens == TOKENS
    assert load.share.tolist() == pytest.approx(fused.share.tolist())
    adapted(model, "prompt-tuning", virtual_tokens=5)
    with pytest.raises(NoView, match="prepends cannot be told from others"):
        expert_loads(model, ROWS)


def test_what_does_not_show_its_choice_is_refused_by_name() -> None:
    with pytest.raises(NoView, match="LlamaForCausalLM has no routed experts"):
        expert_loads(tiny("tiny:llama"), ROWS)
    with pytest.raises(NoView, match="no rows"):
        expert_loads(tiny("tiny:mixtral"), [])
    for family in ("jetmoe", "llama4_text"):
        with pytest.raises(NoView, match=r"Experts\) is unknown: they are not called with the experts of each token"):
            expert_loads(tiny(f"tiny:{family}"), ROWS)
    model = tiny("tiny:mixtral")
    for layer in model.model.layers:
        layer.mlp = Listed(layer.mlp, sparse=False)
    with pytest.raises(NoView, match="all read every token"):
        expert_loads(model, ROWS)
