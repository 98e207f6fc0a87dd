"""Intervals, tests and baselines of accuracies."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from llm_adapters_lab.evaluation.statistics import (
    chance,
    hierarchical_bootstrap,
    majority,
    mcnemar,
    mean_interval,
    options,
    wilson,
)
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.registry import get_task

counts = st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(counts)
def test_wilson_agrees_with_its_formula(pair: tuple[int, int]) -> None:
    correct, total = pair
    p, z = correct / total, 1.959963984540054
    middle, reach = p + z * z / (2 * total), z * sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low, high = wilson(correct, total)
    assert low == pytest.approx((middle - reach) / (1 + z * z / total), abs=1e-9)
    assert high == pytest.approx((middle + reach) / (1 + z * z / total), abs=1e-9)
    assert 0 <= low <= p <= high <= 1


@given(counts, st.sampled_from([0.5, 0.8, 0.9, 0.99]))
def test_intervals_equal_those_of_scipy(pair: tuple[int, int], confidence: float) -> None:
    found = binomtest(*pair).proportion_ci(confidence, method="wilson")
    assert wilson(*pair, confidence) == pytest.approx((found.low, found.high), rel=1e-12, abs=1e-12)
    found = binomtest(*pair).proportion_ci(0.95, method="wilson")
    assert wilson(*pair) == (found.low, found.high)  # to the bit: saved records hold these
    alone = mean_interval([pair[0]], [pair[1]], confidence)
    z, total = norm.ppf(0.5 + confidence / 2), pair[1]
    share = (pair[0] + z * z / 2) / (total + z * z)
    reach = z * sqrt(share * (1 - share) / (total + z * z))
    assert alone == pytest.approx((max(0, share - reach), min(1, share + reach)), rel=1e-12, abs=1e-12)


@given(st.integers(0, 400), st.integers(0, 400))
def test_p_values_equal_those_of_scipy(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_p_values_of_many_items_do_not_overflow() -> None:
    assert mcnemar(60_000, 50_000) == pytest.approx(binomtest(50_000, 110_000).pvalue, rel=1e-9)


def test_more_confidence_is_wider() -> None:
    assert wilson(5, 10, 0.99)[0] < wilson(5, 10)[0] < wilson(5, 10)[1] < wilson(5, 10, 0.99)[1]


def test_intervals_and_baselines_of_no_questions() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert majority([]) == 0.0
    assert chance(get_task("boolq"), []) is None


def test_a_bootstrap_without_spread_is_not_certain() -> None:
    wrong, right = [[False] * 8] * 2, [[True] * 8] * 2
    assert hierarchical_bootstrap([wrong]) == mean_interval([0], [8]) and hierarchical_bootstrap([wrong])[1] > 0.2
    assert hierarchical_bootstrap([right, right]) == mean_interval([8, 8], [8, 8])
    low, high = hierarchical_bootstrap([[[True] * 4 + [False] * 4] * 2])
    assert 0 < low < 0.5 < high < 1
    assert hierarchical_bootstrap([]) == (0, 1)
    with pytest.raises(ValueError, match="same seeds"):
        hierarchical_bootstrap([wrong, [[True]]])


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
