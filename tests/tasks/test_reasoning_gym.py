"""Puzzles of reasoning-gym: named, generated once, split without overlap, judged by the package's own rule."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from llm_adapters_lab.errors import BadSpec, DataUnavailable
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks import reasoning_gym
from llm_adapters_lab.tasks.registry import get_task, split_names

LEGS = "gym:leg_counting?size=30&test=10&seed=1&max_animals=4"
here = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="needs the extra reasoning-gym (128 MB)")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gym:", "name a data set"),
        ("gym:../x", "name a data set"),
        ("gym:leg_counting?size=0", "size=0"),
        ("gym:leg_counting?size=many", "whole numbers"),
        ("gym:leg_counting?level=1.5", "whole numbers"),
        ("gym:leg_counting?x", "key=value"),
        ("gym:leg_counting?x=[", "key=value"),
        ("gym:ransom_note", "differ from process to process"),
    ],
)
def test_malformed_names_are_refused_without_the_package(name, said):
    with pytest.raises(BadSpec, match=said):
        RunSpec.parse({"eval": {"tasks": [name]}})


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataUnavailable, match=r"pip install 'llm-adapters-lab\[reasoning-gym\]'"):
        get_task("gym:leg_counting?seed=12345").load("train")


def test_names_in_a_list():
    assert split_names(f"own:a,b.csv,{LEGS},mini-bool") == ["own:a,b.csv", LEGS, "mini-bool"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("12", "12"), (" a\nb ", "a\nb"), ("so <answer>1</answer> no, <answer> 2 </answer>.", "2"), (" ", None)],
)
def test_the_answer_in_a_text(text, found):
    assert reasoning_gym.extract(text) == found


@here
def test_splits_are_seeded_and_share_no_question():
    train, test = (get_task(LEGS).load(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (30, 10)
    assert not {row.instruction for row in train} & {row.instruction for row in test}
    other = get_task(LEGS.replace("seed=1", "seed=2")).load("train")
    assert other[0].instruction != train[0].instruction
    again = (
        "from llm_adapters_lab.tasks.registry import get_task;"
        f"print([(row.id, row.instruction, row.answer) for row in get_task({LEGS!r}).load('train')])"
    )
    said = subprocess.run([sys.executable, "-c", again], check=True, capture_output=True, text=True).stdout
    assert said.strip() == str([(row.id, row.instruction, row.answer) for row in train])


@here
def test_answers_are_judged_by_the_rule_of_the_package():
    task = get_task("gym:countdown?size=8&test=4")
    row = task.load("test")[0]
    assert task.judge(row.answer, row.answer, "lab") == (row.answer, True)
    assert task.judge(f"<answer>({row.answer}) + 0 * 1</answer>", row.answer, "lab")[1] is False  # other numbers
    assert task.judge(f"<answer>0 + ({row.answer})</answer>", row.answer, "lab")[1] is False
    assert task.judge(f"({row.answer})", row.answer, "lab")[1] is True  # written otherwise, and right
    legs = get_task(LEGS)
    assert legs.judge("It is 12", "12", "lab")[1] is False  # part of the score
    assert legs.judge("12", "no gold answer", "lab")[1] is False


@here
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gym:leg_count", "no 'leg_count'. Did you mean"),
        ("gym:leg_counting?foo=3", "unexpected keyword argument 'foo'"),
        ("gym:leg_counting?level=99", "the highest level is 35"),
        ("gym:leg_counting?min_animals=9&max_animals=3", "cannot be used"),
        ("gym:coin_flip?min_trials=1&max_trials=2", "different questions"),
        ("gym:rush_hour?size=2&test=2", "states no answers"),
    ],
)
def test_what_the_package_refuses_is_explained(name, said):
    with pytest.raises(BadSpec, match=said):
        get_task(name).load("train")


@here
def test_levels_are_harder():
    easy, hard = (get_task(f"gym:leg_counting?size=20&test=5&level={level}").load("train") for level in (0, 8))
    assert sum(len(row.instruction) for row in hard) > sum(len(row.instruction) for row in easy)


@here
def test_a_run_learns_from_them_by_reward(tmp_path):
    legs = LEGS + "&min_animals=1"
    fields = {
        "base": "nano",
        "adapter": {"type": "lora", "rank": 2},
        "data": {"task": legs, "template": "qa", "max_tokens": 512, "allow_dropped": True},
        "train": {"objective": "reward", "batch": 2, "answers": 2, "max_steps": 2},
        "eval": {"tasks": [legs], "rows": 3, "max_new_tokens": 4},
    }
    record = run(RunSpec.parse(fields), root=tmp_path)
    assert record.summary["scores"][legs]["total"] == 3
    assert record.summary["train"]["reward_first"] == 0
