"""An adapter whose name is part of a tensor name, or is taken already, is saved without tensors or overwritten.

Area: export
Elsewhere: peft#2699, peft PR #2084, #2118 (an adapter named "lora"), peft#3559 (a name twice).
Here: names are plain words, and never part of a saved tensor's name. Others are refused before anything changes.
Verdict: right → right
"""

from pathlib import Path

import pytest
from contract import config, logits, shake
from peft_folders import IDS, PEFT_WARNINGS, base, write_folder

from llm_adapters_lab.core.injection import inject, injections
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec

pytestmark = [*PEFT_WARNINGS, pytest.mark.filterwarnings("ignore:Adapter name 'lora' should not be")]
GOOD = ["lora", "base", "default", "weight", "état", "lora_A", "model", "x" * 150]


@pytest.mark.parametrize("name", [*GOOD, "a.b", "0", "", "mix", "off", "a b"])
def test_any_name_is_safe_or_refused(name: str, tmp_path: Path) -> None:
    model = base()
    if name not in GOOD:
        with pytest.raises(BadSpec, match="must be a plain word"):
            inject(model, config("lora"), name=name)
        assert not injections(model)
        return
    shake(inject(model, config("lora"), name=name))
    for folder, write in (("lab", save_adapter), ("peft", to_peft)):
        write(injections(model)[name], tmp_path / folder)
        again = base()
        load_adapter(again, tmp_path / folder, name=name)
        assert logits(again, IDS).equal(logits(model, IDS))
    with pytest.raises(BadSpec, match="already carries"):
        inject(model, config("lora"), name=name)
    theirs, other = write_folder(tmp_path, name=name), base()
    load_adapter(other, tmp_path / name if name != "default" else tmp_path, name=name)
    assert logits(other, IDS).equal(theirs)
