"""Intervals and baselines of an accuracy."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_adapters_lab.evaluation.statistics import chance, majority, options, wilson
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.registry import get_task


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
    ("instruction", "labels", "found"),
    [
        ("q? Answer format: answer1/answer2/answer3", "answer1 answer2 answer3 answer4", "answer1 answer2 answer3"),
        ("Option1: x Option2: y Answer format: option1/option2", "option1 option2", "option1 option2"),
        ("q?", "a b c d", "a b c d"),
        ("Is it odd? Answer format: yes/no.", "yes no", "yes no"),
        ("Answer format: Yes/No", "yes no maybe", "yes no"),
        ("Answer format: letter", "A B C D E", "A B C D E"),
        ("Answer format: left/right", "yes no", "yes no"),
        ("Is it true or false that it is odd?", "yes no", "yes no"),
    ],
)
def test_options_are_read_from_the_question(instruction: str, labels: str, found: str) -> None:
    example = Example("id", instruction, "", "", "")
    assert options(example, labels.split()) == tuple(found.split())
    told = replace(example, options=(("no", "x"), ("yes", "y")))
    assert options(told, labels.split()) == ("no", "yes")


def test_chance_is_the_mean_over_rows() -> None:
    asked = ["Answer format: answer1/answer2", "Answer format: answer1/answer2/answer3/answer4", "no word of it"]
    rows = [Example(str(i), text, "", "", "answer1") for i, text in enumerate(asked)]
    assert chance(get_task("arc-e"), rows) == pytest.approx((1 / 2 + 1 / 4 + 1 / 5) / 3)
    assert chance(get_task("gsm8k"), rows) is None


def test_majority_is_the_share_of_the_commonest_answer() -> None:
    assert majority(["a", "b", "a", "a"]) == 0.75
