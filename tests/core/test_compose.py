"""Several adapters in one model: stacked, switched, mixed, merged."""

from typing import Any

import pytest
import torch
from composition_cases import put
from contract import logits, shake, tokens

from llm_adapters_lab.core.composition import merge_mix, mix, stack
from llm_adapters_lab.core.hooks import MARKS
from llm_adapters_lab.core.injection import inject, injections
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject, CannotMerge
from llm_adapters_lab.models import random_models

IDS = tokens()


def alone(name: str, *args: Any, **fields: Any) -> torch.Tensor:
    model = random_models.tiny("tiny:llama")
    put(model, name, *args, **fields)
    return logits(model, IDS)


def test_switching_stacking_and_order() -> None:
    model = random_models.tiny("tiny:llama")
    plain = logits(model, IDS)
    put(model, "a", "series", seed=1)
    put(model, "b", "series", seed=2)
    assert set(injections(model)) == {"a", "b"}
    both = logits(model, IDS)
    stack(model, "b", "a")
    swapped = logits(model, IDS)
    assert not torch.allclose(both, swapped, atol=1e-5), "a stack has an order"
    stack(model, "a", "b")
    assert torch.equal(logits(model, IDS), both)
    stack(model, "a")
    assert torch.equal(logits(model, IDS), alone("a", "series", seed=1))
    stack(model, "b")
    assert torch.equal(logits(model, IDS), alone("b", "series", seed=2))
    stack(model)
    assert torch.equal(logits(model, IDS), plain)


@pytest.mark.parametrize("kinds", [("lora", "lora"), ("lora", "dora"), ("krona", "lora"), ("ia3", "ia3")])
def test_a_mix_is_the_linear_combination_of_the_weight_updates(kinds: tuple[str, str]) -> None:
    shares = {"a": 0.7, "b": -0.4}
    model = random_models.tiny("tiny:llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = dict(before)
    for seed, (name, kind) in enumerate(zip(shares, kinds, strict=True)):
        single = random_models.tiny("tiny:llama")
        merged = merge(put(single, name, kind, seed=seed, at="k,v"))
        for key, value in merged.named_parameters():
            expected[key] = expected[key] + shares[name] * (value.detach() - before[key])
        put(model, name, kind, seed=seed, at="k,v")
    mix(model, shares)
    mixed = logits(model, IDS)
    merge_mix(model)
    assert all(torch.allclose(p, expected[key], atol=1e-6) for key, p in model.named_parameters())
    assert torch.allclose(logits(model, IDS), mixed, atol=1e-5)
    assert not injections(model) and not any(set(MARKS) & set(m.__dict__) for m in model.modules())


def test_a_mix_of_one_adapter_with_weight_one_is_that_adapter_and_an_average_lies_between() -> None:
    model = random_models.tiny("tiny:llama")
    put(model, "a", "parallel", seed=1, at="mlp@1")
    put(model, "b", "parallel", seed=2, at="mlp@1")
    seen: list[torch.Tensor] = []
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda m, args, out: seen.append(out))
    for shares in ({"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}):
        mix(model, shares)
        logits(model, IDS)
    a, b, average = seen
    assert not torch.allclose(a, b, atol=1e-4)
    assert torch.allclose(average, (a + b) / 2, atol=1e-6)
    mix(model, {"a": 1.0})
    assert torch.allclose(logits(model, IDS), alone("a", "parallel", seed=1, at="mlp@1"), atol=1e-6)


def test_invalid_combinations_are_rejected_and_change_nothing() -> None:
    model = random_models.tiny("tiny:llama")
    put(model, "a", "lora")
    put(model, "s", "series")
    before = logits(model, IDS)
    with pytest.raises(BadSpec, match=r"no adapter 'x'.*'a'|no adapter 'x'.*a, s"):
        stack(model, "x")
    with pytest.raises(BadSpec, match="named twice"):
        stack(model, "a", "a")
    with pytest.raises(CannotMerge, match="no mix"):
        merge_mix(model)
    with pytest.raises(BadSpec, match="at least one"):
        mix(model, {})
    assert torch.equal(logits(model, IDS), before)
    mix(model, {"a": 1.0, "s": 1.0})
    mixed = logits(model, IDS)
    with pytest.raises(CannotMerge, match="series"):
        merge_mix(model)
    assert torch.equal(logits(model, IDS), mixed)
    put(model, "p", "prefix")
    with pytest.raises(BadSpec, match="'prefix', whose effects do not add up"):
        mix(model, {"p": 1.0})


def test_two_adapters_of_the_whole_model_are_switched_not_stacked() -> None:
    model = random_models.tiny("tiny:llama")
    put(model, "one", "prefix", seed=1)
    put(model, "two", "prompt-tuning", seed=2)
    with pytest.raises(CannotInject, match="one, two act on the whole model"):
        logits(model, IDS)
    stack(model, "two")
    assert torch.equal(logits(model, IDS), alone("two", "prompt-tuning", seed=2))


def test_the_base_stays_frozen_until_the_last_adapter_leaves() -> None:
    model = random_models.tiny("tiny:llama")
    first, second = put(model, "first"), put(model, "second", "series")
    first.eject()
    assert not any(p.requires_grad for name, p in model.named_parameters() if "adapters" not in name)
    second.eject()
    assert all(p.requires_grad for p in model.parameters())


def test_an_adapter_goes_into_a_model_that_carries_another() -> None:
    """The linear layers of the first adapter are not projections of the base."""
    for kind in ("series", "parallel", "p-tuning", "full-fine-tuning"):
        model = random_models.tiny("tiny:gpt2")
        first = inject(model, get_adapter(kind).config(type=kind), name="first")
        second = put(model, "second", "lora", at="attn+mlp")
        assert len(second.sites) == 8
        shake(second)
        first.eject()
        second.eject()
        assert torch.equal(logits(model, IDS), logits(random_models.tiny("tiny:gpt2"), IDS))
