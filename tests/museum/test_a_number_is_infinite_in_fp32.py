"""A number that is finite in Python is infinite in fp32, and every logit nan.

Area: adapters
Elsewhere: found here.
Before: alpha, scaling or the share of a mix of 1e39 was accepted and gave nan without a word; 10**400 and a scale of
1e300 ended in bare errors.
Here: configs, mixes and interventions take numbers that are finite in fp32.
Verdict: silent → refused
"""

from typing import Any

import pytest
from composition_cases import put

from llm_adapters_lab.config import parse
from llm_adapters_lab.core.composition import mix
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.inspection.interventions import scale_adapter
from llm_adapters_lab.models.random_models import tiny

FIELDS: dict[str, dict[str, Any]] = {"lora": {"alpha": 1e39}, "parallel": {"scaling": 1e39}}


@pytest.mark.parametrize("kind", FIELDS)
def test_numbers_are_finite_in_fp32(kind: str) -> None:
    model, entry = tiny("tiny:llama"), get_adapter(kind)
    with pytest.raises(BadSpec, match="infinite in fp32"):
        parse(entry.config, {"type": kind, **FIELDS[kind]})
    copied = entry.config(type=kind).model_copy(update=FIELDS[kind])
    with pytest.raises(BadSpec, match="infinite in fp32"):
        inject(model, copied)
    put(model, "a")
    for number in (1e39, -1e39, 10**400, float("nan"), float("inf")):
        with pytest.raises(BadSpec, match="finite in fp32"):
            mix(model, {"a": number})
        with pytest.raises(BadSpec, match="finite in fp32"):
            scale_adapter("a", number)
