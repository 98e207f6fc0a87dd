"""An adapter that is taken out twice takes out its successor, and unfreezes the base.

Area: adapters
Elsewhere: found here.
Before: to eject an old injection once more, after another was put in under its name, removed the new one from the list
of the model and made the base trainable; to detach one twice ended in an AttributeError, to attach one again replaced
the other.
Here: taking out what is not there does nothing, and a name that is taken is refused.
Verdict: silent → right
"""

import pytest
import torch
from composition_cases import put
from contract import logits, tokens

from llm_adapters_lab.core.injection import injections
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.random_models import tiny


def test_only_what_is_attached_is_taken_out() -> None:
    model = tiny("tiny:llama")
    first = put(model, "a")
    first.detach()
    first.detach()
    second = put(model, "a", seed=1)
    seen = logits(model, tokens())
    first.eject()
    assert injections(model) == {"a": second} and torch.equal(logits(model, tokens()), seen)
    assert [p for p in model.parameters() if p.requires_grad] == second.parameters()
    for injection, reason in ((first, "ejected"), (second, "already carries")):
        with pytest.raises(BadSpec, match=reason):
            injection.attach()
    second.detach()
    second.attach()
    assert torch.equal(logits(model, tokens()), seen)
