"""The same answer is spelt in another way, and is judged wrong.

Area: scoring
Elsewhere: found here
Before: "café" with a combining accent never matched "café" with a composed one; of the labels `Yes|yes` the second one
    could not be answered.
Here: the lab rule compares text and labels in the Unicode form NFC, and a label of the same capitals comes first.
Verdict: silent → right
"""

import json
from pathlib import Path
from unicodedata import normalize

import pytest

from llm_adapters_lab.tasks.registry import get_task

CAFE = "caf\u00e9"


@pytest.mark.parametrize("gold", ["NFC", "NFD"])
@pytest.mark.parametrize("answer", ["NFC", "NFD"])
def test_the_same_answer_is_spelt_in_another_way(gold: str, answer: str, tmp_path: Path) -> None:
    file, said, meant = tmp_path / "x.jsonl", normalize(answer, CAFE), normalize(gold, CAFE)
    for form in ("form=text", f"labels=x|{meant}", f"labels={said}|x"):
        for field in ("answer", "output"):
            file.write_text(json.dumps({"instruction": "Where?", field: meant}))
            task = get_task(f"own:{file}?{form}")
            (row,) = task.load("test")
            assert task.judge(said, row.answer, "lab")[1], (form, field)
    assert not get_task("own:x.csv").judge("cafe", meant, "lab")[1]
    task = get_task("own:x.csv?labels=Yes|yes|No")
    for label in ("Yes", "yes", "The answer is yes", "no", "NO"):
        assert task.judge(label, "No" if "n" in label.casefold()[:1] else label[-3:], "lab")[1], label
    assert task.judge("YES", "yes", "lab") == (None, False)
