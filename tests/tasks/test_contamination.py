"""Contaminated test rows are counted, in the known data sets and in invented rows."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest

from llm_adapters_lab.errors import DataUnavailable
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.contamination import overlap, overlaps, words
from llm_adapters_lab.tasks.registry import get_task

DATA = Path(__file__).parents[3] / "shared" / "data"
LONG = "Tom has three red pens and buys four more blue pens in the shop"


def row(text: str, name: str = "x", further: str = "") -> Example:
    return Example(name, text, further, "", "")


def real(name: str, split: str) -> list[Example]:
    try:
        return get_task(name).load(split, DATA)
    except DataUnavailable:
        pytest.skip(f"no real {name} {split} file beside the checkout")


@pytest.mark.parametrize(("name", "share"), [("addsub", 0.83), ("multiarith", 0.82), ("singleeq", 0.86)])
def test_the_parts_of_mawps_are_in_its_training_file(name: str, share: float) -> None:
    found = overlap(real("mawps", "train"), real(name, "test"))
    assert found["exact_share"] == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("name", ["svamp", "gsm8k", "aqua"])
def test_the_other_math_sets_are_not(name: str) -> None:
    found = overlap(real("mawps", "train"), real(name, "test"))
    assert (found["exact"], found["ngram"]) == (0, 0)
    assert found["total"] == len(real(name, "test"))


def test_the_split_of_mawps_is_not_clean() -> None:
    train, test = real("mawps", "train"), real("mawps", "test")
    distinct = list({tuple(words(example)): example for example in test}.values())
    assert len(distinct) == 234
    assert overlap(train, distinct)["exact"] == 27
    assert overlap(train, test)["exact"] == 28


def test_the_known_rows_of_arc_easy() -> None:
    found = overlap(real("arc-e", "train"), real("arc-e", "test"))
    assert found["exact"] == 2
    assert found["examples"]["exact"] == ["arc-e/test/242", "arc-e/test/493"]


def test_gsm8k_is_clean_and_a_set_leaks_into_itself() -> None:
    test = real("gsm8k", "test")
    assert overlap(real("gsm8k-official", "train"), test)["exact"] == 0
    found = overlap(test, test)
    assert (found["exact"], found["ngram"]) == (1319, 1319)


def test_counts_shares_and_ids() -> None:
    train = [row(f"{LONG} ."), row("short one")]
    test = [
        row(f"{LONG.upper()}!", "same"),
        row(f"{LONG} today", "longer"),
        row("Short, one?", "short"),
        row("another short one", "fresh"),
    ]
    assert overlap(train, test) == {
        "exact": 2,
        "exact_share": 0.5,
        "ngram": 2,
        "ngram_share": 0.5,
        "total": 4,
        "n": 8,
        "threshold": 0.7,
        "examples": {"exact": ["same", "short"], "ngram": ["longer"]},
    }


def test_several_sets_are_counted_as_each_alone() -> None:
    train = [row(f"{LONG} ."), row("short one"), row("one two three")]
    tests = {"long": [row(f"{LONG} today")], "short": [row("short one"), row("three")], "none": []}
    assert overlaps(train, tests) == {name: overlap(train, rows) for name, rows in tests.items()}
    assert overlaps(train, {}) == {}


def test_shares_of_no_rows_are_zero() -> None:
    assert overlap([row(LONG)], [])["exact_share"] == overlap([], [row(LONG)])["ngram_share"] == 0.0
    assert overlap([row("")], [row(" ?")])["exact"] == 0


@pytest.mark.parametrize(("kept", "counts"), [(14, 1), (12, 1), (11, 0), (8, 0)])
def test_most_ngrams_must_be_known(kept: int, counts: int) -> None:
    text = LONG.split()  # 14 words: 7 runs of 8
    changed = " ".join(text[:kept] + ["other"] * (14 - kept))
    found = overlap([row(LONG)], [row(changed)])
    assert found["ngram"] == counts
    assert found["exact"] == (kept == 14)


def test_the_ngrams_may_come_from_several_rows() -> None:
    text = LONG.split()
    train = [row(" ".join(text[i : i + 8])) for i in range(7)]
    assert overlap(train, [row(LONG)])["ngram"] == 1


def test_the_frame_of_a_choice_question_does_not_count() -> None:
    frame = "Please choose the correct answer to the question: {}\n\nAnswer1: {} Answer2: {}\n\nAnswer format: a/b"
    assert words(row(frame.format("What melts?", "ice", "fog"))) == ["what", "melts", "ice", "fog"]
    boolq = (
        "Please answer the following question with true or false, question: is 1.5 odd?\n\nAnswer format: true/false"
    )
    assert words(row(boolq)) == ["is", "1.5", "odd"]
    assert words(row("2 + 3? Answer Choices: (A) 4 (B) 5", further="B")) == ["2", "3", "4", "5", "b"]
    assert words(row("2 + 3 ? The options: A ) 4 , B ) 5")) == ["2", "3", "4", "5"]
    assert (
        overlap([row(frame.format("What melts?", "ice", "fog"))], [row(frame.format("Why?", "a", "b"))])["ngram"] == 0
    )


def test_it_is_fast() -> None:
    rng = Random(0)
    text = [" ".join(str(rng.randrange(2000)) for _ in range(40)) for _ in range(2000)]
    train = [row(rng.choice(text)) for _ in range(17_000)]
    began = time.process_time()
    overlap(train, [row(t) for t in text[:1000]])
    assert time.process_time() - began < 10  # a tenth of the largest set; takes under a second
