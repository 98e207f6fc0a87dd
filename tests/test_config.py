"""What a person is told about a wrong value: field, what it must be, and what was given, never in pydantic's words."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from contract import required
from pydantic import BaseModel, Field
from pydantic_core._pydantic_core import list_all_errors

from llm_adapters_lab.config import expected, faults, parse
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.spec import Sweep

WRONG: dict[str, Any] = {
    "a word": "x",
    "negative": -1,
    "a fraction": 0.123,
    "huge": 10**400,
    "nothing": None,
    "a list": [[]],
    "keys": {"no such": 1},
    "not a number": math.nan,
    "infinite": math.inf,
    "true": True,
    "half a character": "\udcff",
}
# "Input should be a valid integer" and so on, up to the first value in it.
THEIRS = {error["message_template_python"].partition("{")[0].strip() for error in list_all_errors()} - {
    "",
    "Value error,",
}


def paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{above}{name}"
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and not above.startswith(f"{name}."):
                yield from paths(kind, f"{above}{name}.")


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value  # type: ignore[no-any-return]


FIELDS = sorted(set(paths(RunSpec)) - {f"adapter.{name}" for name in ("type",)})
OF_ADAPTERS = [(kind, path) for kind, entry in all_adapters().items() for path in paths(entry.config) if path != "type"]


def told(model: Any, fields: dict[str, Any]) -> str | None:
    try:
        model.parse(fields)
    except BadSpec as error:
        return str(error)
    return None


def check(message: str | None, name: str) -> None:
    if message is not None:
        assert not [theirs for theirs in THEIRS if theirs in message]
        assert name in message or "There is no" in message, message  # a task or template names itself


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("path", [path for path in FIELDS if not path.startswith("adapter.")])
def test_a_wrong_value_of_a_spec(path: str, value: Any) -> None:
    check(told(RunSpec, nested(path, value)), path.rpartition(".")[2])


@pytest.mark.parametrize(("kind", "path"), OF_ADAPTERS)
def test_a_wrong_value_of_an_adapter(kind: str, path: str) -> None:
    refused = 0
    for value in WRONG.values():
        message = told(RunSpec, {"adapter": {"type": kind, **required(kind), **nested(path, value)}})
        check(message, path.rpartition(".")[2] if "." not in path else path.partition(".")[0])
        refused += message is not None
    assert refused > 2


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("path", sorted(paths(Sweep)))
def test_a_wrong_value_of_a_sweep(path: str, value: Any) -> None:
    check(told(Sweep, {"spec": {}, **nested(path, value)}), path.partition(".")[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"adapter": {"type": "lora", "rank": "x"}},
            "adapter.rank must be a whole number from 1 to 4096; given was 'x'.",
        ),
        (
            {"train": {"learning_rate": -1}},
            "train.learning_rate must be a number greater than 0 and at most 10; given was -1.",
        ),
        (
            {"train": {"schedule": "step"}},
            "train.schedule must be one of linear, cosine, constant; given was 'step'.",
        ),
        ({"train": {"compile": "maybe"}}, "train.compile must be true or false; given was 'maybe'."),
        (
            {"train": {"trackers": ["x"]}},
            "train.trackers[0] must be one of tensorboard, wandb, trackio, mlflow; given was 'x'.",
        ),
        (
            {"data": {"rows": 0, "validation": None}},
            "data.rows must be a whole number of at least 1, or null; given was 0.\n"
            "data.validation must be a whole number of at least 0; given was null.",
        ),
        ({"seed": 2**31}, "seed must be a whole number from 0 to 2147483647; given was 2147483648."),
        ({"base": ""}, "base must be text that is not empty; given was ''."),
        ({"adapter": {"type": "prefix", "at": "q"}}, "adapter.at must be empty; given was 'q'."),
        (
            {"adapter": {"type": "series", "scaling": "x"}},
            "adapter.scaling must be a number or one of learned, channel; given was 'x'.",
        ),
    ],
)
def test_what_it_must_be_is_said_in_words(fields: dict[str, Any], message: str) -> None:
    assert told(RunSpec, fields) == message


def test_what_is_missing_or_nested_deeper() -> None:
    assert told(Sweep, {}) == "spec is missing; give a group of keys."
    assert (
        told(Sweep, {"spec": {}, "grid": {"seed": []}}) == "grid.seed must be a list that is not empty; given was []."
    )
    drawn = {"count": 1, "seed": 0, "fields": {"seed": {"integer": [0, 1, 2]}}}
    assert told(Sweep, {"spec": {}, "random": drawn}) == (
        "random.fields.seed.integer must be a list of 2: a whole number, a whole number, or null; given was [0, 1, 2]."
    )


def test_long_values_are_cut() -> None:
    message = told(RunSpec, {"seed": "x" * 10_000})
    assert message is not None and len(message) < 150


def test_every_kind_of_annotation_has_words() -> None:
    for kind, words in (
        (int, "a whole number"),
        (float | Literal["a"], "a number or a"),
        (list[Any], "a list"),
        (dict[str, int], "a group of keys"),
        (Annotated[str, Field(min_length=1)] | None, "text that is not empty, or null"),
        (bytes, "another value"),
    ):
        assert expected(kind) == words


def test_a_union_complains_once() -> None:
    class One(BaseModel):
        a: int | Literal["x"] = 1

    assert faults(One, {"a": "y"}) == [("a", "a must be a whole number or x; given was 'y'.")]
    with pytest.raises(BadSpec, match="^p.a must be a whole number or x; given was 'y'.$"):
        parse(One, {"a": "y"}, "p.")
