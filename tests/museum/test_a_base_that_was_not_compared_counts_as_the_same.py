"""A base that could not be compared with the one of the adapter counts as the same.

Area: models
Elsewhere: found here.
Before: without base.json, and for every folder of peft, nothing was compared, and `other_base` was empty as for the
right base: a base of another seed passed.
Here: `other_base` says that it is unknown, and so do adapters saved from there and their cards.
Verdict: silent → told
"""

import json
from pathlib import Path

from composition_cases import put

from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.models.random_models import tiny
from llm_adapters_lab.results.model_card import card


def test_what_was_not_compared_is_said(tmp_path: Path) -> None:
    injection = put(tiny("tiny:llama"), "a")
    save_adapter(injection, tmp_path / "own")
    to_peft(injection, tmp_path / "peft")
    assert load_adapter(tiny("tiny:llama"), tmp_path / "own").other_base == []
    (tmp_path / "own" / "base.json").unlink()
    for name in ("own", "peft"):
        loaded = load_adapter(tiny("tiny:llama"), tmp_path / name)
        assert "unknown" in str(loaded.other_base)
        save_adapter(loaded, tmp_path / f"{name} again")
        again = load_adapter(tiny("tiny:llama"), tmp_path / f"{name} again")
        assert "unknown" in str(json.loads((tmp_path / f"{name} again" / "adapter.json").read_text())["other_base"])
        assert "- **base it was trained on: unknown" in card("", again.config, "lab", None, "x", again.other_base)
