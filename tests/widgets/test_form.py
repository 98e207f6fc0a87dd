"""Forms made from configs: every field has a control, every error its message, and no input raises."""

from typing import Annotated, Any, Literal

import ipywidgets as W
import pytest
from pydantic import BaseModel, Field, model_validator

from llm_adapters_lab.config import faults, parse
from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import REGISTRY, all_adapters, register_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.spec import EvalSpec
from llm_adapters_lab.runs.presets import adapter_presets, expand
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.spec import DataSpec
from llm_adapters_lab.training.spec import TrainSpec
from widgets.forms.form import Form

SPECS = (TrainSpec, EvalSpec, DataSpec)
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


class StrangeConfig(AdapterConfig):
    """Kinds of fields that no adapter of the lab has."""

    type: Literal["strange-one"] = "strange-one"
    sizes: tuple[int, ...] = Field(default=(4, 8), description="of the parts")
    names: tuple[str, ...] = ("a", "b")
    table: dict[str, float] = Field(default_factory=lambda: {"x": 0.5})
    maybe: float | None = Field(default=None, gt=0)
    on: bool | None = None
    mode: Literal[1, 2, 4] | None = 2
    close: Annotated[int, Field(ge=0, lt=10)] = 3
    free: str | None = None

    @model_validator(mode="after")
    def _together(self) -> Any:
        if self.close == 7:
            raise ValueError("seven is taken")
        if self.close == 8:
            raise KeyError("a bug of someone else")
        return self


@pytest.fixture
def strange():
    register_adapter("strange-one", config=StrangeConfig, at="q", source="nowhere")(type("Strange", (Adapter,), {}))
    yield StrangeConfig
    del REGISTRY["strange-one"]


def test_every_adapter_has_a_form_that_starts_with_its_defaults():
    for entry in all_adapters().values():
        required = any(field.is_required() for field in entry.config.model_fields.values())
        given = entry.config(**entry.cls.example) if required else entry.config()
        form = Form(entry.config, given if required else None)
        assert form.value == given, entry.name
        assert {*form.fields} == {*entry.config.model_fields} - {"type"} - ({"at"} if not entry.at else set())

        again = Form(entry.config, form.value)
        assert again.value == form.value


def test_every_preset_fills_its_form():
    for name in adapter_presets():
        fields = expand({"type": name})
        config = all_adapters()[fields["type"]].config
        assert Form(config, fields).value == config(**fields)


@pytest.mark.parametrize("model", SPECS)
def test_specs_have_forms(model):
    form = Form(model)
    assert form.value == model()
    assert {*form.fields} == {*model.model_fields}


def test_a_third_party_config_has_a_form(strange):
    form = Form(strange)
    assert form.value == strange()
    other = strange(sizes=(1,), names=(), table={"y": 2.0}, maybe=0.25, on=False, mode=None, close=9, free="z")
    form.value = other
    assert form.value == other
    form.controls["sizes"].entry.value = "[1, two"
    assert form.value is None
    assert "sizes" in form.errors["sizes"].value
    form.controls["sizes"].entry.value = "[2, 3]"
    assert form.value.sizes == (2, 3)
    form.controls["close"].entry.value = "7"
    assert "seven is taken" in form.problem.value
    form.controls["close"].entry.value = "8"
    assert form.value is None
    assert "KeyError" in form.problem.value


KINDS = {
    "schedule": W.Dropdown,
    "gradient_checkpointing": W.Checkbox,
    "learning_rate": W.Text,
    "precision": W.Dropdown,
}


def test_annotations_choose_the_controls():
    form = Form(TrainSpec)
    assert {name: type(form.controls[name].entry) for name in KINDS} == KINDS
    assert "after the warm-up" in form.controls["schedule"].entry.tooltip
    assert "> 0, ≤ 10" in form.controls["learning_rate"].entry.tooltip


