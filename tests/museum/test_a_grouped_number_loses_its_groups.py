"""Of a number that is written in groups only the last group is read.

Area: scoring
Elsewhere: found here
Before: `1 000`, `1'000` and `1_000` were read as 0, `1 234 567` and `12,34,567` as 567 and 34567, `10**2` as 2; read
    from an `output` column, these became gold answers.
Here: 1'000, 1_000 and 10**2 are read; what may be one number or several is not, and is refused as a gold answer.
Verdict: silent → right
"""

import json
from pathlib import Path

import pytest

from llm_adapters_lab.errors import BadRow
from llm_adapters_lab.tasks.registry import get_task

READ = {
    **{"1'000": "1000", "1\u2019234\u2019567.5": "1234567.5", "1_000": "1000", "10**2": "100", "10 ** 2": "100"},
    **{"1 000": None, "1 234 567": None, "12,34,567": None, "1.234,56": None, "1.000.000": None, "1 000,5": None},
    **{"1,234,567.5": "1234567.5", "5 1/2": "5.5", "$1 000": "1000", "10^2": "100"},
}


@pytest.mark.parametrize("text", READ)
def test_a_grouped_number_loses_its_groups(text: str, tmp_path: Path) -> None:
    task = get_task(f"own:{tmp_path / 'rows.jsonl'}?form=number")
    for said in (text, f"The answer is {text}.", f"the answer is {text} km"):
        assert task.extract(said, "lab") == READ[text], said
        (tmp_path / "rows.jsonl").write_text(json.dumps({"instruction": "how many?", "output": said}))
        if READ[text]:
            assert task.load("test")[0].answer == READ[text]
        else:
            with pytest.raises(BadRow, match="field 'output' is .*; no number can be read from it"):
                task.load("test")
    assert task.extract("1 2 3", "lab") == "3" and task.extract("10 20 30", "lab") == "30"
