"""Adapters at routed experts: start, gradients, merging, sharing, ejection and composition, however they are stored."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import shake, tokens
from odd_models import decoder, family
from torch import nn

from llm_adapters_lab.core.anatomy import Anatomy, base_parameters
from llm_adapters_lab.core.composition import merge_mix, mix, stack
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.matrix_hosts import HOSTS
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.registry import all_adapters, get_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import CannotInject, EmptyPlacement

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "dora": {"rank": 2},
    "ia3": {"at": "experts.up?+experts.down.in?"},
}
IDS = tokens(2, 6)


class Listed(nn.Module):
    """A mixture whose experts are modules of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(32, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.ModuleDict({"up_proj": nn.Linear(32, 16), "down_proj": nn.Linear(16, 32)}) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores, chosen = self.gate(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            hit = chosen == e
            if hit.any():
                rows = x[hit.any(-1)]
                y = expert["down_proj"](torch.relu(expert["up_proj"](rows)))  # type: ignore[index]
                out[hit.any(-1)] += y * (scores * hit).sum(-1)[hit.any(-1)][:, None]
        return out


def model(kind: str, way: str = "") -> Any:
    if kind == "listed":
        torch.manual_seed(0)
        made = decoder("llama")
        for layer in made.model.layers:
            layer.mlp = Listed()
        return made.eval()
    made = family(kind)
    if way:
        made.config._experts_implementation = way
    return made


def run(made: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = made(input_ids=ids).logits
        return found


def put(made: Any, method: str, **fields: Any) -> Injection:
    fields = {"type": method, "at": "experts?", **METHODS[method], **fields}
    return inject(made, get_adapter(method).config(**fields))


def traces(made: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Return what an injection could leave behind in each module."""
    return {
        name: (
            type(m),
            set(m.__dict__),
            list(m._modules),
            list(m._parameters),
            len(m._forward_hooks),
            len(m._forward_pre_hooks),
        )
        for name, m in made.named_modules()
    }


CASES = [(kind, way) for kind in ("mixtral", "gpt_oss", "jamba") for way in ("", "eager", "batched_mm")]
CASES += [("deepseek_v3", ""), ("longcat_flash", ""), ("granitemoehybrid", ""), ("llama4_text", ""), ("listed", "")]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "way"), CASES)
def test_experts_start_at_the_base_merge_exactly_and_leave_no_trace(kind: str, way: str, method: str) -> None:
    made = model(kind, way)
    plain, before = run(made), traces(made)
    injection = put(made, method)
    assert torch.equal(run(made), plain)
    shake(injection)
    changed = run(made)
    assert (changed - plain).abs().max() > 1e-4
    with injection.disabled():
        assert torch.equal(run(made), plain)
    twin = copy.deepcopy(made)
    assert torch.equal(run(twin), changed)
    injection.eject()
    assert torch.equal(run(made), plain) and traces(made) == before
    merged = merge(twin.injections["default"])
    assert torch.allclose(run(merged), changed, atol=1e-5) and traces(merged) == before


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_only_experts_that_a_token_visits_get_gradients(kind: str, way: str) -> None:
    made = model(kind, way)
    injection = put(made, "lora")
    made(input_ids=IDS[:1, :1]).logits.square().sum().backward()
    assert all(p.grad is None for _, p in base_parameters(made))
    moved: dict[tuple[int, str], int] = {}
    for key, adapter in injection.adapters.items():
        site = injection.sites[key]
        hit = adapter.B.grad is not None and bool(adapter.B.grad.any())
        moved[site.layer, site.role] = moved.get((site.layer, site.role), 0) + hit
    assert moved and set(moved.values()) <= ({1, 2} if kind == "longcat_flash" else {2})  # one may be the identity


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "listed"])
def test_the_experts_of_a_layer_may_share_an_adapter(kind: str, method: str, tmp_path: Path) -> None:
    made = model(kind)
    plain = run(made)
    injection = put(made, method, experts="shared")
    anatomy, entry = injection.anatomy, get_adapter(method)
    assert torch.equal(run(made), plain)
    sites = list(injection.sites.values())
    own = {(s.layer, s.role, s.side): s for s in sites}  # one of each
    each = sum(entry.cls.per_site(injection.config, s) for s in own.values())
    more = sum(s.d_out for s in sites) - sum(s.d_out for s in own.values()) if method == "dora" else 0
    assert len(sites) == 4 * len(own) and injection.count() == each + more
    shake(injection)
    changed = run(made)
    save_adapter(injection, tmp_path)
    again = model(kind)
    loaded = load_adapter(again, tmp_path)
    assert torch.equal(run(again), changed)
    name = "factors" if method == "ia3" else "A"
    assert len({id(getattr(a, name)) for a in loaded.adapters.values()}) == len(own)
    merge(loaded)
    assert torch.allclose(run(again), changed, atol=1e-5)
    assert Anatomy.of(again) == anatomy


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "listed"])
def test_two_adapters_at_experts_stack_and_mix(kind: str) -> None:
    made = model(kind)
    plain = run(made)
    for name in ("one", "two"):
        shake(inject(made, get_adapter("lora").config(type="lora", rank=2, at="experts+q"), name=name))
    both = run(made)
    stack(made, "one")
    one = run(made)
    stack(made)
    assert torch.equal(run(made), plain)
    mix(made, {"one": 0.5, "two": 0.5})
    half = run(made)
    assert not torch.allclose(one, both, atol=1e-4) and not torch.allclose(half, both, atol=1e-4)
    merge_mix(made)
    assert torch.allclose(run(made), half, atol=1e-5) and not any(hasattr(m, HOSTS) for m in made.modules())


OTHERS = [name for name, entry in all_adapters().items() if entry.placed and not entry.cls.experts]


@pytest.mark.parametrize("kind", ["mixtral", "listed"])
@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_at_experts_are_refused_by_name(method: str, kind: str) -> None:
    made = model(kind)
    before = traces(made)
    entry = get_adapter(method)
    with pytest.raises(CannotInject, match=f"is a routed expert, where {method!r} cannot be.*dora, ia3, lora"):
        inject(made, entry.config(type=method, **entry.cls.example), at="q,experts.down")
    assert traces(made) == before


@pytest.mark.parametrize("fields", [{"at": "q"}, {"at": "experts", "init": "pissa"}, {"at": "router"}])
def test_what_cannot_be_shared_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(CannotInject, match="experts = 'shared'"):
        put(model("mixtral"), "lora", experts="shared", **fields)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "listed"])
@pytest.mark.parametrize("method", METHODS)
def test_the_router_is_adapted_only_by_name(method: str, kind: str) -> None:
    made = model(kind)
    plain, before = run(made), traces(made)
    everything = put(made, method, at="attn+mlp+mixer+experts")
    assert not any(site.role == "router" for site in everything.sites.values())
    everything.eject()
    injection = put(made, method, at="router")
    assert [site.layer for site in injection.sites.values()] == [0, 1]
    assert torch.equal(run(made), plain)
    shake(injection)
    changed = run(made)
    assert not torch.equal(changed, plain)
    merge(injection)
    assert torch.allclose(run(made), changed, atol=1e-5) and traces(made) == before


def test_a_bottleneck_at_experts_is_told_where_the_block_is() -> None:
    with pytest.raises(EmptyPlacement, match="sits beside the whole block is at `mlp`"):
        inject(model("mixtral"), get_adapter("series").config(type="series", bottleneck=4), at="experts")
