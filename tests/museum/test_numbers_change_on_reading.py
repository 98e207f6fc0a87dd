"""Numbers change when they are read from a file.

Area: data
Elsewhere: found here
Before: `3,14` became 314 and `0,5` became 5, 9007199254740993 lost its last digit, and 0.00001 was learnt as 1e-05.
Here: numbers are read exactly and written without an exponent; a comma separates thousands, and decimal commas are
    refused.
Verdict: silent → right
"""

from pathlib import Path

import pytest

from llm_adapters_lab.errors import BadRow
from llm_adapters_lab.tasks.extraction import number, same_number
from llm_adapters_lab.tasks.registry import get_task


def test_numbers_change_on_reading(tmp_path: Path) -> None:
    def read(value: str) -> str:
        (tmp_path / "x.jsonl").write_text(f'{{"instruction": "a", "answer": {value}}}')
        (row,) = get_task(f"own:{tmp_path / 'x.jsonl'}?form=number").load("train")
        assert number(row.output) == row.output == row.answer
        return row.answer

    whole = "12345678901234567890123"
    for value in (whole, f'"{whole}"', f"{whole}.0", '"12,345,678,901,234,567,890,123"'):
        assert read(value) == whole
    assert read("9007199254740993") == read('"9007199254740993.0"') == "9007199254740993"
    assert not same_number("9007199254740993", "9007199254740992")
    assert (read("0.00001"), read('"1e-05"'), read('"1,234.50"'), read("-0.0")) == ("0.00001", "0.00001", "1234.5", "0")
    for value in ("3,14", "0,5", "1.234,56", "1,2,3", "0,500", "1_000", "1e999"):
        with pytest.raises(BadRow, match="field 'answer' is .*; give a number"):
            read(f'"{value}"')
