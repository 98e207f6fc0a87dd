"""Running the cell that puts an adapter into a model once more nests adapters, or counts parameters twice.

Area: adapters
Elsewhere: peft#940, peft PR #2295, #2306, #3470.
Here: a name is taken only once; several names lie side by side, and leave the base as it was in any order.
Verdict: refused → refused
"""

import hashlib
from itertools import permutations

import pytest
from contract import config, shake
from peft_folders import base

from llm_adapters_lab.core.injection import inject, injections
from llm_adapters_lab.errors import BadSpec


def digest(model: object) -> str:
    state = model.state_dict()
    return hashlib.sha256(b"".join(name.encode() + state[name].numpy().tobytes() for name in state)).hexdigest()


@pytest.mark.parametrize("order", list(permutations(["default", "other", "third"])))
def test_injecting_again_is_refused_and_ejecting_restores(order: tuple[str, ...]) -> None:
    model = base()
    before, modules = digest(model), len(list(model.modules()))
    first = inject(model, config("lora"))
    count, parameters = first.count(), len(list(model.parameters()))
    for _ in range(2):
        with pytest.raises(BadSpec, match="already carries an adapter named 'default'. Choose another name, or eject"):
            inject(model, config("lora"))
    assert first.count() == count and len(list(model.parameters())) == parameters
    inject(model, config("series"), name="other")
    inject(model, config("full-fine-tuning"), name="third")
    assert first.count() == count
    for name in order:
        shake(injections(model)[name])
        injections(model)[name].eject()
    assert digest(model) == before and len(list(model.modules())) == modules
    assert all(p.requires_grad for p in model.parameters()) and not injections(model)
