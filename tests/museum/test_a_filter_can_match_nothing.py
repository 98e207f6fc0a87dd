"""A filter that can match nothing says that no run matches.

Area: comparison
Elsewhere: found here
Before: "none of the runs matches" for `rank==2`, `rank=>1`, `rank>nan`, `state=done` and `max_new_tokens=null`.
Here: unknown operators and states and nan are refused; null matches what is not set.
Verdict: silent → refused
"""

from pathlib import Path

import pytest
from records import make_run

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.results.run_index import entries, matching


def test_a_filter_can_match_nothing(tmp_path: Path) -> None:
    make_run(tmp_path, {"type": "lora", "rank": 2}, {"mini-addsub": 10})
    rows = entries(tmp_path)
    for text, words in (
        ("rank==2", "rank==2.*compare with one of"),
        ("rank=>1", "compare with one of"),
        ("rank<>1", "compare with one of"),
        ("rank>nan", "needs a number; given was 'nan'"),
        ("state=done", "no such state"),
        ("state=finshed", "Did you mean 'finished'"),
    ):
        with pytest.raises(BadSpec, match=words):
            matching(rows, text)
    for text in ("eval.max_new_tokens=null", "max_new_tokens=none", "rank=2", "rank>=2", "state!=failed", "rank<inf"):
        assert matching(rows, text) == rows
    assert matching(rows, "rank!=2") == matching(rows, "max_new_tokens!=null") == []
