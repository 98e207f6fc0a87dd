"""Every method keeps the contract on models that are not plain decoders, or is refused there by name."""

from typing import Any

import pytest
import torch
from contract import logits, shake, tokens

from llm_adapters_lab.core.hooks import MARKS
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.matrix_hosts import HOSTS, MatrixHost
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.registry import all_adapters, get_adapter
from llm_adapters_lab.errors import CannotInject, CannotMerge, EmptyPlacement, UnknownAnatomy
from llm_adapters_lab.models import random_models
from llm_adapters_lab.training.step import set_gradient_checkpointing

FAMILIES = (
    *("mixtral", "gpt_oss"),  # experts, stacked either way
    *("deepseek_v3", "minicpm3"),  # latent attention, with and without experts
    *("jamba", "falcon_h1"),  # state-space mixers between attention, and beside it
    *("mamba", "mamba2"),  # state-space mixers alone
    *("qwen3_next", "olmo_hybrid"),  # linear attention
    *("lfm2", "lfm2_moe"),  # convolutions
    *("granitemoehybrid", "nemotron_h"),  # shared experts; one sublayer in each layer
    "longcat_flash",  # two attentions in each layer
)
PLAIN = "mixer?,shared?,up?,down?"
REFUSED = {
    "prefix": {"mamba", "mamba2"},  # no keys and values
    "coda": {*FAMILIES} - {"minicpm3", "falcon_h1", "olmo_hybrid", "lfm2"},  # experts, or no MLP in some layer
    "parscale": {"mamba", "mamba2"},
}


def placed(kind: str) -> str:
    """Return a placement that reaches every mixer and feed-forward part that takes the method."""
    entry = get_adapter(kind)
    if not entry.placed:
        return ""
    if entry.cls.token_gate is not None:
        return "mlp"
    return "mixer?,mlp?" if entry.cls.experts or entry.cls.level == "sublayer" else PLAIN


def example(kind: str) -> dict[str, Any]:
    """Return the fields of the example of a method; parts of it that are adapters are placed as on their own."""
    fields = {"type": kind, **get_adapter(kind).cls.example}
    if isinstance(parts := fields.get("of"), list) and all(isinstance(part, dict) for part in parts):
        fields["of"] = [part | ({"at": PLAIN} if get_adapter(part["type"]).placed else {}) for part in parts]
    return fields


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", all_adapters())
def test_the_contract(kind: str, family: str) -> None:
    model, ids = random_models.tiny(f"tiny:{family}").requires_grad_(False), tokens()
    plain, names = logits(model, ids, use_cache=False), set(model.state_dict())
    entry = get_adapter(kind)
    config = entry.config(**example(kind))
    if family in REFUSED.get(kind, ()):
        with pytest.raises((CannotInject, EmptyPlacement, UnknownAnatomy)):
            inject(model, config)
        return
    injection = inject(model, config, at=placed(kind) or None)
    if entry.cls.identity:
        # A copy of the base's own parameters runs another kernel of the same product.
        assert torch.allclose(logits(model, ids, use_cache=False), plain, atol=1e-6)
    shake(injection)
    changed = logits(model, ids, use_cache=False)
    assert not torch.allclose(changed, plain, atol=1e-6)
    with injection.disabled():
        assert torch.equal(logits(model, ids, use_cache=False), plain)
    model(input_ids=ids, use_cache=False).logits.square().mean().backward()
    for key, adapter in injection.adapters.items():
        routed = key in injection.sites and injection.sites[key].routed
        assert routed or any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters()), key
    state = injection.state_dict()
    assert_merge(injection, ids, changed)
    model = random_models.tiny(f"tiny:{family}").requires_grad_(False)
    again = inject(model, config, at=placed(kind) or None)
    again.load_state_dict(state)
    assert torch.equal(logits(model, ids, use_cache=False), changed)
    again.eject()
    assert torch.equal(logits(model, ids, use_cache=False), plain)
    assert set(model.state_dict()) == names
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not {HOSTS, *MARKS} & set(module.__dict__) and not isinstance(module, MatrixHost)


def assert_merge(injection: Any, ids: torch.Tensor, changed: torch.Tensor) -> None:
    """See that merged weights answer as the adapter does; only who needs a bias, or cannot be merged, refuses."""
    try:
        model = merge(injection)
    except CannotMerge as error:
        assert get_adapter(injection.config.type).cls.merged is None or "has no bias that could hold" in str(error)
        return
    assert torch.allclose(logits(model, ids, use_cache=False), changed, atol=1e-4 * float(changed.abs().max()))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("mamba", "mamba2", "nemotron_h")])
@pytest.mark.parametrize("kind", ["lora", "series", "conv", "prefix", "parscale", "prompt-tuning"])
def test_generation_with_and_without_cache_agrees_under_left_padding(kind: str, family: str) -> None:
    model, entry = random_models.tiny(f"tiny:{family}"), get_adapter(kind)
    shake(inject(model, entry.config(**{"type": kind, **entry.cls.example}), at=placed(kind) or None))
    ids, mask = tokens(), torch.ones(2, 7, dtype=torch.long)
    ids[1, :3], mask[1, :3] = 0, 0
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if kind in REFUSED and family == "gpt_oss":  # its window is shorter than the padded row
        with pytest.raises(CannotInject, match="counts padding"):
            model.generate(input_ids=ids, attention_mask=mask, **options)
        return
    cached, whole = (
        model.generate(input_ids=ids, attention_mask=mask, use_cache=use, **options) for use in (True, False)
    )
    alone = model.generate(input_ids=ids[1:, 3:], attention_mask=mask[1:, 3:], **options)
    assert torch.equal(cached, whole) and torch.equal(alone[0, 4:], cached[1, 7:])


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "jamba", "qwen3_next", "lfm2_moe"])
@pytest.mark.parametrize("kind", ["lora", "series", "conv"])
def test_recomputed_activations_give_the_same_gradients(kind: str, family: str) -> None:
    model, ids, entry = random_models.tiny(f"tiny:{family}"), tokens(), get_adapter(kind)
    injection = inject(model, entry.config(**{"type": kind, **entry.cls.example}), at=placed(kind))
    shake(injection)
    found: list[list[torch.Tensor]] = []
    for on in (False, True):
        set_gradient_checkpointing(model, on)
        model.train()(input_ids=ids, use_cache=False).logits.square().mean().backward()
        found.append([p.grad for p in injection.parameters() if p.grad is not None])
        for p in injection.parameters():
            p.grad = None
    assert found[0] and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
