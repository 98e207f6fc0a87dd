"""What adapters read about the running call: mask, lengths, inputs; also when layers are recomputed for gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import pytest
import torch

from llm_adapters_lab.adapters.conv import ConvConfig
from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.call_context import context_of
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import REGISTRY, register_adapter
from llm_adapters_lab.errors import CannotInject
from llm_adapters_lab.models.random_models import tiny
from llm_adapters_lab.training.step import set_gradient_checkpointing

RIGHT = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
LEFT = RIGHT.flip(1)
FULL = torch.ones_like(RIGHT)


class ReaderConfig(AdapterConfig):
    type: Literal["reader"] = "reader"


class Reader(Adapter):
    """Scales its outputs by how long each row is, and by an input if one is given."""

    needs_context = True
    lengths: ClassVar[list[list[int] | None]] = []

    def __init__(self, config: Any, site: Any, base: Any) -> None:
        super().__init__(config, site, base)
        self.w = torch.nn.Parameter(torch.full((site.d_out,), 0.1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        lengths = self.context.lengths
        self.lengths.append(None if lengths is None else lengths.tolist())
        factor = y.new_ones(1, 1, 1) if lengths is None else (lengths / 10)[:, None, None]
        if "scale" in self.context.inputs:
            factor = factor * self.context.spread("scale")
        return y + (y.view(*factor.shape[:1], -1, y.shape[-1]) * factor * self.w).view_as(y)


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    register_adapter("reader", config=ReaderConfig, at="down", source="")(Reader)
    Reader.lengths = []
    yield
    REGISTRY.pop("reader")


def adapted(family: str, config: AdapterConfig) -> tuple[Any, Injection]:
    model = tiny(f"tiny:{family}")
    for module in model.modules():  # dropout would differ between the two computations
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    injection = inject(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, injection


def gradients(model: Any, injection: Injection, mask: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    model.zero_grad()
    model.train()
    ids = torch.arange(3, 3 + mask.numel()).view_as(mask)
    with nullcontext() if scale is None else context_of(model).given(scale=scale):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    (logits * mask[..., None]).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in injection.parameters() if p.grad is not None])


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "transformers"])
@pytest.mark.parametrize("mask", [RIGHT, LEFT, FULL], ids=["right", "left", "full"])
@pytest.mark.parametrize("adapter", ["reader", "conv"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_recomputed_layers_find_the_same_context(family: str, adapter: str, mask: torch.Tensor, ours: bool) -> None:
    model, injection = adapted(family, ReaderConfig() if adapter == "reader" else ConvConfig())
    scale = torch.tensor([[0.5], [2.0]]) if adapter == "reader" else None
    plain = gradients(model, injection, mask, scale)
    first = len(Reader.lengths)
    set_gradient_checkpointing(model, True) if ours else model.activation_checkpointing_enable()
    recomputed = gradients(model, injection, mask, scale)
    assert torch.allclose(plain, recomputed, rtol=1e-5, atol=1e-8)
    assert plain.abs().max() > 1e-6
    if adapter == "reader":
        expected = None if mask is FULL else mask.sum(-1).tolist()
        assert Reader.lengths == [expected] * len(Reader.lengths)
        assert len(Reader.lengths) == 3 * first  # each layer once, then twice


def test_a_call_leaves_neither_context_nor_wrapped_layers_behind() -> None:
    model, injection = adapted("llama", ReaderConfig())
    set_gradient_checkpointing(model, True)
    functions = [m.__dict__.get("_gradient_checkpointing_func") for m in model.modules()]
    gradients(model, injection, RIGHT)
    context = context_of(model)
    assert (context.rows, context.mask, context.cache, context.lengths) == (None,) * 4
    assert [m.__dict__.get("_gradient_checkpointing_func") for m in model.modules()] == functions
    with pytest.raises(CannotInject, match="has 3 rows where the model runs 2"):
        gradients(model, injection, RIGHT, torch.ones(3, 1))
    assert [m.__dict__.get("_gradient_checkpointing_func") for m in model.modules()] == functions


def test_reentrant_recomputation_is_refused() -> None:
    model, injection = adapted("llama", ReaderConfig())
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(CannotInject, match=r"use_reentrant=True.*train\.gradient_checkpointing off"):
        gradients(model, injection, RIGHT)


def test_lengths_count_the_tokens_of_each_row_in_a_packed_call_too() -> None:
    model, _ = adapted("llama", ReaderConfig())
    context = context_of(model)
    assert context.lengths is None
    with context.packed(3, torch.tensor([0, 0, 0, 2, 2])):
        assert context.lengths is not None and context.lengths.tolist() == [3, 0, 2]
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.arange(3, 17).view(2, 7), attention_mask=RIGHT)
        model(input_ids=torch.arange(3, 17).view(2, 7), attention_mask=FULL)
    half = len(Reader.lengths) // 2
    assert Reader.lengths == [[4, 7]] * half + [None] * half