def test_number_fields_may_hold_lists():
    form = Form(TrainSpec, lists=True)
    form.controls["learning_rate"].entry.value = "1e-3, 3e-3; 0.01,"
    form.controls["max_steps"].entry.value = "20, 40"
    assert form.value.learning_rate == 1e-3 and form.value.max_steps == 20
    assert form.varied == {"learning_rate": [1e-3, 3e-3, 0.01], "max_steps": [20, 40]}
    form.controls["batch"].entry.value = "8, 0, x"
    assert form.value is None and form.varied == {}
    assert plain(form.errors["batch"].value).count("batch must be") == 2
    form.controls["batch"].entry.value = "8"
    assert form.value.batch == 8 and len(form.varied) == 2
    form.value = TrainSpec()
    assert form.varied == {} and form.value == TrainSpec()


def test_a_form_without_lists_refuses_them():
    form = Form(TrainSpec)
    form.controls["batch"].entry.value = "8, 16"
    assert form.value is None and "8, 16" in form.errors["batch"].value


def test_seeds_can_be_counted():
    form = Form(RunSpec, skip=("base", "adapter", "data", "train", "eval"), lists=True)
    form.controls["seed"].entry.value = "3 seeds"
    assert form.varied == {"seed": [0, 1, 2]} and form.value.seed == 0
    form.controls["seed"].entry.value = "0 seeds"
    assert form.value is None


def test_a_number_may_be_a_multiple_of_another():
    config = all_adapters()["lora"].config
    form = Form(config, config(rank=8, alpha=16), lists=True, ties={"alpha": "rank"})
    alpha, rank = form.controls["alpha"].entry, form.controls["rank"].entry
    assert alpha.value == "2 × rank" and form.tied == {"alpha": ("rank", 2.0)}
    rank.value = "64"
    assert form.value.alpha == 128.0
    rank.value = "2, 4"
    assert form.value.alpha == 4.0 and form.varied == {"rank": [2, 4]}
    alpha.value = "0.5*rank"
    assert form.value.alpha == 1.0
    alpha.value = "rank × rank"
    assert form.value is None and "alpha" in form.errors["alpha"].value
    alpha.value = "16"
    assert form.value.alpha == 16.0 and form.tied == {}
    form.value = config(rank=3, alpha=0.1)  # no short factor
    assert alpha.value == "0.1" and form.value == config(rank=3, alpha=0.1)


def test_essential_fields_come_first_and_the_others_are_folded():
    form = Form(TrainSpec, first=("batch", "learning_rate"))
    assert form.essentials.children == (form.boxes["batch"], form.boxes["learning_rate"])
    assert len(form.others.children) == len(form.controls) - 2 and not form.more.button.value
    form.controls["clip"].entry.value = "-1"
    assert form.more.button.value  # its message must not be hidden
    assert {*form.fields} == {*TrainSpec.model_fields}


def test_fields_are_found_by_name_or_description():
    form = Form(TrainSpec, first=("batch",))
    assert form.find("moments") == 0
    assert form.find("decay") >= 2 and form.more.button.value
    shown = [name for name, box in form.boxes.items() if "lab-hidden" not in box._dom_classes]
    assert "weight_decay" in shown and "batch" not in shown
    assert form.find(" ") == len(form.controls)
    assert all("lab-hidden" not in box._dom_classes for box in form.boxes.values()) and not form.more.button.value


def test_locked_fields_cannot_be_changed_by_hand():
    form = Form(TrainSpec)
    form.lock(["batch", "batch"])
    assert form.controls["batch"].entry.disabled and form.controls["batch"].entry.description == "batch 🔒"
    form.value = TrainSpec(batch=4)
    assert form.value.batch == 4 and not form.controls["clip"].entry.disabled


def test_a_field_may_be_a_number_or_a_word():
    form = Form(all_adapters()["parallel"].config)
    form.controls["scaling"].entry.value = "learned"
    assert form.value.scaling == "learned"
    form.controls["scaling"].entry.value = "4"
    assert form.value.scaling == 4.0
    form.controls["scaling"].entry.value = "lerned"
    assert form.value is None
    assert "lerned" in form.errors["scaling"].value


