"""A folder holds an adapter in each of two formats, and the older one is loaded.

Area: export
Elsewhere: found here.
Before: `to_peft` wrote beside what `save_adapter` had left in a folder; `load_adapter` then gave the old adapter, peft
the new one, logits 7.4 apart.
Here: neither writes into a folder of the other format, and a folder with both is not read.
Verdict: silent → refused
"""

from pathlib import Path

import pytest
from composition_cases import put

from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.random_models import tiny


def test_a_folder_is_for_one_adapter(tmp_path: Path) -> None:
    injection = put(tiny("tiny:llama"), "a")
    for first, second in ((save_adapter, to_peft), (to_peft, save_adapter)):
        folder = tmp_path / first.__name__
        first(injection, folder)
        first(injection, folder)  # its own format is replaced
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(BadSpec, match="another format"):
            second(injection, folder)
        assert sorted(path.name for path in folder.iterdir()) == before
        load_adapter(tiny("tiny:llama"), folder)
    for path in (tmp_path / "to_peft").iterdir():
        path.rename(tmp_path / "save_adapter" / path.name)
    with pytest.raises(BadSpec, match="another format"):
        load_adapter(tiny("tiny:llama"), tmp_path / "save_adapter")
