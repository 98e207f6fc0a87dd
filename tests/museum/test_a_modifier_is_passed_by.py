"""A mask, a partition or low bits are asked for, and the adapter computes with the whole matrices.

Area: adapters
Elsewhere: found here.
Before: prefixes computed with unmodified keys and values, which saving then packed: at 1 bit the loaded adapter was 1.6
away from the trained one. An adapter with `split` was exported and merged in training mode as one part of itself.
Here: every method computes with what its modifier returns; export and merge read the matrix as in evaluation.
Verdict: silent → right
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import put
from contract import logits, tokens

from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.models.random_models import tiny

MODIFIERS: list[dict[str, Any]] = [{"quantize": {"bits": 1}}, {"sparse": {"score": "random", "sparsity": 0.5}}]


@pytest.mark.parametrize("modifier", [*MODIFIERS, {"split": {"parts": 2, "of": "all"}}])
def test_what_is_trained_is_what_is_saved_and_merged(modifier: dict[str, Any], tmp_path: Path) -> None:
    for kind, fields in {"prefix": {"virtual_tokens": 3}, "lora": {"rank": 4}}.items():
        plain, model = tiny("tiny:llama"), tiny("tiny:llama")
        whole, modified = (put(m, "a", kind, **fields, **add) for m, add in ((plain, {}), (model, modifier)))
        with torch.no_grad():
            for target, source in zip(whole.parameters(), modified.parameters(), strict=True):
                target.copy_(source)
        save_adapter(modified, tmp_path / kind)
        seen = logits(model, tokens())
        load_adapter(loaded := tiny("tiny:llama"), tmp_path / kind)
        assert torch.allclose(logits(loaded, tokens()), seen, atol=1e-5)
        model.train()
        assert not torch.allclose(logits(model, tokens()), logits(plain, tokens()), atol=1e-3)
        if kind == "lora":
            assert torch.allclose(logits(merge(modified).eval(), tokens()), seen, atol=1e-3)
