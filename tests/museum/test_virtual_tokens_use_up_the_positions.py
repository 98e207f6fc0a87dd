"""A row fits the learned positions of a model, but not together with virtual tokens.

Area: tokens
Elsewhere: found here.
Before: 16 tokens and 3 virtual ones on a GPT-2 with 16 positions ended in an IndexError of the embedding; on a GPU such
an error stops the whole process.
Here: the error names tokens, virtual tokens and positions, in direct calls as in runs. Padding does not count.
Verdict: crash → refused
"""

from typing import Any

import pytest
import torch
from composition_cases import put
from contract import logits, tokens

from llm_adapters_lab.errors import CannotInject
from llm_adapters_lab.models.random_models import tiny


@pytest.mark.parametrize("kind", ["prompt-tuning", "p-tuning", "prefix"])
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_positions_are_counted_with_virtual_tokens(family: str, kind: str) -> None:
    model: Any = tiny(f"tiny:{family}")
    most = model.config.max_position_embeddings
    put(model, "a", kind, virtual_tokens=3)
    assert logits(model, tokens(1, most - 3)).shape[1] == most - 3
    with pytest.raises(CannotInject, match=f"{most - 2} tokens and the 3 virtual ones exceed the {most} positions"):
        logits(model, tokens(1, most - 2))
    mask = torch.ones(1, most, dtype=torch.long)
    mask[:, :5] = 0
    if kind != "prefix":
        logits(model, tokens(1, most), attention_mask=mask)
