"""A prompt is exported to a folder of peft, and peft cannot load it.

Area: export
Elsewhere: found here.
Before: peft reads the number of heads from the configuration of the base, under names that MPT does not have: "Please
specify `num_attention_heads`".
Here: the folder holds the sizes that peft asks for.
Verdict: crash → right
"""

from pathlib import Path

import peft
import pytest
import torch
from composition_cases import put
from contract import logits, tokens
from peft_folders import PEFT_WARNINGS

from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.models.random_models import TINY, tiny

pytestmark = PEFT_WARNINGS


@pytest.mark.parametrize("kind", ["prompt-tuning", "p-tuning"])
@pytest.mark.parametrize("family", TINY)
def test_peft_loads_the_prompt(family: str, kind: str, tmp_path: Path) -> None:
    model = tiny(f"tiny:{family}")
    to_peft(put(model, "a", kind, **get_adapter(kind).cls.example), tmp_path)
    seen = logits(model, tokens())
    load_adapter(own := tiny(f"tiny:{family}"), tmp_path)
    assert torch.allclose(logits(own, tokens()), seen, atol=1e-5)
    loaded = peft.PeftModel.from_pretrained(tiny(f"tiny:{family}"), str(tmp_path)).eval()
    assert torch.allclose(logits(loaded, tokens())[:, -seen.shape[1] :], seen, atol=1e-4)
