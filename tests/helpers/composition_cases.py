"""Adapters put into a model, for tests of composition."""

from typing import Any

import torch

from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import get_adapter


def put(model: Any, name: str, kind: str = "lora", seed: int = 0, **fields: Any) -> Injection:
    torch.manual_seed(seed)
    injection = inject(model, get_adapter(kind).config(type=kind, **fields), name=name)
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    return injection
