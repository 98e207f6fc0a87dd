"""The model panel: clicks, text and display agree, and no input raises."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_models import family

from llm_adapters_lab.core import placement
from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig, ModelAdapterConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import REGISTRY, all_adapters, register_adapter
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.models.random_models import tiny
from llm_adapters_lab.runs.forecast.size import size
from llm_adapters_lab.runs.presets import adapter_presets, expand
from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.adapter_info import link
from widgets.forms.placement_grid import column
from widgets.panels.model_panel import ModelPanel

PLACED = [n for n, e in all_adapters().items() if not issubclass(e.config, ModelAdapterConfig)]
PROJECTIONS = "lora"
SUBLAYERS = next(n for n in PLACED if all_adapters()[n].cls.level == "sublayer")
HOSTILE = '<img src=x onerror="alert(1)">'


def panel(kind=PROJECTIONS, base="tiny:llama", **fields):
    return ModelPanel(RunSpec.parse({"base": base, "adapter": {"type": kind, **fields}}))


@pytest.mark.parametrize("kind", ["", *all_adapters(), *adapter_presets()])
def test_every_kind_gives_a_spec(kind):
    chosen = ModelPanel()
    chosen.kind.value = kind
    assert chosen.spec == RunSpec.parse({"adapter": expand({"type": kind}) if kind else None})
    assert not any(line.value for line in chosen.errors.values())
    again = ModelPanel(chosen.spec)
    assert again.spec == chosen.spec and again.spec.id == chosen.spec.id


def test_the_parameter_count_equals_that_of_the_run():
    for kind in all_adapters():
        chosen, model = panel(kind), tiny("tiny:llama")
        total = sum(p.numel() for p in model.parameters())
        trainable = inject(model, chosen.spec.adapter).count()
        assert f"{trainable:,} trainable parameters" in chosen.cost.value
        assert f"of the base&#x27;s {total:,}" in chosen.cost.value


def test_counting_leaves_the_skeleton_unchanged():
    model = blueprint("tiny:llama").skeleton
    before = [(name, p.requires_grad) for name, p in model.named_parameters()]
    for kind in all_adapters():
        size("tiny:llama", panel(kind).spec.adapter)
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == before


def test_memory_of_weights_and_training():
    spec = panel().spec
    found = size(spec.base, spec.adapter, "bf16")
    assert found.weights == 2 * found.base and found.training == 4 * 4 * found.trainable


def test_an_initialisation_from_text_is_counted():
    name = next(n for n, e in all_adapters().items() if "init_text" in e.config.model_fields)
    fields = {"init": "text", "init_text": "a story", "virtual_tokens": 3}
    chosen = panel(name, base="nano", **fields)
    assert chosen.spec and "384 trainable" in chosen.cost.value  # 3 tokens of width 128


def test_typing_a_field_changes_the_spec():
    chosen, heard = panel(), []
    chosen.observe(lambda panel: heard.append(panel.spec))
    chosen.form.controls["rank"].entry.value = "4"
    chosen.base.value = "tiny:gpt2"
    chosen.other.controls["seed"].entry.value = "7"
    assert (
        chosen.spec
        == heard[-1]
        == RunSpec.parse({"base": "tiny:gpt2", "seed": 7, "adapter": {"type": PROJECTIONS, "rank": 4}})
    )
    chosen.form.controls["rank"].entry.value = "0"
    assert chosen.spec is None and heard[-1] is None and len(heard) == 4
    assert "adapter.rank must be" in chosen.form.errors["rank"].value
    assert "trainable" not in chosen.cost.value and "not valid yet" in chosen.cost.value


def test_an_error_is_never_hidden():
    chosen = panel()
    assert not chosen.more.button.value
    chosen.other.controls["seed"].entry.value = "-1"
    assert chosen.spec is None and chosen.more.button.value
    chosen.base.value, chosen.at.value = "no-such", "q,w"
    assert "no-such" in chosen.errors["base"].value and "which is not a role" in chosen.errors["at"].value


def test_data_training_and_evaluation_are_kept():
    spec = RunSpec.load("papermill_runs/specs/nano-lora.yaml")
    assert ModelPanel(spec).spec == spec


BAD_PLACES = [
    "q,w",
    "q@",
    "q@99",
    "q@3-1",
    "q@0-",
    "@",
    ",",
    "+",
    "q;v",
    "q" * 500,
    HOSTILE,
    "qkv",
    "q@0,,1",
    "q.in.in",
]


@pytest.mark.parametrize("text", BAD_PLACES, ids=[t[:10] for t in BAD_PLACES])
def test_a_bad_placement_says_what_is_wrong_and_gives_no_spec(text):
    chosen = panel()
    chosen.at.value = text
    assert chosen.spec is None
    assert "✗" in chosen.errors["at"].value and "<img" not in chosen.errors["at"].value
    chosen.at.value = "q"
    assert chosen.spec.adapter.at == "q" and not chosen.errors["at"].value


@pytest.mark.parametrize("base", ["", "no-such", "/no/such", "tiny:none", HOSTILE, "a/b/c", "x.gguf", "owner/name\n"])
def test_a_bad_base_says_what_is_wrong_and_gives_no_spec(base):
    chosen = panel()
    chosen.base.value = base
    assert chosen.spec is None
    assert "✗" in chosen.errors["base"].value and "<img" not in chosen.errors["base"].value
    assert not chosen.grid.shown
    chosen.base.value = "tiny:llama"
    assert chosen.spec and chosen.grid.shown


@pytest.mark.parametrize("text", ["q,v", "q@1", "attn", "mlp@0", "q+down@1", "down.in", "attn.in,mlp.in", "q,k,v@0,-1"])
@pytest.mark.parametrize("kind", [PROJECTIONS, SUBLAYERS])
def test_the_grid_shows_the_text(kind, text):
    chosen = panel(kind)
    chosen.at.value = text
    anatomy = blueprint("tiny:llama").anatomy
    sites = placement.sites(anatomy, text, all_adapters()[kind].cls.level)
    assert chosen.grid.selected == {(s.layer, column(s)) for s in sites}
    assert chosen.spec.adapter.at == text  # the text is not rewritten


def test_text_shows_the_grid():
    chosen = panel()
    chosen.grid.widget.selected = {"q": [0, 1], "down": [1]}
    assert chosen.at.value == "q+down@1" == chosen.spec.adapter.at
    chosen.grid.widget.selected = {}
    assert chosen.spec is None and "No site is selected" in chosen.errors["at"].value
    chosen.reset.click()
    assert chosen.spec.adapter.at == "q,v" and chosen.grid.widget.selected == {"q": [0, 1], "v": [0, 1]}


def test_another_type_returns_as_it_was_left():
    chosen = panel()
    chosen.form.controls["rank"].entry.value = "3"
    chosen.at.value = "o@1"
    chosen.kind.value = SUBLAYERS
    assert chosen.spec.adapter.at == all_adapters()[SUBLAYERS].at
    chosen.kind.value = PROJECTIONS
    assert (chosen.spec.adapter.rank, chosen.spec.adapter.at) == (3, "o@1")


def test_an_adapter_of_the_whole_model_has_no_placement():
    whole = next(n for n in all_adapters() if n not in PLACED)
    chosen = panel()
    chosen.at.value = "q@1"
    chosen.kind.value = whole
    assert chosen.place.layout.display == "none" and not chosen.grid.shown
    assert chosen.spec.adapter.at == ""


def test_a_third_party_adapter_is_offered():
    class OwnConfig(AdapterConfig):
        type: str = "from-elsewhere"
        size: int = 2

    class Own(Adapter):
        def __init__(self, config, site, base):
            super().__init__(config, site, base)
            if config.size == 3:
                raise RuntimeError(HOSTILE)

    register_adapter("from-elsewhere", config=OwnConfig, at="o", source=f"javascript:alert(1) {HOSTILE}")(Own)
    REGISTRY["from-elsewhere"] = replace(REGISTRY["from-elsewhere"], idea=HOSTILE)
    try:
        chosen = ModelPanel()
        chosen.kind.value = "from-elsewhere"
        assert chosen.spec.adapter == OwnConfig(at="o")
        assert "<img" not in chosen.about.value and "href" not in chosen.about.value
        chosen.form.controls["size"].entry.value = "3"
        assert chosen.spec is None
        assert "RuntimeError: &lt;img" in chosen.errors[""].value
    finally:
        del REGISTRY["from-elsewhere"]


def test_an_observer_may_fail():
    chosen, heard = panel(), []
    chosen.observe(lambda panel: 1 / 0)
    chosen.observe(heard.append)
    chosen.at.value = "q"
    assert chosen.spec and heard == [chosen]
    assert "ZeroDivisionError" in chosen.errors[""].value


def test_an_adapter_is_described_with_links():
    chosen = panel()
    assert "<pre" in chosen.about.value and re.search(r'href="https://arxiv.org/abs/\d{4}\.\d{5}"', chosen.about.value)
    markup = link("arXiv:1234.5678 & <b>")
    assert 'href="https://arxiv.org/abs/1234.5678" target="_blank" rel="noopener noreferrer"' in markup
    assert markup.endswith(">arXiv:1234.5678</a> &amp; &lt;b&gt;</span>")


def test_a_fused_model_shows_its_own_roles():
    chosen = panel(base="tiny:gpt_neox")
    assert chosen.grid.selected == {(0, "qkv"), (1, "qkv")}  # q,v means its qkv


def test_the_parts_of_a_hybrid_are_named(tmp_path):
    family("jamba").save_pretrained(tmp_path)
    chosen = panel(base=str(tmp_path), at="q?,experts.down?")
    assert "mlp (gate, up, down), attn (q, k, v, o), experts (gate_up, down), router" in chosen.model.value


@settings(max_examples=80, deadline=None)
@given(
    st.text(max_size=12) | st.text("qkvo@,+-.in0129", max_size=12),
    st.text(max_size=8),
    st.text("-.0123456789e", max_size=6),
)
def test_any_input_gives_a_spec_or_a_message(at, base, number):
    chosen = panel()
    chosen.at.value = at
    chosen.form.controls["rank"].entry.value = number
    told = [line.value for line in (*chosen.errors.values(), *chosen.form.errors.values(), chosen.form.problem)]
    assert (chosen.spec is None) == any(told)
    if chosen.spec:
        sites = placement.sites(blueprint("tiny:llama").anatomy, chosen.spec.adapter.at)
        assert chosen.grid.selected == {(s.layer, column(s)) for s in sites}
    chosen.base.value = base
    assert (chosen.spec is None) or base.strip()
