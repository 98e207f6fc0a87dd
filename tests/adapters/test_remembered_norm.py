"""What DoRA remembers between two passes is what it would compute."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from composition_cases import put
from contract import logits, tokens

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.merging import temporarily_merged
from llm_adapters_lab.models.random_models import tiny

IDS = tokens()
FIELDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned": {"scale": "learned"},
    "sparse": {"sparse": {"score": "random", "sparsity": 0.5}},
    "bits": {"quantize": {"bits": 4}},
    "split": {"split": {"of": "all"}},
}


def forget(model: Any) -> None:
    for module in model.modules():
        for name in ("norm", "factors"):
            if hasattr(found := getattr(module, name, None), "inputs"):
                found.state = None


def step(injection: Injection) -> None:
    injection.model.train()
    injection.model(input_ids=IDS, labels=IDS).loss.backward()
    torch.optim.AdamW(injection.parameters(), lr=0.1).step()
    injection.model.eval()


def rescale(injection: Injection) -> None:
    for p in injection.parameters():
        p.data.mul_(1.3)


def reload(injection: Injection) -> None:
    saved = injection.saved_tensors()
    rescale(injection)
    logits(injection.model, IDS)
    injection.load_saved(saved)


def change_the_base(injection: Injection) -> None:
    with torch.no_grad():
        for key in injection.sites:
            injection.host(key).get_parameter("weight").mul_(1.1)


def merge_and_undo(injection: Injection) -> None:
    with temporarily_merged(injection):
        logits(injection.model, IDS)


CHANGES: list[Callable[[Injection], Any]] = [
    step,
    rescale,
    reload,
    change_the_base,
    merge_and_undo,
    lambda injection: injection.model.bfloat16(),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("fields", FIELDS)
def test_what_is_remembered_is_what_would_be_computed(fields: str, change: Callable[[Injection], Any]) -> None:
    model = tiny("tiny:llama")
    injection = put(model, "a", "dora", rank=4, at="q,up", **FIELDS[fields])
    before = logits(model, IDS)
    assert torch.equal(logits(model, IDS), before)
    change(injection)
    after = logits(model, IDS)
    with torch.enable_grad():
        assert torch.equal(model(input_ids=IDS).logits, after)
    with torch.autocast("cpu", torch.bfloat16):
        cast = logits(model, IDS)
    assert torch.equal(logits(model, IDS), after)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied, IDS), after)
    forget(model)
    assert torch.equal(logits(model, IDS), after)
    forget(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(model, IDS), cast)


def test_gradients_do_not_pass_through_the_norm_and_equal_those_under_checkpointing() -> None:
    model = tiny("tiny:llama").train()
    injection = put(model, "a", "dora", rank=4, at="q,up")
    found = []
    for checkpointing in (False, True, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS, labels=IDS).loss.backward()
        found.append([p.grad.clone() for p in injection.parameters() if p.grad is not None])
        for p in injection.parameters():
            p.grad = None
    assert len(found[0]) == len(injection.parameters())
    assert all(torch.equal(a, b) and torch.equal(b, c) for a, b, c in zip(*found, strict=True))
    for adapter in injection.adapters.values():
        assert not adapter.norm.value.requires_grad
