"""A merge into bf16 rounds the adapter away.

Area: merging
Elsewhere: peft#2502, #1035, #1388: outputs drift after a merge in half precision.
Before: 82 % of a ΔW of 6e-5 was lost without a word.
Here: the share of ΔW that survives and the largest change of a probe's logits are measured and warned of; below 90 % a
merge, also of a mix, is refused without `round=True` (`--round`).
Verdict: silent → refused
"""

import pytest
import torch
from composition_cases import put

from llm_adapters_lab.core.composition import merge_mix, mix
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.errors import CannotMerge
from llm_adapters_lab.models.random_models import tiny


def test_what_rounding_takes_is_told_and_much_is_refused() -> None:
    model = tiny("tiny:llama").bfloat16()
    weak = put(model, "weak", at="q")
    for adapter in weak.adapters.values():
        torch.nn.init.normal_(adapter.B, std=2e-5)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(CannotMerge, match=r"Only [\d.]+ % of the adapter's ΔW survives .* --round"):
        merge(weak)
    mix(model, {"weak": 1.0})
    with pytest.raises(CannotMerge, match=r"keeps [\d.]+ %"):
        merge_mix(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.warns(UserWarning, match="survives rounding"):
        merge_mix(model, round=True)
    assert weak.rounding is not None and weak.rounding.kept < 0.9 and weak.rounding.logits is not None
    strong = put(model, "strong", at="q")
    with pytest.warns(UserWarning, match=r"9\d\.\d % of the adapter's ΔW survives.* The logits of a probe move by"):
        merge(strong)
