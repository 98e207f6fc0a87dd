"""Memory grows each time an adapter is loaded, used and removed.

Area: adapters
Elsewhere: peft#738, peft#1639, torchtune#904.
Here: after `eject` no hook, module or attribute is left, and nothing holds the adapter or its tensors.
Verdict: right → right
"""

import gc
import weakref
from pathlib import Path

import pytest
from contract import CASES, config, logits, shake
from peft_folders import IDS, base

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.saving import load_adapter, save_adapter


@pytest.mark.parametrize("case", ["lora", "dora", "series", "conv", "prefix", "full-fine-tuning"])
def test_nothing_is_left_of_an_adapter(case: str, tmp_path: Path) -> None:
    assert case in CASES
    model = base()
    injection = inject(model, config(case))
    shake(injection)
    save_adapter(injection, tmp_path)
    injection.eject()
    del injection

    def left() -> list[tuple[int, int, frozenset[str]]]:
        return [(len(m._forward_hooks), len(m._forward_pre_hooks), frozenset(m.__dict__)) for m in model.modules()]

    before, references = left(), []
    for _ in range(10):
        loaded = load_adapter(model, tmp_path)
        logits(model, IDS)
        references += [weakref.ref(thing) for thing in (loaded, *loaded.adapters.values(), *loaded.parameters())]
        loaded.eject()
        del loaded
    gc.collect()
    assert left() == before and not [thing for reference in references if (thing := reference()) is not None]
