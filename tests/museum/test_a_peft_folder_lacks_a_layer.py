"""An adapter folder that lacks a layer, a role or a module loads as if it were whole.

Area: export
Elsewhere: found here; accelerate PR #4206 (only the part of one process is saved).
Before: the placement was read from the tensors and never compared with the config; outputs were up to 0.46 off.
Here: the modules that the config names and those that have tensors must be the same; what differs is named.
Verdict: silent → refused
"""

import json
from pathlib import Path

import pytest
from peft_folders import PEFT_WARNINGS, base, change, write_folder

from llm_adapters_lab.core.injection import injections
from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.errors import StateMismatch

pytestmark = PEFT_WARNINGS


@pytest.mark.parametrize("lost", ["layers.1.", "v_proj", "layers.0.mlp.down_proj", "model", "target", "layer"])
def test_a_folder_that_is_not_whole_is_refused(lost: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    if lost == "target":  # the tensors are whole, and the config names other modules
        fields["target_modules"] = ["q_proj", "v_proj", "up_proj"]
    elif lost == "layer":
        fields["layers_to_transform"] = 1
    else:
        change(tmp_path, lambda tensors: {key: t for key, t in tensors.items() if lost not in key})
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    model = base()
    where = {
        "target": r"up_proj has no tensors.*down_proj has tensors and is not named",
        "layer": r"layers\.0\..* is not",
    }
    match = where.get(lost, rf"is not whole: its config names 6 modules, its tensors are of \d.*{lost}.*has no tensors")
    with pytest.raises(StateMismatch, match=match):
        load_adapter(model, tmp_path)
    assert not injections(model)