BAD = [
    (TrainSpec, "learning_rate", "0"),
    (TrainSpec, "learning_rate", "fast"),
    (TrainSpec, "learning_rate", ""),
    (TrainSpec, "learning_rate", "nan"),
    (TrainSpec, "learning_rate", "inf"),
    (TrainSpec, "batch", "0"),
    (TrainSpec, "batch", "1.5"),
    (TrainSpec, "batch", "9" * 5000),
    (TrainSpec, "max_steps", "-1"),
    (EvalSpec, "tasks", "mini-math, no-such-task"),
    (EvalSpec, "tasks", HOSTILE),
    (EvalSpec, "shots", "65"),
    (DataSpec, "task", "mini-moth"),
    (DataSpec, "task", "own:rows.exe"),
    (DataSpec, "task", ""),
    (DataSpec, "template", HOSTILE),
    (DataSpec, "max_tokens", "7"),
]


@pytest.mark.parametrize(("model", "name", "text"), BAD, ids=[f"{n}={t[:12]}" for _, n, t in BAD])
def test_errors_appear_below_their_field_with_the_message_of_the_library(model, name, text):
    form = Form(model, prefix="part.")
    form.controls[name].entry.value = text
    assert form.value is None
    with pytest.raises(BadSpec) as caught:
        parse(model, form.fields, "part.")
    assert plain(form.errors[name].value) == f"✗ {caught.value}"
    assert "<img" not in all_markup(form.widget) and "<script" not in all_markup(form.widget)
    form.value = None
    assert form.value == model()
    assert not form.errors[name].value


def test_the_bounds_of_every_adapter_are_enforced():
    for entry in all_adapters().values():
        for name, made in Form(entry.config).controls.items():
            form = Form(entry.config)
            if isinstance(form.controls[name].entry, W.Text) and isinstance(made.read(), int | float):
                form.controls[name].entry.value = "-1"
                if form.value is None:  # a factor may be negative
                    assert f"{name}" in form.errors[name].value and "-1" in form.errors[name].value
                form.controls[name].entry.value = "much"
                assert form.value is None and "much" in form.errors[name].value


def test_errors_of_several_fields_appear_below_the_form():
    form = Form(TrainSpec)
    form.controls["micro_batch"].entry.value = "5"
    assert form.value is None
    assert "not a multiple of micro_batch 5" in form.problem.value
    form.controls["micro_batch"].entry.value = ""
    assert form.value.micro_batch is None and not form.problem.value


def test_observers_are_called_once_per_change_and_may_fail():
    form, heard = Form(TrainSpec), []

    def broken(form):
        raise RuntimeError("oh <b>no</b>")

    form.observe(lambda form: heard.append(form.value))
    form.controls["epochs"].entry.value = "5"
    form.value = TrainSpec(epochs=2, batch=8)
    assert [value.epochs for value in heard] == [5, 2]
    form.observe(broken)
    form.controls["epochs"].entry.value = "7"
    assert form.value.epochs == 7
    assert "RuntimeError: oh &lt;b&gt;no" in form.problem.value


def test_skipped_fields_keep_their_values():
    spec = RunSpec.parse({"base": "tiny:llama", "data": {"rows": 5}})
    form = Form(RunSpec, spec, skip=("base", "adapter", "data", "train", "eval"))
    form.controls["seed"].entry.value = "3"
    assert form.value == spec.model_copy(update={"seed": 3})


def test_an_unknown_field_is_refused():
    with pytest.raises(BadSpec, match="is not a known key"):
        Form(TrainSpec, {"epoch": 3})


def test_names_can_be_picked():
    form = Form(EvalSpec, offers={"tasks": ["mini-addsub", "mini-bool"]})
    _, adder = form.controls["tasks"].widget.children
    adder.value = "mini-bool"
    adder.value = "mini-addsub"
    adder.value = "mini-bool"
    assert form.value.tasks == ("mini-bool", "mini-addsub")


def test_faults_have_the_messages_of_parse():
    class Two(BaseModel):
        a: int = 1
        b: int = 2

    given = {"a": "x", "b": "y", "c": 1}
    found = faults(Two, given, "p.")
    assert [place for place, _ in found] == ["a", "b"]
    with pytest.raises(BadSpec) as caught:
        parse(Two, given, "p.")
    assert str(caught.value) == "\n".join(text for _, text in found)
    assert faults(Two, {"a": 3}) == []


def all_markup(widget):
    own = widget.value if isinstance(widget, W.HTML) else ""
    return own + "".join(all_markup(child) for child in getattr(widget, "children", ()))


def plain(markup):
    import html
    import re

    return html.unescape(re.sub("<[^>]+>", "", markup))
