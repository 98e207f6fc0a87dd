"""A record without the hash of a file is reported as changed.

Area: models
Elsewhere: found here
Before: without `hashes.template`, "the chat template changed since the run", and an interrupted run was not resumed.
Here: what a record does not hold is not compared; records now hold "" for a file that was not there.
Verdict: refused → right
"""

import json
from pathlib import Path

from small_bases import nano_copy

from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.base_files import FILES, changed, file_hashes


def test_a_missing_hash_counts_as_a_change(tmp_path: Path) -> None:
    folder = nano_copy(tmp_path / "base")
    before = file_hashes(Blueprint(str(folder)))
    assert set(before) == set(FILES) and before["template"] == ""
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    now = file_hashes(Blueprint(str(folder)))
    assert changed(before, now) == ["the chat template"] == changed(now, before)
    for key in FILES:
        older = {name: text for name, text in json.loads(json.dumps(now)).items() if name != key}
        assert changed(older, now) == []
