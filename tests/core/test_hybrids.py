"""Adapters beside experts, at mixers of every kind, and virtual tokens in models whose layers differ."""

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import shake, tokens
from odd_models import FAMILIES, family
from torch import nn

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.placement import sites
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import CannotInject, CannotMerge, UnknownAnatomy

IDS = tokens(2, 7)
UNCACHED = ("mamba2", "recurrent_gemma", "rwkv")  # these return no cache of transformers' own kind


def run(made: Any, ids: torch.Tensor = IDS, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = made(input_ids=ids, **more).logits
        return found


@torch.no_grad()
def stepwise(made: Any) -> torch.Tensor:
    """Return the logits of three tokens at once and then of one after the other, with a cache."""
    output = made(input_ids=IDS[:, :3], use_cache=True)
    found, cache = [output.logits], output.past_key_values
    for i in range(3, IDS.shape[1]):
        found.append(made(input_ids=IDS[:, i : i + 1], past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, dim=1)


def put(made: Any, method: str, **fields: Any) -> Injection:
    fields = {"type": method, **get_adapter(method).cls.example, **fields}
    return inject(made, get_adapter(method).config(**fields))


def check(made: Any) -> None:
    """Check that a padded row equals an unpadded one, and steps with a cache equal one call."""
    mask = torch.ones_like(IDS)
    mask[1, :2] = 0
    padded = run(made, attention_mask=mask)
    assert torch.allclose(padded[1:, 2:], run(made, IDS[1:, 2:]), atol=1e-5)
    assert torch.allclose(stepwise(made), run(made), atol=1e-5)


@pytest.mark.parametrize("method", ["series", "parallel", "conv"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_bottlenecks_sit_at_every_mixer_and_feed_forward_part(kind: str, method: str, tmp_path: Path) -> None:
    made = family(kind)
    plain, whole = run(made), {site.role for site in Anatomy.of(made).sublayers}
    at = "mixer?+mlp?" if not whole.isdisjoint({"mlp", "shared"}) else "mixer"
    injection = put(made, method, at=at)
    assert torch.equal(run(made), plain)
    shake(injection)
    changed = run(made)
    assert (changed - plain).abs().max() > 1e-4
    if kind not in UNCACHED:
        check(made)
    for key in injection.sites:  # none is dead
        with injection.disabled([key]):
            assert not torch.equal(run(made), changed), key
    save_adapter(injection, tmp_path)
    again = family(kind)
    load_adapter(again, tmp_path)
    assert torch.equal(run(again), changed)
    injection.eject()
    assert torch.equal(run(made), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "read_by") for m in made.modules())


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_input_of_a_sublayer_is_known_at_its_output(kind: str) -> None:
    made, order = family(kind), list[nn.Module]()
    for module in made.modules():
        module.register_forward_pre_hook(lambda module, args: order.append(module))
    run(made)
    for site in Anatomy.of(made).sublayers:
        host, reader = made.get_submodule(site.path), made.get_submodule(site.reader)
        assert order.index(reader) <= order.index(host), site


@pytest.mark.parametrize("kind", FAMILIES)
def test_lora_at_every_projection_merges_exactly(kind: str) -> None:
    made = family(kind)
    plain = run(made)
    roles = dict.fromkeys(site.role for site in Anatomy.of(made).projections)
    injection = put(made, "lora", at="+".join(f"{role}?" for role in roles))
    assert torch.equal(run(made), plain)
    shake(injection)
    changed = run(made)
    merge(injection)
    assert torch.allclose(run(made), changed, atol=1e-4) and not torch.allclose(changed, plain, atol=1e-4)


@pytest.mark.parametrize("mlp", [0, 8])
@pytest.mark.parametrize(
    "kind", ["jamba", "falcon_h1", "qwen3_next", "deepseek_v3", "lfm2_moe", "gpt_oss", "gemma4_text"]
)
def test_prefixes_sit_in_the_layers_that_keep_keys_and_values(kind: str, mlp: int) -> None:
    made = family(kind)
    plain = run(made)
    injection = put(made, "prefix", mlp=mlp)
    assert not torch.allclose(run(made), plain, atol=1e-6)
    shake(injection)
    check(made)
    made(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in injection.parameters())
    layers = sorted({s.layer for s in sites(injection.anatomy, "attn?") if s.role in ("k", "kv_b")})
    assert injection.adapters["model"].slots == layers
    injection.eject()
    assert torch.equal(run(made), plain)


@pytest.mark.parametrize("kind", UNCACHED)
def test_prefixes_are_refused_where_nothing_is_cached(kind: str) -> None:
    with pytest.raises(UnknownAnatomy, match="keeps no plain key/value cache"):
        put(family(kind), "prefix")


@pytest.mark.parametrize("kind", ["jamba", "qwen3_next", "deepseek_v3", "mamba2", "nemotron_h"])
def test_soft_prompts_precede_state_spaces_too(kind: str) -> None:
    made = family(kind)
    injection = put(made, "prompt-tuning")
    shake(injection)
    if kind not in UNCACHED:
        check(made)
    made(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in injection.parameters())


def test_soft_prompts_are_refused_where_tokens_are_embedded_in_every_layer() -> None:
    with pytest.raises(CannotInject, match="embeds its tokens in every layer"):
        put(family("gemma4_text"), "prompt-tuning")


def test_layers_that_share_their_weights_have_adapters_of_their_own() -> None:
    made = family("zamba2", num_hidden_layers=4, layers_block_type=["mamba", "hybrid"] * 2)
    injection = put(made, "lora", at="q?")
    shake(injection)
    assert [site.layer for site in injection.sites.values()] == [1, 3]
    before = run(made)
    with injection.disabled([next(iter(injection.sites))]):
        assert not torch.equal(run(made), before)
    with pytest.raises(CannotMerge, match="share one weight"):
        merge(injection)
    assert torch.equal(run(made), before)
