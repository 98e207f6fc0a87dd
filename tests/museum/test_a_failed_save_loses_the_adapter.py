"""A save that fails half-way loses the adapter, or leaves a folder that is half old and half new.

Area: export
Elsewhere: found here.
Before: `save_merged` merged and ejected before it wrote, so a full disk lost the adapter; the error had no name.
Here: every writer writes beside the folder, renames, and only then changes the model; the error is `CannotWrite`.
Verdict: crash → refused
"""

from pathlib import Path

import pytest
from contract import config, logits, shake
from peft_folders import IDS, base

from llm_adapters_lab.core.injection import inject, injections
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.saving import save_adapter, save_merged
from llm_adapters_lab.errors import CannotWrite


@pytest.mark.parametrize("write", [to_peft, save_adapter, save_merged])
def test_after_a_failed_save_all_is_as_before(write: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = base()
    injection = inject(model, config("lora"))
    shake(injection)
    expected = logits(model, IDS)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "folder", tmp_path / "file", Path("/proc/nowhere")):
        with pytest.raises((CannotWrite, ValueError), match=str(place)):
            write(injection, place)
    with monkeypatch.context() as patch:  # a disk that is full at the last step
        patch.setattr(Path, "replace", lambda *names: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(CannotWrite, match="No space left on device. Make room"):
            write(injection, tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert injections(model) == {"default": injection} and logits(model, IDS).equal(expected)
    write(injection, tmp_path / "room")
    assert logits(model, IDS).allclose(expected, atol=1e-5)
