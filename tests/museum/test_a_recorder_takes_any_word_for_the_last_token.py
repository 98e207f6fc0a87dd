"""A recorder takes "first", or any other word, for the last token, and an edit of another shape for one that fits.

Area: comparison
Elsewhere: found here.
Before: `tokens="first"` and "all" recorded and edited the last token. An edit that returned the first token of each row
had it written to all of them.
Here: both are refused by name, words and truth values before the model runs.
Verdict: silent → refused
"""

from typing import Any

import pytest
import torch
from contract import logits, tokens

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.inspection.recorder import Recorder
from llm_adapters_lab.models.random_models import tiny

EDITS: list[Any] = [lambda y: y[:, :1], lambda y: y[..., :1], lambda y: None, lambda y: 0.0, lambda y: y[0]]


def test_only_known_selections_and_edits_that_fit_are_taken() -> None:
    model = tiny("tiny:llama")
    given: Any
    for given in ("first", "all", "", "LAST", True, [True, False], (0, True)):
        with pytest.raises(BadSpec, match="tokens"):
            Recorder(model, "q", tokens=given)
    for given in ("last", None, 0, -1, [0, 2], slice(1, 3), torch.ones(2, 7, dtype=torch.bool)):
        with Recorder(model, "q", tokens=given) as seen:
            logits(model, tokens())
        assert next(iter(seen.values())).y.numel()
    for given in EDITS:
        with Recorder(model, "q", edit=given), pytest.raises(BadSpec, match=r"An edit returns .*\(2, 7, "):
            logits(model, tokens())
