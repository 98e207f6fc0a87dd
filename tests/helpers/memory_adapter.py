"""A small adapter that reads a further input of the call by name, `memory` (rows, WIDTH)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import REGISTRY, register_adapter

WIDTH = 3


class MemoryConfig(AdapterConfig):
    type: Literal["reads-memory"] = "reads-memory"


class ReadsMemory(Adapter):
    """y + memory W: each row gets a shift of its own."""

    needs_context = True

    def __init__(self, config: Any, site: Any, base: Any) -> None:
        super().__init__(config, site, base)
        generator = torch.Generator().manual_seed(3)
        self.W = torch.nn.Parameter(torch.randn(WIDTH, site.d_out, generator=generator))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.context.spread("memory") @ self.W


@contextmanager
def reading_memory(model: Any) -> Iterator[Injection]:
    """Put the adapter into a model; it is not registered beyond the block."""
    register_adapter("reads-memory", config=MemoryConfig, at="v,o", source="")(ReadsMemory)
    try:
        yield inject(model, MemoryConfig())
    finally:
        REGISTRY.pop("reads-memory")


def memories(rows: int) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(4))
