"""PiSSA and OLoRA take a part out of the base, so that a second adapter, or the base itself, is wrong afterwards.

Area: adapters
Elsewhere: peft#2075, peft PR #1626, #2184, peft#2270.
Before: right for PiSSA; folders of OLoRA were refused.
Here: only the change of B A is applied. The base stays as it is to the bit; an export has twice the rank.
Verdict: refused → right
"""

from pathlib import Path

import peft
import pytest
from contract import config, logits, shake
from peft_folders import IDS, PEFT_WARNINGS, base, lora, write_folder

from llm_adapters_lab.core.anatomy import base_parameters
from llm_adapters_lab.core.composition import stack
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.saving import load_adapter

pytestmark = PEFT_WARNINGS


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_base_is_untouched(init: str, tmp_path: Path) -> None:
    model, plain = base(), logits(base(), IDS)
    expected = {}
    for name in ("first", "second"):
        theirs = write_folder(tmp_path / name, lora(init_lora_weights=init, r=4 if name == "first" else 6))
        injection = load_adapter(model, tmp_path / name, name=name)
        stack(model, name)
        expected[name] = logits(model, IDS)
        assert expected[name].allclose(theirs, atol=1e-5) and not theirs.allclose(plain, atol=1e-3)
        to_peft(injection, tmp_path / "again")
        again = peft.PeftModel.from_pretrained(base(), tmp_path / "again").eval()
        assert again.peft_config["default"].r == 2 * injection.config.rank
        assert logits(again, IDS).allclose(theirs, atol=1e-5)
    stack(model)
    assert logits(model, IDS).equal(plain)
    stack(model, "first")
    assert logits(model, IDS).equal(expected["first"])
    shake(inject(model, config("lora", init=init), name="third"))
    stack(model)
    assert logits(model, IDS).equal(plain)
    assert all(p.equal(base().get_parameter(name)) for name, p in base_parameters(model))
