"""A data file is refused, and the advice does not help.

Area: data
Elsewhere: found here
Before: a CSV field of over 131,072 characters, UTF-16, Latin-1 and a folder all got "Download or write the file again".
Here: long fields are read; encoding and folder are named, with what to do.
Verdict: refused → right
"""

from pathlib import Path

import pytest

from llm_adapters_lab.errors import BadRow
from llm_adapters_lab.tasks.registry import get_task


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_a_file_is_refused_without_the_cause(suffix: str, tmp_path: Path) -> None:
    def refusal(content: bytes) -> str:
        (tmp_path / f"x.{suffix}").write_bytes(content)
        with pytest.raises(BadRow) as found:
            get_task(f"own:{tmp_path}/x.{suffix}").load("train")
        return str(found.value)

    for encoding in ("utf-16", "latin-1"):
        assert refusal("instruction,output\n\u00e9,b\n".encode(encoding)).endswith("Save it as UTF-8.")
    (tmp_path / "y.csv").write_text(f"instruction,output\n{'a' * 200_000},b\n")
    assert len(get_task(f"own:{tmp_path}/y.csv").load("train")[0].instruction) == 200_000
    (tmp_path / f"folder.{suffix}").mkdir()
    with pytest.raises(BadRow, match="is a folder. Give the path of a file in it"):
        get_task(f"own:{tmp_path}/folder.{suffix}").load("train")
