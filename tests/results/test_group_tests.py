"""Groups of runs that differ only in the seed: their means, and the tests between them, checked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import make_answers, make_run
from scipy import stats

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.statistics import holm, mean_interval, student, student_quantile
from llm_adapters_lab.files import append_line
from llm_adapters_lab.results.appearance import short_names
from llm_adapters_lab.results.entry_groups import EntryGroup, by_seed, differing, shared_tasks
from llm_adapters_lab.results.group_tests import (
    Answers,
    AnswerStore,
    Difference,
    cautions,
    compare,
    rivals,
    tiers,
    verdict,
)
from llm_adapters_lab.results.run_index import entries
from llm_adapters_lab.runs.record import Run

LORA = {"type": "lora", "rank": 4}


def grouped(root: Path) -> dict[str, EntryGroup]:
    found = entries(root)
    return {group.name: group for group in by_seed(found, short_names({one.id: one.fields for one in found}))}


def asked(root: Path, adapter: Any, right: int, seed: int = 0, first: int = 0) -> Run:
    """Write a run of 20 questions, of which `right` are answered correctly, beginning with the question `first`."""
    run = make_run(root, adapter, {"a": right}, seed=seed)
    path = run.folder / "predictions.jsonl"
    path.unlink()
    for i in range(20):
        answer = {"extracted": "7", "gold": "7", "correct": first <= i < first + right, "prompt": "", "text": ""}
        append_line(path, {"task": "a", "id": f"a/test/{i}", **answer})
    return run


def answers(*right: list[int]) -> Answers:
    return Answers(np.arange(len(right[0]), dtype=np.int32), np.array(right, np.bool_))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 31, 178])
def test_students_distribution_is_that_of_scipy(freedom: int) -> None:
    for t in (0.0, 0.1, 1.0, -2.5, 10.0):
        assert student(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-12)
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x 0.01, 2 x 0.03, and no less
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_two_single_runs_are_compared_by_mcnemars_test() -> None:
    found = compare(answers([1] * 14 + [0] * 6), answers([1] * 4 + [0] * 16))
    assert (found.items, found.wins, found.losses, found.points) == (20, 10, 0, 0.5)
    assert found.p == 2 / 2**10
    low, high = found.interval
    assert 0.2 < low < 0.5 < high < 0.8
    assert found.method == "exact McNemar, 20 items"


def test_seeds_and_questions_both_count_by_hand() -> None:
    found = compare(answers([1, 1, 1, 1], [1, 0, 1, 0]), answers([0, 1, 0, 0], [0, 0, 0, 1]))
    # Differences of the questions 1, 0, 1, 0: variance 1/3, over 4 questions 1/12.
    # Accuracies of the seeds 1 and 1/2, 1/4 and 1/4: pooled variance (1/8 + 0) / 2, times 1/2 + 1/2.
    over_items, over_seeds = 1 / 12, 1 / 16
    error = (over_items + over_seeds) ** 0.5
    freedom = (over_items + over_seeds) ** 2 / (over_items**2 / 3 + over_seeds**2 / 2)
    assert int(freedom) == 4
    assert (found.points, found.error, found.freedom) == (0.5, pytest.approx(error), 4)
    assert found.p == pytest.approx(2 * stats.t.sf(0.5 / error, 4))
    assert found.interval == pytest.approx((0.5 - 2.7764451 * error, 1.0))
    assert found.method == "t-test, 4 items, 2 seeds each"


def test_degenerate_comparisons() -> None:
    sure = compare(answers([1, 1, 1, 1], [1, 1, 1, 1]), answers([0, 0, 0, 0]))
    assert (sure.points, sure.p, sure.interval) == (1.0, 2 / 16, (1.0, 1.0))
    none = compare(answers([1]), Answers(np.array([7], np.int32), np.ones((1, 1), np.bool_)))
    assert none == Difference(0, 0, 0, (1, 1), 0.0, 1.0)


def test_a_group_has_the_mean_of_its_seeds_and_their_interval(tmp_path: Path) -> None:
    for seed, right in enumerate((10, 12, 17)):
        make_run(tmp_path, LORA, {"a": right, "b": 4}, seed=seed)
    make_run(tmp_path, LORA | {"rank": 8}, {"a": 19, "b": 20})
    make_run(tmp_path, None, {"a": 1})
    found = grouped(tmp_path)
    assert {name: len(group.entries) for name, group in found.items()} == {
        "lora r4 q,v": 3,
        "lora r8 q,v s0": 1,
        "base": 1,
    }
    group = found["lora r4 q,v"]
    assert [run.fields["seed"] for run in group.entries] == [0, 1, 2]
    assert group.means(("a", "b")) == pytest.approx((0.35, 0.4, 0.525))
    assert group.mean(("a", "b")) == pytest.approx((0.35 + 0.4 + 0.525) / 3)
    assert group.interval(("a", "b")) == mean_interval([13, 4], [20, 20])
    assert group.value("trainable") == 2000
    assert shared_tasks(list(found.values())) == ("a", "b")
    assert found["base"].mean(("a", "b")) is None
    assert differing(entries(tmp_path)) == ["adapter.type", "adapter.rank", "seed"]
    alone = by_seed(entries(tmp_path), {}, together=False)
    assert len(alone) == 5


def test_a_verdict_is_in_words_and_never_of_a_lucky_seed(tmp_path: Path) -> None:
    for seed, right in enumerate((17, 10, 9)):
        asked(tmp_path, LORA, right, seed)
    for seed in range(3):
        asked(tmp_path, LORA | {"rank": 8}, 14, seed)
    asked(tmp_path, None, 1)
    groups, store = grouped(tmp_path), AnswerStore()
    r4, r8, base = (groups[name] for name in ("lora r4 q,v", "lora r8 q,v", "base"))
    known = {group.id: store.of(group, ("a",)) for group in (r4, r8, base)}
    (rival,) = found = rivals(base, [r8], known)
    assert rival.sign == 1
    assert verdict(base, found).startswith("lora r8 q,v is better than base: +65.0 points, 95 % 42.1 to 87.9, p")
    assert "The two differ on 13 of 20 items (65 %)." in cautions(found)
    found = rivals(r4, [r8], known)
    assert "are not separable: +10.0 points, 95 % −" in verdict(r4, found)
    tier = tiers([r8, r4, base], known)
    assert [[group.name for group in one.groups] for one in tier] == [[r8.name, r4.name], ["base"]]
    found = rivals(r8, [r4, base], known)
    text = verdict(r8, found, best=True)
    assert text == f"{r8.name} has the highest mean accuracy; not separable from {r4.name}; better than base."
    assert "corrected for 2 tests (Holm)" in cautions(found)[0]
    text = verdict(base, rivals(base, [r4, r8], known))
    assert text.startswith("Compared with base, 2 are better. Largest gain: lora r8 q,v, +65.0 points")
    assert verdict(base, []) == ""


def test_only_questions_asked_alike_are_compared(tmp_path: Path) -> None:
    make_answers(tmp_path, LORA, [True] * 8)
    other = make_answers(tmp_path, LORA | {"rank": 8}, [False] * 8)
    summary = other.summary
    summary["scores"]["mini-bool"]["protocol"] = "paper"
    other.write("summary.json", summary)
    first, second = grouped(tmp_path).values()
    store = AnswerStore()
    known = {group.id: store.of(group, ("mini-bool",)) for group in (first, second)}
    found = rivals(first, [second], known)
    assert found[0].sign == 0
    assert "have no question in common" in verdict(first, found)
    assert [len(tier.groups) for tier in tiers([first, second], known)] == [1, 1]


def test_answers_are_read_again_when_they_change_and_must_be_those_of_the_summary(tmp_path: Path) -> None:
    run = asked(tmp_path, LORA, 5)
    (group,), store = grouped(tmp_path).values(), AnswerStore()
    assert store.of(group, ("a",)).right.sum() == 5
    lines = (run.folder / "predictions.jsonl").read_text().splitlines()
    (run.folder / "predictions.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(BadSpec, match="predictions.jsonl holds 19 of 20 answers to a, 5 of them right"):
        store.of(group, ("a",))
