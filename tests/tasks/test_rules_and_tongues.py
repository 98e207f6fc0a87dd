"""The generated tasks that need groups: hidden rules, and languages of their own."""

import re

import pytest

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.tasks import mini_rules, mini_tongues
from llm_adapters_lab.tasks.custom import groups_of
from llm_adapters_lab.tasks.registry import get_task, split_names


@pytest.mark.parametrize("name", mini_rules.RULES)
def test_answers_follow_the_rule_and_nothing_in_the_question_tells_it(name: str) -> None:
    task, (sign, there, stop) = get_task(name), mini_rules.RULES[name]
    train, test = task.load("train"), task.load("test")
    assert not {row.instruction for row in train} & {row.instruction for row in test}
    for row in train[:50] + test[:50]:
        assert re.fullmatch(r"\w+ has \d+ \w+ and \w+ has \d+ \w+ \.", row.instruction)
        left, right = map(int, re.findall(r"\d+", row.instruction))
        work = f"{left} + {right} = {left + right}" if sign == "plus" else f"{left} - {right} = {left - right}"
        assert row.output == row.answer == ("there are " if there else "") + work + (" ." if stop else "")
        assert task.judge(row.output, row.answer, "lab")[1]
        assert not task.judge(f"{row.output} {row.output}", row.answer, "lab")[1]


def test_the_mix_has_every_choice_and_leaves_two_combinations_out() -> None:
    rows = get_task("mini-rules").load("train")
    groups = groups_of("task", "mini-rules", "train", None, rows)
    assert set(groups) == set(mini_rules.RULES) - set(mini_rules.UNSEEN)
    seen = [mini_rules.RULES[name] for name in set(groups)]
    assert [len({rule[i] for rule in seen}) for i in range(3)] == [2, 2, 2]
    assert {groups.count(name) for name in groups} == {mini_rules.TRAIN_ROWS}


def test_a_language_has_the_same_words_in_another_meaning() -> None:
    one, two = mini_tongues.dictionary(1), mini_tongues.dictionary(2)
    assert sorted(one) == sorted(one.values()) == sorted(two)
    assert sum(one[word] == two[word] for word in one) < 10
    assert sorted(one[digit] for digit in "0123456789") == [*"0123456789"]
    assert mini_tongues.translated("tom , 12 .", 1) == f"{one['tom']} , {one['1']}{one['2']} ."
    rows = [get_task(f"mini-tongue:{n}").load("train")[0].instruction for n in (1, 2)]
    assert rows[0] != rows[1]
    back = {value: key for key, value in one.items()}
    words = re.sub(r"[a-z]+|\d", lambda match: back.get(match[0], match[0]), rows[0])
    assert any(name in words.split() for name in ("has", "there", "puts", "shares", "owns", "starts", "first"))


def test_languages_are_mixed_for_training_and_keep_their_group() -> None:
    mix = get_task("mini-tongue:1+3")
    rows = mix.load("train")
    groups = groups_of("task", "mini-tongue:1+3", "train", None, rows)
    assert set(groups) == {"mini-tongue:1", "mini-tongue:3"} and mix.splits == ("train",)
    assert split_names("mini-tongue:1,mini-tongue:2") == ["mini-tongue:1", "mini-tongue:2"]


@pytest.mark.parametrize("name", ["", "x", "1+1", "1+", "-1", "1+2+x", "99999", "+".join(map(str, range(17)))])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(BadSpec, match="give different numbers up to 9999"):
        get_task(f"mini-tongue:{name}")
