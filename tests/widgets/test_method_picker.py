"""The choice of a method: families from the adapters' own files, what each can do, and its parameters."""

from dataclasses import replace

import pytest

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import REGISTRY, all_adapters, register_adapter
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.runs.forecast.size import size
from llm_adapters_lab.runs.presets import adapter_presets
from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.adapter_info import NO_ADAPTER
from widgets.forms.method_picker import FAMILIES, MethodPicker, chips, counts_in

HOSTILE = '<img src=x onerror="alert(1)">'


def offered(picker):
    return {each["value"]: each for each in picker.widget.options}


def test_all_methods_are_offered_below_their_family():
    found = offered(MethodPicker())
    assert next(iter(found)) == NO_ADAPTER and {*found} == {NO_ADAPTER, *all_adapters(), *adapter_presets()}
    assert all(each["label"] and each["hint"] for each in found.values())
    groups = list(dict.fromkeys(each["group"] for each in found.values()))
    assert groups[:2] == ["", FAMILIES[0]] and {*FAMILIES} <= {*groups}
    for name, preset in adapter_presets().items():
        assert found[name]["group"] == all_adapters()[preset.fields["type"]].cls.family
        assert found[name]["chips"][0] == "preset"


def test_chips_tell_what_an_adapter_can_do():
    for entry in all_adapters().values():
        told = chips(entry)
        assert ("peft" in told) == bool(entry.cls.peft_type)
        assert ("no 4-bit bases" in told) == entry.cls.trains_base
        assert "merges" not in told or entry.cls.merged is not None


def test_observers_hear_of_a_choice():
    picker, heard = MethodPicker(), []
    picker.observe(lambda each: heard.append(each.value))
    picker.widget.value = "lora"  # as the browser does
    picker.value = "series"
    assert heard == ["lora", "series"]
    picker.disabled = True
    assert picker.widget.disabled


def test_parameters_are_counted_when_the_list_opens():
    base = blueprint("tiny:llama")
    counts = counts_in(base)
    picker = MethodPicker(counts)
    assert not any(each["amount"] for each in picker.widget.options)
    picker.widget.opened = True
    shown = {name: each["amount"] for name, each in offered(picker).items()}
    assert shown["lora"] == "1.79k" and shown[NO_ADAPTER] == ""
    assert {name for name, amount in shown.items() if amount} >= {*COMPLETE}


COMPLETE = [n for n, e in all_adapters().items() if not any(f.is_required() for f in e.config.model_fields.values())]


@pytest.mark.parametrize("name", COMPLETE)
def test_the_formula_agrees_with_the_adapter(name):
    base = blueprint("tiny:llama")
    number = counts_in(base)(name)
    adapter = RunSpec.parse({"base": "tiny:llama", "adapter": {"type": name}}).adapter
    assert number == size(base, adapter).trainable


def test_a_third_party_adapter_is_offered():
    class OwnConfig(AdapterConfig):
        type: str = "from-elsewhere"

    class Own(Adapter):
        family = HOSTILE

    register_adapter("from-elsewhere", config=OwnConfig, at="o", source="")(Own)
    REGISTRY["from-elsewhere"] = replace(REGISTRY["from-elsewhere"], idea=HOSTILE)
    try:
        picker = MethodPicker(counts_in(blueprint("tiny:llama")))
        picker.widget.opened = True
        each = offered(picker)["from-elsewhere"]
        assert (each["group"], each["label"], each["hint"], each["amount"]) == (HOSTILE, "from-elsewhere", HOSTILE, "")
    finally:
        del REGISTRY["from-elsewhere"]
