"""A row has two fields of one name, and the last one wins.

Area: data
Elsewhere: found here
Before: `{"output": "a", "output": "b"}` was learnt as b.
Here: JSON and JSON Lines refuse it as CSV does, naming file, row and field.
Verdict: silent → refused
"""

from pathlib import Path

import pytest

from llm_adapters_lab.errors import BadRow
from llm_adapters_lab.tasks.registry import get_task

ROW = '{"instruction": "a", "output": "first", "output": "second"}'
FILES = {"x.json": f"[{ROW}]", "x.jsonl": ROW, "x.csv": "instruction,output,output\na,first,second\n"}


@pytest.mark.parametrize("name", FILES)
def test_a_field_is_there_twice(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name])
    with pytest.raises(BadRow, match=rf"{name}.* has 'output' more than once. Rename or remove one"):
        get_task(f"own:{tmp_path / name}").load("train")
