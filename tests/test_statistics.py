"""Intervals and baselines of an accuracy."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_adapters_lab.statistics import chance, majority, options, wilson
from llm_adapters_lab.tasks import Example, get_task


@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
@settings(deadline=None)  # the first call imports scipy
def test_wilson_is_its_formula(pair: tuple[int, int]) -> None:
    correct, total = pair
    p, z = correct / total, 1.959963984540054
    middle, reach = p + z * z / (2 * total), z * sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low, high = wilson(correct, total)
    assert low == pytest.approx((middle - reach) / (1 + z * z / total), abs=1e-9)
    assert high == pytest.approx((middle + reach) / (1 + z * z / total), abs=1e-9)
    assert 0 <= low <= p <= high <= 1


def test_more_confidence_is_wider() -> None:
    assert wilson(5, 10, 0.99)[0] < wilson(5, 10)[0] < wilson(5, 10)[1] < wilson(5, 10, 0.99)[1]


def test_no_questions_say_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert majority([]) == 0.0
    assert chance(get_task("boolq"), []) is None


@pytest.mark.parametrize(("correct", "total", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 0, 0.95), (1, 2, 1.5)])
def test_numbers_out_of_range_are_refused(correct: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"."):
        wilson(correct, total, confidence)


@pytest.mark.parametrize(
    ("instruction", "found"),
    [
        ("q?\n\nAnswer format: answer1/answer2/answer3", ("answer1", "answer2", "answer3")),
        ("Option1: x Option2: y Answer format: option1/option2", ("option1", "option2")),
        ("answer with True or False, question: q?", ("true", "false")),
        ("q?", ("a", "b", "c", "d")),
    ],
)
def test_options_are_read_from_the_question(instruction: str, found: tuple[str, ...]) -> None:
    assert options(instruction, "abcd") == found


def test_chance_is_the_mean_over_rows() -> None:
    asked = ["Answer format: answer1/answer2", "Answer format: answer1/answer2/answer3/answer4", "no word of it"]
    rows = [Example(str(i), text, "", "", "answer1") for i, text in enumerate(asked)]
    assert chance(get_task("arc-e"), rows) == pytest.approx((1 / 2 + 1 / 4 + 1 / 5) / 3)
    assert chance(get_task("gsm8k"), rows) is None


def test_majority_is_the_share_of_the_commonest_answer() -> None:
    assert majority(["a", "b", "a", "a"]) == 0.75
