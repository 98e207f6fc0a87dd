"""Another base is taken for a copy of the right one in another precision.

Area: models
Elsewhere: found here.
Before: as soon as the dtype differed, only four values of each tensor were compared: an adapter was loaded onto a base
with 20 of its embeddings retrained, or 9 rows of a projection negated.
Here: eight random projections of up to 4,096 elements of each tensor are compared too, up to what rounding explains. A
change of less than 1 % of a tensor is still taken for rounding, and one outside these elements is not seen.
Verdict: silent → refused
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import put

from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import WrongBase
from llm_adapters_lab.models.random_models import tiny

CHANGES: list[Callable[[Any], Any]] = [
    lambda model: model.model.norm.weight[5].add_(3),
    lambda model: model.model.layers[1].self_attn.o_proj.weight[1:10].mul_(-1),
    lambda model: model.model.embed_tokens.weight[70:90].normal_(),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("saved", DTYPES)
@pytest.mark.parametrize("present", DTYPES)
@torch.no_grad()
def test_a_base_is_known_in_any_precision(saved: torch.dtype, present: torch.dtype, tmp_path: Path) -> None:
    save_adapter(put(tiny("tiny:llama").to(saved), "a"), tmp_path)
    if torch.float32 in (saved, present) or saved == present:
        same = tiny("tiny:llama").to(present if saved == torch.float32 or saved == present else saved).to(present)
        load_adapter(same, tmp_path)
    for change in CHANGES:
        other = tiny("tiny:llama")
        change(other)
        with pytest.raises(WrongBase, match="other values"):
            load_adapter(other.to(present), tmp_path)
