"""RunSpec: one spec, one id; every mistake explained."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.config import change
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.evaluation.spec import EvalSpec
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training.spec import TrainSpec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adaptr": 1}, "'adaptr' is not a known key. Did you mean 'adapter'"),
        ({"adapter": {"type": "lor"}}, "no adapter 'lor'. Did you mean 'lora'"),
        ({"adapter": {"type": "lora", "rnk": 3}}, "'adapter.rnk' is not a known key. Did you mean 'rank'"),
        ({"adapter": {"type": "lora", "rank": 0}}, r"adapter\.rank must be a whole number from 1 to 4096; given was 0"),
        ({"adapter": {"type": "lora", "at": "qq"}}, "'qq', which is not a role"),
        ({"adapter": {"type": "prefix", "at": "q"}}, r"adapter\.at must be empty; given was 'q'"),
        ({"adapter": {"rank": 3}}, "adapter needs a type"),
        ({"adapter": 3}, "adapter needs a type"),
        ({"train": {"batch": 10, "micro_batch": 3}}, "not a multiple"),
        ({"train": {"learning_rate": -1}}, r"train\.learning_rate must be .* given was -1"),
        ({"train": {"bacth": 1}}, "Did you mean 'batch'"),
        ({"data": {"task": "mini-mat"}}, "Did you mean 'mini-math'"),
        ({"data": {"task": "aqua"}}, "no train split"),
        ({"data": {"template": "alpacca"}}, "Did you mean 'alpaca'"),
        ({"eval": {"tasks": ["boolqq"]}}, "Did you mean 'boolq'"),
        ({"eval": {"tasks": ["mini-math"]}}, "no test split"),
        ({"eval": {"tasks": ["boolq", "boolq"]}}, "twice"),
        ({"seed": -1}, "seed must be a whole number from 0 to 2147483647; given was -1"),
        ({"dtype": "fp8"}, "dtype must be one of auto, fp32, bf16, fp16; given was 'fp8'"),
    ],
)
def test_mistakes_name_key_value_and_choices(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        RunSpec.parse(fields)


def test_naming_the_usual_placement_is_the_same_run() -> None:
    short = RunSpec.parse({"adapter": "lora"})
    assert short.id == RunSpec.parse({"adapter": {"type": "lora", "at": "q,v", "rank": 8}}).id
    assert short.id != RunSpec.parse({"adapter": {"type": "lora", "rank": 9}}).id
    assert short.id.startswith("nano-lora-")


def test_a_bare_base_does_not_depend_on_training() -> None:
    assert RunSpec.parse({}).id == RunSpec.parse({"train": {"batch": 3}, "data": {"rows": 5}, "seed": 4}).id
    assert RunSpec.parse({}).id != RunSpec.parse({"eval": {"tasks": ["mini-bool"]}}).id
    assert RunSpec.parse({}).id != RunSpec.parse({"data": {"template": "qa"}}).id


def test_the_id_is_stable() -> None:
    """A changed id would orphan every record there is: change it only on purpose."""
    spec = RunSpec.parse({"base": "nano", "adapter": {"type": "series"}, "eval": {"tasks": "mini-bool,mini-multi"}})
    assert spec.canonical() == '{"adapter":{"at":"mlp","type":"series"},"eval":{"tasks":["mini-bool","mini-multi"]}}'
    assert spec.id == "nano-series-6fe3aec949"


@pytest.mark.parametrize("fields", [{}, {"adapter": "lora", "train": {"batch": 4}}, {"data": {"template": "qa"}}])
def test_a_field_that_is_added_later_changes_no_earlier_id(fields: dict[str, Any]) -> None:
    class Train(TrainSpec):
        momentum: float = 0.9

    class Eval(EvalSpec):
        beams: int = 1

    class Later(RunSpec):
        train: Train = Field(default_factory=Train)
        eval: Eval = Field(default_factory=Eval)
        note: str | None = None

    assert Later.parse(fields).canonical() == RunSpec.parse(fields).canonical()
    assert Later.parse({**fields, "eval": {"beams": 4}}).id != RunSpec.parse(fields).id
    trained = {"adapter": "lora", **fields}
    assert Later.parse({**trained, "note": "x"}).id != RunSpec.parse(trained).id
    assert Later.parse({**trained, "train": {"momentum": 0.5}}).id != RunSpec.parse(trained).id


def test_a_field_that_is_added_to_an_adapter_later_changes_no_earlier_id() -> None:
    class LaterLoRA(LoRAConfig):
        noise: float = 0.0

    for fields in ({}, {"rank": 4}, {"at": "q"}):
        assert RunSpec(adapter=LaterLoRA(**fields)).id == RunSpec(adapter=LoRAConfig(**fields)).id
    assert RunSpec(adapter=LaterLoRA(noise=0.1)).id != RunSpec(adapter=LoRAConfig()).id


def test_adapters_with_equal_fields_are_told_apart() -> None:
    """The type equals the default of every config, yet it is what the run is about."""
    ids = {RunSpec.parse({"adapter": {"type": kind, "at": "down"}}).canonical() for kind in ("series", "parallel")}
    assert len(ids) == 2


def test_defaults_stay_what_they_were() -> None:
    """An id leaves out what equals its default, so a changed default would give old records a new meaning."""
    train = {"learning_rate": 3e-4, "batch": 16, "micro_batch": None, "epochs": 3.0, "max_steps": None, "warmup": 0}
    train |= {"schedule": "linear", "weight_decay": 0.0, "clip": 1.0, "precision": "auto", "evaluate_every": 0}
    data = {"task": "mini-math", "root": None, "rows": None, "validation": 0, "template": None, "max_tokens": 256}
    test = {"tasks": [], "rows": None, "batch": 32, "max_new_tokens": None, "extraction": None, "root": None}
    test |= {"protocol": "lab", "likelihood": True, "shots": 0}
    top = {"base": "nano", "adapter": None, "dtype": "auto", "trust_remote_code": False, "seed": 0}
    fields = RunSpec().model_dump(mode="json")
    assert fields.items() >= top.items()
    assert fields["train"].items() >= (train | {"gradient_checkpointing": False}).items()
    assert fields["data"].items() >= (data | {"loss_on": "answer"}).items()
    assert fields["eval"].items() >= test.items()


def test_writing_out_a_default_is_the_same_run() -> None:
    for adapter in (None, "lora", "series", "prefix"):
        spec = RunSpec.parse({"adapter": adapter, "train": {"batch": 8}})
        assert RunSpec.parse(spec.model_dump(mode="json")).id == spec.id


@given(
    st.sampled_from(["lora", "series", "parallel", "prefix"]),
    st.integers(1, 64),
    st.floats(1e-6, 1),
    st.integers(0, 2**31 - 1),
)
def test_a_spec_survives_json_and_yaml(kind: str, batch: int, rate: float, seed: int) -> None:
    fields = {"adapter": {"type": kind}, "train": {"batch": batch, "learning_rate": rate}, "seed": seed}
    spec = RunSpec.parse(fields)
    plain = spec.model_dump(mode="json")
    assert RunSpec.parse(json.loads(json.dumps(plain))) == spec
    assert RunSpec.parse(yaml.safe_load(yaml.safe_dump(plain))).id == spec.id


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4))
def test_any_value_anywhere_is_a_spec_or_a_named_error(value: Any) -> None:
    for key in RunSpec.model_fields:
        with suppress(LabError):
            RunSpec.parse({key: value})


def test_dotted_changes(tmp_path: Path) -> None:
    assert change({"adapter": "lora"}, {"adapter.rank": 4}) == {"adapter": {"type": "lora", "rank": 4}}
    assert change({}, {"train.batch": 4, "seed": 1}) == {"train": {"batch": 4}, "seed": 1}
    with pytest.raises(BadSpec, match="not a group of keys"):
        change({"seed": 1}, {"seed.x": 2})
    file = tmp_path / "spec.yaml"
    file.write_text("adapter: lora\n")
    spec = RunSpec.load(file, {"adapter.rank": 4})
    assert spec.adapter is not None
    assert spec.adapter.model_dump()["rank"] == 4


@pytest.mark.parametrize(("text", "message"), [("[1]", "keys and values"), ("a: [", "cannot be read")])
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(BadSpec, match=message):
        RunSpec.load(tmp_path / "s.yaml")
    with pytest.raises(BadSpec, match=r"no spec file .*missing\.yaml\.$"):
        RunSpec.load(tmp_path / "missing.yaml")
    with pytest.raises(BadSpec, match=r"cannot be read"):
        RunSpec.load(tmp_path)
