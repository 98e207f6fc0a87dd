"""A gold answer smaller than the tolerance accepts any small number.

Area: scoring
Elsewhere: found here; the tolerance is that of the evaluation scripts of LLM-Adapters.
Before: with the gold answer 0.0004 the answers 0 and -0.0005 were right, and 1e-4 for 1e-5.
Here: under the lab rule numbers below 1 may differ by at most 0.1 %, others by 0.001 as before; the original rule keeps
    its absolute 0.001.
Verdict: silent → right
"""

import pytest

from llm_adapters_lab.tasks.registry import get_task

APART = [
    ("0.0004", "0"),
    ("0.001", "0.0019"),
    ("0.0001", "-0.0005"),
    ("1e-5", "1e-4"),
    ("0.05", "0.0509"),
    ("0", "1e-4"),
]
ALIKE = [("5", "5.0009"), ("5.0", "5"), ("1234.5", "1234.501"), ("0.3333", "0.33333"), ("-0.5", "-0.5"), ("0", "-0")]


@pytest.mark.parametrize("task", ["own:x.csv?form=number", "gsm8k", "svamp"])
def test_a_tiny_gold_answer_accepts_anything(task: str) -> None:
    judge = get_task(task).judge
    for gold, answer in APART:
        assert judge(answer, gold, "lab")[1] is False, (gold, answer)
    for gold, answer in ALIKE:
        assert judge(answer, gold, "lab")[1] is judge(answer, gold, "original")[1] is True, (gold, answer)
    for gold, answer in APART[:3]:
        assert judge(answer, gold, "original")[1] is True
    assert not judge("5.01", "5", "lab")[1] and not judge("5.01", "5", "original")[1]
