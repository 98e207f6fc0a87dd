"""A right answer is misread by the rule that extracts it.

Area: scoring
Elsewhere: LLM-Adapters#58
Before: 1e3 was read as 3, "- 5" as 5, 1½ as 1, and 'B' or "B is right" not at all.
Here: the lab rule reads them, and states what it reads; the original rule is kept beside it, faults included.
Verdict: silent → right
"""

import pytest

from llm_adapters_lab.tasks.extraction import letter, number

NUMBERS = {
    **{"The answer is 1e3": "1000", "The answer is 1.5e-05": "0.000015", "5 * 10^3": "5000", "10^400": str(10**400)},
    **{"The answer is - 5": "-5", "the answer is - 15 .": "-15", "Answer:\n- 5 apples": "5", "so 5 - 3": "3"},
    **{"The answer is 1\u00bd": "1.5", "\u00be cup": "0.75", r"The answer is 2\frac{1}{2}": "2.5", "3/4": "0.75"},
    **{"The answer is 9 . 8": "9.8", "He has 7 . 5 came": "5", "1,234": "1234", "\u22123": "-3", "\u0661\u0662": "12"},
    **{"The answer is 3,14.": None, "x = 0,5 kg": None, "It costs 3,14, so the answer is 7": "7"},
    **{"5 apples, 6 pears": "6", "9007199254740993": "9007199254740993", "16 m^2": "16", "7 " * 50_000: "7"},
}
LETTERS = {
    **{"The answer is 'B'": "B", "The answer is b.": "B", "the answer is a .": "A", "the answer is a dog": None},
    **{
        "B is right": "B",
        "Option A is wrong. B is right.": "B",
        "A man is right": None,
        "\u7b54\u6848\u662fB\u3002": "B",
    },
    **{"the answer is (B) not (A)": "B", "The answer is A's": None},
}


@pytest.mark.parametrize("text", [*NUMBERS, *LETTERS])
def test_an_answer_is_misread(text: str) -> None:
    if text in NUMBERS:
        assert number(text) == NUMBERS[text]
    else:
        assert letter(text) == LETTERS[text]
    assert number("The answer is 1e3", "original") == "3"
    assert letter("B is right, A is wrong", "original") == "B"
