"""The cases of the adapter contract: every method, every family of models, and what is measured on them."""

from typing import Any

import pytest
import torch

from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.registry import all_adapters, get_adapter
from llm_adapters_lab.models import random_models

# A new adapter enters the matrix by its own `example`. The variants widen placements and switch on options.
CASES: dict[str, dict[str, Any]] = {
    **{name: {"type": name, **entry.cls.example} for name, entry in all_adapters().items()},
    "lora": {"type": "lora", "rank": 4, "at": "attn+mlp"},
    "lora-learned": {"type": "lora", "rank": 4, "scale": "learned"},
    "pissa": {"type": "lora", "rank": 4, "init": "pissa", "scale": "rslora", "at": "attn+mlp"},
    "olora": {"type": "lora", "rank": 4, "init": "olora", "at": "attn+mlp"},
    "dora": {"type": "dora", "rank": 4, "at": "attn+mlp"},
    "krona": {"type": "krona", "factor": 8, "at": "attn+mlp"},
    "adapter-bias-linear": {"type": "adapter-bias", "offset": False, "at": "attn+mlp"},
    "hydra": {"type": "hydra", "rank": 2, "sequential_rank": 3, "at": "q,v,o,up,down"},
    "molora-top": {"type": "molora", "rank": 2, "members": 4, "top": 2, "at": "attn+mlp"},
    "conv-series": {"type": "conv", "bottleneck": 8, "kernel": 3, "form": "series", "at": "attn+mlp"},
    "conv-one": {"type": "conv", "bottleneck": 8, "kernel": 1},
    "series-both": {"type": "series", "bottleneck": 8, "at": "attn+mlp", "bias": True, "nonlinearity": "gelu"},
    "series-in": {"type": "series", "bottleneck": 8, "at": "mlp.in", "scaling": "learned"},
    "parallel-both": {"type": "parallel", "bottleneck": 8, "at": "attn+mlp", "scaling": 4.0},
    "parallel-each": {"type": "parallel", "bottleneck": 8, "at": "up,down"},
    "series-linear": {"type": "series", "bottleneck": 8, "at": "gate.in,up.in,down"},
    "series-plus": {"type": "series", "bottleneck": 8, "scaling": "channel", "nonlinearity": "gelu", "bias": True},
    "lora-sparse": {"type": "lora", "rank": 4, "at": "attn+mlp", "sparse": {"score": "random", "sparsity": 0.5}},
    "lora-bit": {"type": "lora", "rank": 4, "quantize": {"bits": 1}},
    "series-bits": {"type": "series", "bottleneck": 8, "quantize": {"bits": 4}},
    "parallel-split": {"type": "parallel", "bottleneck": 8, "split": {"of": "all"}},
    "union-one-place": {
        "type": "union",
        "of": [
            {"type": "lora", "rank": 4, "at": "attn+mlp"},
            {"type": "ia3", "at": "attn+mlp"},
            {"type": "krona", "factor": 8, "at": "q,down"},
        ],
    },
    "prefix-mlp": {"type": "prefix", "virtual_tokens": 5, "mlp": 8},
    "p-tuning-lstm": {"type": "p-tuning", "virtual_tokens": 5, "hidden": 8, "encoder": "lstm"},
}


ALL = pytest.mark.parametrize("case", CASES)


MERGES = [case for case in CASES if get_adapter(CASES[case]["type"]).cls.merged is not None]


MOVED_BY_PASSES = ("coda",)
"""A pass in training changes what it remembers, without a step of the optimiser."""


FAMILIES = pytest.mark.parametrize("family", random_models.TINY)


def config(case: str, **changes: Any) -> AdapterConfig:
    fields = {**CASES[case], **changes}
    return get_adapter(fields["type"]).config(**fields)


def required(kind: str) -> dict[str, Any]:
    """Return the fields of the example of an adapter that have no default, or all if it is made of others."""
    entry = get_adapter(kind)
    fields = entry.config.model_fields
    return {n: value for n, value in entry.cls.example.items() if "of" in fields or fields[n].is_required()}


def tokens(rows: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(3, 128, (rows, length), generator=torch.Generator().manual_seed(1))


def shake(injection: Injection) -> None:
    """Move every adapter tensor off its initial value, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)


def logits(model: Any, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids, **kwargs).logits
        return result
