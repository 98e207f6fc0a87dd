"""Exact numbers of trainable parameters of the paper's configurations on its four bases, on the meta device."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, GPTJConfig, LlamaConfig

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.runs.spec import RunSpec

# Layers, width d of the residual stream, width f inside the MLP.
SIZES = {
    "llama-7b": (32, 4096, 11008),
    "llama-13b": (40, 5120, 13824),
    "bloomz-7b1": (30, 4096, 4 * 4096),
    "gpt-j-6b": (28, 4096, 4 * 4096),
}
BASE = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "bloomz-7b1": 7_069_016_064,
    "gpt-j-6b": 6_050_882_784,
}
LORA = {"type": "lora", "rank": 32, "alpha": 64}
SERIES = {"type": "series", "bottleneck": 256}
PARALLEL = {"type": "parallel", "bottleneck": 256}

# Trainable parameters of a layer from its widths: two matrices i -> b -> o have b (i + o) parameters.
PER_LAYER: dict[str, Callable[[int, int], int]] = {
    "lora": lambda d, f: 32 * (3 * (d + d) + (d + f) + (f + d)),
    "lora-fused": lambda d, f: 32 * ((d + 3 * d) + (d + f) + (f + d)),
    "lora-r8-qv": lambda d, f: 8 * 2 * (d + d),
    "series-down": lambda d, f: 256 * (d + d),
    "series-gate-up": lambda d, f: 256 * 2 * (d + d),
    "series-all": lambda d, f: 256 * 3 * (d + d),
    "parallel-linear": lambda d, f: 256 * ((d + f) + (f + d)),
    "parallel-sublayer": lambda d, f: 256 * (d + d),
    "parallel-qkv": lambda d, f: 256 * 3 * (d + d),
    "prefix-10": lambda d, f: 10 * 2 * d,
    "prefix-30": lambda d, f: 30 * 2 * d,
}
ADAPTERS: dict[str, Any] = {
    "lora": {**LORA, "at": "q,k,v,up,down"},
    "lora-fused": {**LORA, "at": "q,k,v,up,down"},
    "lora-r8-qv": {**LORA, "rank": 8, "at": "q,v"},
    "series-down": "adapterP",
    "series-gate-up": {**SERIES, "at": "gate.in,up.in"},
    "series-all": "adapterH",
    "parallel-linear": "parallel-linear",
    "parallel-sublayer": "parallel-sublayer",
    "parallel-qkv": "parallel-qkv",
    "prefix-10": {"type": "prefix", "virtual_tokens": 10},
    "prefix-30": {"type": "prefix", "virtual_tokens": 30},
}
# Millions and per cent of all parameters, rounded, as published with the original code or computed from its formulas.
TABLE: list[tuple[str, str, str, str | None]] = [
    ("llama-7b", "lora", "56.1", "0.83"),
    ("llama-7b", "lora-r8-qv", "4.2", None),
    ("llama-7b", "series-down", "67.1", "0.99"),
    ("llama-7b", "series-gate-up", "134.2", "1.95"),
    ("llama-7b", "series-all", "201.3", "2.90"),
    ("llama-7b", "parallel-linear", "247.5", "3.54"),
    ("llama-7b", "parallel-sublayer", "67.1", "0.99"),
    ("llama-7b", "parallel-qkv", "201.3", "2.90"),
    ("llama-7b", "prefix-10", "2.6", "0.04"),
    ("llama-7b", "prefix-30", "7.9", "0.12"),
    ("llama-13b", "lora", "87.8", "0.67"),
    ("llama-13b", "series-down", "104.9", "0.80"),
    ("llama-13b", "series-gate-up", "209.7", "1.59"),
    ("llama-13b", "series-all", "314.6", "2.36"),
    ("llama-13b", "parallel-linear", "388.0", "2.89"),
    ("llama-13b", "parallel-sublayer", "104.9", "0.80"),
    ("llama-13b", "parallel-qkv", "314.6", "2.36"),
    ("llama-13b", "prefix-10", "4.1", None),
    ("llama-13b", "prefix-30", "12.3", None),
    ("bloomz-7b1", "lora-fused", "55.1", None),
    ("bloomz-7b1", "series-down", "62.9", None),
    ("bloomz-7b1", "parallel-linear", "314.6", None),
    ("gpt-j-6b", "lora", "58.7", None),
    ("gpt-j-6b", "series-down", "58.7", None),
    ("gpt-j-6b", "parallel-linear", "293.6", None),
]
# The modules that the commands of the original adapt in each layer, in the best configuration of each method.
LLAMA = {"series": "mlp.down_proj", "parallel": "mlp.up_proj mlp.down_proj"}
LLAMA["lora"] = "self_attn.q_proj self_attn.k_proj self_attn.v_proj mlp.up_proj mlp.down_proj"
MODULES = {
    "llama-7b": LLAMA,
    "llama-13b": LLAMA,
    "bloomz-7b1": {
        "lora": "self_attention.query_key_value mlp.dense_h_to_4h mlp.dense_4h_to_h",
        "series": "mlp.dense_4h_to_h",
        "parallel": "mlp.dense_h_to_4h mlp.dense_4h_to_h",
    },
    "gpt-j-6b": {
        "lora": "attn.q_proj attn.k_proj attn.v_proj mlp.fc_in mlp.fc_out",
        "series": "mlp.fc_out",
        "parallel": "mlp.fc_in mlp.fc_out",
    },
}


@pytest.fixture(scope="module")
def base() -> Any:
    """Return a function that returns a base without weights; each is built once."""
    wide = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
    configs: dict[str, Callable[[], Any]] = {
        "llama-7b": LlamaConfig,
        "llama-13b": lambda: LlamaConfig(**wide),
        "bloomz-7b1": lambda: BloomConfig(hidden_size=4096, n_layer=30, n_head=32, vocab_size=250880),
        "gpt-j-6b": GPTJConfig,
    }

    @cache
    def build(name: str) -> nn.Module:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(configs[name]())
        return model.eval()

    return build


def expected(name: str, method: str) -> int:
    layers, d, f = SIZES[name]
    return layers * PER_LAYER[method](d, f)


@pytest.mark.parametrize("name", BASE)
def test_the_bases_have_the_published_sizes(base: Any, name: str) -> None:
    assert sum(p.numel() for p in base(name).parameters()) == BASE[name]


@pytest.mark.parametrize(("name", "method", "millions", "percent"), TABLE)
def test_the_table(base: Any, name: str, method: str, millions: str, percent: str | None) -> None:
    adapter = RunSpec.parse({"adapter": ADAPTERS[method]}).adapter
    assert adapter is not None
    injection = inject(base(name), adapter)
    try:
        count = injection.count()
    finally:
        injection.eject()
    assert count == expected(name, method)
    assert f"{count / 1e6:.1f}" == millions
    if percent:
        assert f"{100 * count / (BASE[name] + count):.2f}" == percent


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", ["lora", "series", "parallel", "prefix"])
def test_the_papers_specs_use_the_modules_of_the_original(base: Any, name: str, kind: str) -> None:
    spec = RunSpec.load(f"paper/{name}-{kind}", {"data.task": "mini-math"})
    assert spec.adapter is not None
    injection = inject(base(name), spec.adapter)
    try:
        count, sites = injection.count(), {site.path for site in injection.sites.values()}
    finally:
        injection.eject()
    method = {"series": "series-down", "parallel": "parallel-linear", "prefix": "prefix-10"}.get(kind, "lora")
    assert count == expected(name, "lora-fused" if (name, kind) == ("bloomz-7b1", "lora") else method)
    inside = MODULES[name].get(kind, "").split()
    assert sites == {f"{layer}.{path}" for layer in injection.anatomy.layers for path in inside}
