"""A merge changes a second module, which uses the same tensor as the adapted one.

Area: merging
Elsewhere: found here.
Before: where two projections share a weight, a merge into one changed both, and the logits by 2.0; the same with shared
biases, and with `merge_mix`. To save a merged model with other shared tensors ended in a bare RuntimeError.
Here: the error names both modules, and the model is unchanged.
Verdict: silent → refused
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import put
from torch import nn

from llm_adapters_lab.core.composition import merge_mix, mix
from llm_adapters_lab.core.merging import merge, temporarily_merged
from llm_adapters_lab.core.saving import save_merged
from llm_adapters_lab.errors import CannotMerge
from llm_adapters_lab.models.random_models import tiny

SHARE: list[Callable[[nn.Parameter], nn.Parameter]] = [lambda p: p, lambda p: nn.Parameter(p.data)]


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("share", SHARE, ids=["parameter", "memory"])
def test_a_shared_weight_is_not_merged_into(share: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    model: Any = tiny("tiny:llama")
    first, second = (layer.self_attn.q_proj for layer in model.model.layers[:2])
    second.weight = share(first.weight)
    before, injection = second.weight.detach().clone(), put(model, "a", kind, at="q@0")
    with pytest.raises(CannotMerge, match=r"layers\.0\.self_attn\.q_proj and .*layers\.1\.self_attn\.q_proj share"):
        merge(injection)
    with temporarily_merged(injection) as merged:
        assert not merged
    mix(model, {"a": 1.0})
    with pytest.raises(CannotMerge, match="share one weight"):
        merge_mix(model)
    injection.eject()
    with pytest.raises(CannotMerge, match=r"share|shared tensors"):
        save_merged(put(model, "a", "lora", at="v"), tmp_path / "m")
    assert torch.equal(second.weight, before)
