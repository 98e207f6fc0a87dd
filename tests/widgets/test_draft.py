"""The draft: one spec, or all combinations of the lists in its fields; what was changed; the draft as a sweep file."""

import pytest
import yaml

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.spec import Sweep
from widgets.kit.draft import MOST, Draft, explicit, make_draft

SPEC = RunSpec.parse({"base": "nano", "adapter": {"type": "lora", "rank": 8, "alpha": 16}, "train": {"max_steps": 5}})


def test_a_draft_without_lists_is_one_run():
    draft = make_draft(SPEC, {})
    assert draft.specs == [SPEC] and draft.varied == {} and draft.count() == draft.changed() == ""


def test_lists_are_multiplied_and_multiples_follow():
    varied = {"adapter.rank": [2, 8], "adapter.at": ["q,v", "mlp"], "seed": [0, 1, 2]}
    draft = make_draft(SPEC, varied, {"adapter.alpha": ("adapter.rank", 2.0)})
    assert len(draft.specs) == 12 and len({spec.id for spec in draft.specs}) == 12
    assert {(spec.adapter.rank, spec.adapter.alpha) for spec in draft.specs} == {(2, 4.0), (8, 16.0)}
    assert draft.count() == "12 runs (2 ranks × 2 placements × 3 seeds)"
    assert {spec.train.max_steps for spec in draft.specs} == {5}


def test_its_sweep_file_holds_the_same_runs():
    draft = make_draft(SPEC, {"train.learning_rate": [1e-3, 1e-2], "seed": [1, 2]})
    again = Sweep.parse(yaml.safe_load(draft.sweep_file()))
    assert [point.spec for point in again.points()] == draft.specs


def test_a_multiple_of_a_single_value_makes_no_list():
    draft = make_draft(SPEC, {"seed": [0, 1]}, {"adapter.alpha": ("adapter.rank", 2.0)})
    assert draft.count() == "2 runs (2 seeds)" and {spec.adapter.alpha for spec in draft.specs} == {16.0}


def test_too_many_runs_and_invalid_combinations_are_refused():
    with pytest.raises(BadSpec, match=r"make 1,000 runs, and a draft has at most 500"):
        make_draft(SPEC, {"seed": range(1000)})
    assert MOST == 500
    with pytest.raises(BadSpec, match=r"train\.micro_batch = 3"):
        make_draft(SPEC, {"train.micro_batch": [4, 3]})


def test_changes_against_the_parent_are_told():
    copy = SPEC.model_copy(update={"adapter": SPEC.adapter.model_copy(update={"rank": 16}), "seed": 3})
    assert make_draft(copy, {}, parent=SPEC, parent_name="lora r8").changed() == "from lora r8: rank 8 → 16, seed 0 → 3"
    same = make_draft(SPEC, {}, parent=SPEC, parent_name="lora r8")
    assert same.changed() == "copy of lora r8: change something to get a new run"
    several = make_draft(SPEC, {"seed": [0, 1]}, parent=SPEC, parent_name="lora r8")
    assert several.changes() == [("seed", "0", "0, 1")]
    bare = SPEC.model_copy(update={"adapter": None})
    assert ("method", "lora", "none") in Draft([*make_draft(bare, {}).points], {}, SPEC, "lora r8").changes()


def test_code_names_what_decides_most_even_if_it_is_the_default():
    fields = explicit(RunSpec.parse({"base": "nano", "adapter": "lora"}))
    assert fields["adapter"]["rank"] == 8 and fields["adapter"]["alpha"] == 16.0 and fields["adapter"]["type"] == "lora"
    assert fields["seed"] == 0 and fields["train"] == {"learning_rate": 3e-4, "epochs": 3.0}
    assert RunSpec.parse(fields) == RunSpec.parse({"base": "nano", "adapter": "lora"})
    assert "train" not in explicit(RunSpec(base="nano"))
