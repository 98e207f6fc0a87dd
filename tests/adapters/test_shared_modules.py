"""`Adapter.build`: adapters that share tensors, and adapters whose tensors one network generates."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from contract import logits, shake, tokens
from torch import nn

from llm_adapters_lab import register_adapter
from llm_adapters_lab.core.adapter import Adapter, Place, World
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import REGISTRY
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.models import random_models

RANK, WIDTH = 3, 4


class SharedConfig(AdapterConfig):
    type: Literal["shared"] = "shared"


class GeneratedConfig(AdapterConfig):
    type: Literal["generated"] = "generated"


class Shared(Adapter):
    """One pair of matrices for all sites, and a vector for each: Δy = b ⊙ B A x, as in VeRA, with A and B trained."""

    A: nn.Parameter
    B: nn.Parameter

    def __init__(self, config: SharedConfig, site: Any, base: nn.Module) -> None:
        super().__init__(config, site, base)
        self.b = nn.Parameter(torch.zeros(site.d_out))

    @classmethod
    def build(cls, config: Any, places: Mapping[str, Place], world: World) -> dict[str, Adapter]:
        adapters = super().build(config, places, world)
        pairs: dict[tuple[int, int], tuple[nn.Parameter, nn.Parameter]] = {}
        for key, place in places.items():
            d_out, d_in = place.site.d_out, place.site.d_in
            made = nn.Parameter(torch.randn(RANK, d_in) / d_in), nn.Parameter(torch.randn(d_out, RANK))
            adapters[key].A, adapters[key].B = pairs.setdefault((d_out, d_in), made)
        return adapters

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.b * (x @ self.A.T @ self.B.T)


class Generated(Adapter):
    """A hypernetwork: one linear map makes the bias of every site from an embedding of the site."""

    def __init__(self, config: GeneratedConfig, site: Any, base: nn.Module) -> None:
        super().__init__(config, site, base)
        self.embedding = nn.Parameter(torch.randn(WIDTH))

    @classmethod
    def build(cls, config: Any, places: Mapping[str, Place], world: World) -> dict[str, Adapter]:
        adapters = super().build(config, places, world)
        network = nn.Linear(WIDTH, world.anatomy.hidden, bias=False)
        nn.init.zeros_(network.weight)
        for adapter in adapters.values():
            adapter.network = network
        return adapters

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bias: torch.Tensor = self.network(self.embedding)
        return y + bias


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    register_adapter("shared", config=SharedConfig, at="q,v", source="")(Shared)
    register_adapter("generated", config=GeneratedConfig, at="o,down", source="")(Generated)
    yield
    for name in ("shared", "generated"):
        REGISTRY.pop(name)


CONFIGS = pytest.mark.parametrize("config", [SharedConfig, GeneratedConfig])


def adapted(config: AdapterConfig, family: str = "llama") -> tuple[Any, Injection]:
    model = random_models.tiny(f"tiny:{family}")
    return model, inject(model, config)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_shared_tensors_are_trained_counted_and_saved_once(family: str, tmp_path: Path) -> None:
    model, injection = adapted(SharedConfig(at="q,v") if family != "gpt2" else SharedConfig(at="o,down"), family)
    shapes = {(site.d_out, site.d_in) for site in injection.sites.values()}
    assert len(injection.sites) > len(shapes)
    expected = sum(site.d_out for site in injection.sites.values()) + sum(RANK * (d + k) for d, k in shapes)
    assert injection.count() == expected == sum(p.numel() for p in injection.parameters())
    assert len(injection.state_dict()) == len(injection.sites) + 2 * len(shapes)
    shake(injection)
    changed = logits(model, tokens())
    save_adapter(injection, tmp_path / "adapter", f"tiny:{family}")
    fresh = random_models.tiny(f"tiny:{family}")
    again = load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits(fresh, tokens()), changed)
    assert again.count() == expected


def test_gradients_of_shared_tensors_add_up_over_the_sites() -> None:
    model, injection = adapted(SharedConfig())
    shake(injection)
    model(input_ids=tokens()).logits.square().mean().backward()
    shared = next(iter(injection.adapters.values())).A
    summed = shared.grad.clone()
    holders = [adapter for adapter in injection.adapters.values() if adapter.A is shared]
    assert len(holders) > 1
    for adapter in holders:  # with a copy of A at each site, each copy has its own gradient
        adapter.A = nn.Parameter(shared.detach().clone())
    model(input_ids=tokens()).logits.square().mean().backward()
    assert torch.allclose(torch.stack([adapter.A.grad for adapter in holders]).sum(0), summed, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_a_network_that_generates_tensors_is_trained_and_saved_once(family: str, tmp_path: Path) -> None:
    model, injection = adapted(GeneratedConfig(), family)
    plain = logits(random_models.tiny(f"tiny:{family}"), tokens())
    assert torch.equal(logits(model, tokens()), plain)
    hidden = injection.anatomy.hidden
    assert injection.count() == len(injection.sites) * WIDTH + WIDTH * hidden
    model(input_ids=tokens()).logits.square().mean().backward()
    network = next(iter(injection.adapters.values())).network
    assert network.weight.grad.abs().sum() > 0
    shake(injection)
    changed = logits(model, tokens())
    save_adapter(injection, tmp_path / "adapter", f"tiny:{family}")
    fresh = random_models.tiny(f"tiny:{family}")
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits(fresh, tokens()), changed)


@CONFIGS
def test_a_copied_model_shares_among_its_own_adapters(config: type[AdapterConfig]) -> None:
    model, injection = adapted(config())
    shake(injection)
    changed = logits(model, tokens())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for p in injection.parameters():
            p.zero_()
    assert torch.equal(logits(copied, tokens()), changed)
    assert not torch.equal(logits(model, tokens()), changed)


@CONFIGS
@pytest.mark.parametrize(
    "modifier", [{"sparse": {"score": "random", "sparsity": 0.5}}, {"quantize": {"bits": 4}}], ids=str
)
def test_modifiers_act_on_shared_tensors_once(
    config: type[AdapterConfig], modifier: dict[str, Any], tmp_path: Path
) -> None:
    model, injection = adapted(config(**modifier))
    own = injection.parameters()
    removed = sum(p.numel() for p in own if p.ndim > 1) // 2 if "sparse" in modifier else 0
    assert injection.count() == sum(p.numel() for p in own) - removed
    shake(injection)
    changed = logits(model, tokens())
    save_adapter(injection, tmp_path / "adapter", "tiny:llama")
    fresh = random_models.tiny("tiny:llama")
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.allclose(logits(fresh, tokens()), changed, atol=1e-6)


@CONFIGS
def test_ejecting_leaves_the_base_as_it_was(config: type[AdapterConfig]) -> None:
    model, injection = adapted(config())
    shake(injection)
    injection.eject()
    assert torch.equal(logits(model, tokens()), logits(random_models.tiny("tiny:llama"), tokens()))
