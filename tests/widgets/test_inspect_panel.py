"""The inspect panel without a browser: each view shows what the library computes, or why there is nothing to show."""

import asyncio
import html
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import HOSTILE, small

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.errors import LabError
from llm_adapters_lab.inspection import probes, weight_metrics
from llm_adapters_lab.models.random_models import tiny
from llm_adapters_lab.results import plots
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import find_run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.tasks.encoding import encode
from llm_adapters_lab.tasks.registry import get_task
from widgets.figures.figure_view import MAX_ROWS, FigureView
from widgets.figures.inspect_views import ALL, VIEWS, Request
from widgets.kit.loaded_runs import MAX_TOKENS, LoadedRun, TokenizedText, token_texts, tokenize
from widgets.panels.inspect_panel import TYPED, InspectPanel

Finished = tuple[Path, dict[str, str]]
DENSE = [name for name, view in VIEWS.items() if "experts" not in view.needs]
WITHOUT_A_CHANGE = {"Update norm ‖ΔW‖", "Relative update norm ‖ΔW‖ / ‖W‖", "Singular values of ΔW"}
WITHOUT_SITES = {"Adapter contribution per token", "Layer ablation", "Scaling λ"}


def panel_of(finished: Finished, name: str) -> InspectPanel:
    root, names = finished
    return InspectPanel(root, names[name])


def look(panel: InspectPanel, view: str) -> list[dict[str, Any]]:
    """Compute a view, and return the table behind its first figure."""
    panel.view.value = view
    asyncio.run(panel.compute())
    assert panel.status.value == ""
    return plots.data(panel.shown[0].figure) if panel.shown else []


@pytest.mark.parametrize("view", DENSE)
def test_every_view_is_drawn_and_explained(finished: Finished, view: str) -> None:
    panel = panel_of(finished, "lora")
    rows = look(panel, view)
    assert panel.problem.value == ""
    assert rows
    assert html.escape(VIEWS[view].description) in panel.caption.value
    assert ("Source: " in panel.caption.value) == (VIEWS[view].source is not None)
    for shown in panel.shown:
        (output,) = shown.output.outputs
        assert output["data"]["application/vnd.plotly.v1+json"]["data"]
        shown.table.value = True
        assert shown.rows.value.count("<tr>") == 1 + len(plots.data(shown.figure))
        shown.table.value = False
        assert shown.rows.value == ""


@pytest.mark.parametrize("view", DENSE)
def test_a_view_that_does_not_apply_to_a_method_says_why(finished: Finished, view: str) -> None:
    panel = panel_of(finished, "prefix")
    rows = look(panel, view)
    none = view in WITHOUT_A_CHANGE | WITHOUT_SITES
    assert bool(rows) != none
    assert ("prefix" in panel.problem.value) == none
    assert "Traceback" not in panel.problem.value


def test_the_load_of_experts_is_offered_for_a_mixture_only(finished: Finished, tmp_path: Path) -> None:
    spec = small("lora", base="nano-moe", adapter={"type": "lora", "rank": 2, "at": "experts"})
    panel = InspectPanel(tmp_path, run(spec, root=tmp_path).id)
    assert "Expert load" not in panel.view.options
    look(panel, "Placement")
    assert panel.problem.value == "" and panel.view.options == tuple(VIEWS)
    rows = look(panel, "Expert load")
    assert panel.problem.value == "" and html.escape(VIEWS["Expert load"].description) in panel.caption.value
    assert len(rows) == 2 * 4 * 4 and {row["name"] for row in rows} == {"without the adapter", "with lora"}
    assert [sum(row["× even"] for row in rows[at : at + 4]) for at in (0, 16)] == pytest.approx([4, 4])
    dense = panel_of(finished, "lora")
    look(dense, "Placement")
    assert "Expert load" not in dense.view.options


def test_views_show_what_the_library_computes(finished: Finished) -> None:
    root, names = finished
    panel = panel_of(finished, "lora")
    record = find_run(names["lora"], root)
    base, injection = restore(record)
    assert injection is not None
    example = get_task("mini-addsub").load("test", None)[0]
    (sample,), _ = encode(base.tokenizer, [example], get_task("mini-addsub").template, 256, "answer")
    ids = torch.tensor(sample.ids[:-1])  # an example has no end token
    first = next(i for i, label in enumerate(sample.labels) if label >= 0)

    rows = look(panel, "Loss per token")
    assert panel.range.value == (first, len(ids) - 1)
    assert panel.part.value == f"“{base.tokenizer.decode(ids[first:])}”"
    bare, adapted = probes.both(injection, lambda: probes.token_loss(base.model, ids))
    values = [row["change (nats)"] for row in rows]
    assert [row["token"] for row in rows] == [t.replace("\n", "↵") for t in token_texts(base.tokenizer, ids.tolist())]
    assert all(v != v for v in values[:first])
    assert values[first:] == pytest.approx((adapted - bare)[first - 1 :].tolist(), abs=1e-6)

    (shown,) = look(panel, "Layer ablation") and panel.shown
    words = shown.figure.layout.title.subtitle.text
    assert f"{float(adapted[first - 1 :].mean()):.3f}, without any of it {float(bare[first - 1 :].mean()):.3f}" in words
    panel.range.value = (1, 3)  # drawn at once, since the model is loaded
    words = panel.shown[0].figure.layout.title.subtitle.text
    assert f"with the whole adapter {float(adapted[:3].mean()):.3f}" in words

    rows = look(panel, "Update norm ‖ΔW‖")
    norms = weight_metrics.norms(injection)
    assert sorted(row["‖ΔW‖"] for row in rows) == pytest.approx(sorted(norm.change for norm in norms.values()))

    rows = look(panel, "Logit lens")  # up to the end of the range
    lens = probes.logit_lens(base.model, ids[:4])
    assert len(rows) == lens.top.shape[0] * 4
    assert rows[-1]["probability"] == pytest.approx(float(lens.probability[-1, -1, 0]), abs=1e-6)


def test_sites_are_chosen_by_kind_and_layer(finished: Finished) -> None:
    panel = panel_of(finished, "lora")
    look(panel, "Singular values of ΔW")
    assert panel.sites.layout.display == ""
    assert panel.reading.layout.display == panel.span.layout.display == "none"
    assert panel.kind.options == (ALL, "self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    assert len(panel.shown[0].figure.data) == 18
    panel.kind.value = "mlp.down_proj"
    assert {trace.name for trace in panel.shown[0].figure.data} == {f"model.layers.{i}.mlp.down_proj" for i in range(6)}
    panel.layer.value = "2"
    assert [trace.name for trace in panel.shown[0].figure.data] == ["model.layers.2.mlp.down_proj"]
    rows = look(panel, "Adapter contribution per token")
    assert [row["position"] for row in rows] == list(range(len(rows)))
    assert all(row["‖c‖ / ‖y‖"] > 0 for row in rows)
    panel.layer.value = panel.kind.value = ALL
    assert len(panel.shown) == 3


def test_the_model_is_loaded_by_compute_and_released_with_its_run(finished: Finished) -> None:
    _, names = finished
    panel = panel_of(finished, "lora")
    panel.view.value = "Logit lens"
    assert not panel.has_loaded
    assert panel.shown == []
    panel.start.click()
    assert panel.has_loaded
    old = panel.shown
    assert len(old) == 2
    panel.run_id = names["prefix"]
    assert not panel.has_loaded
    assert panel.shown == []
    assert panel.figures.children == ()
    assert all(one.output.comm is None for one in old)  # closed, not only hidden
    panel.run_id = "nowhere"
    panel.start.click()
    assert "nowhere is not finished" in panel.problem.value
    panel.run_id = names["lora"]
    assert panel.problem.value == ""


def test_a_selection_made_meanwhile_is_computed_next(finished: Finished) -> None:
    panel = panel_of(finished, "lora")
    asyncio.run(panel.compute())

    async def use() -> None:
        task = asyncio.create_task(panel.compute())
        await asyncio.sleep(0)
        assert panel.start.disabled
        assert panel.status.value == "computing …"
        panel.view.value = "Scaling λ"
        panel.view.value = "Residual-stream similarity"
        await task

    asyncio.run(use())
    assert not panel.start.disabled
    assert "The stream with and without" in panel.shown[0].figure.layout.title.text


def test_own_text_is_inspected_and_its_length_checked(finished: Finished) -> None:
    panel = panel_of(finished, "lora")
    panel.text.value = "tom has 3 coins ."
    rows = look(panel, "Loss per token")
    assert panel.range.value == (1, len(rows) - 1)
    for text in ("", "tom has 3 coins . " * 99):
        panel.text.value = text
        assert "tokens, but must have 2 to 256" in panel.problem.value
    assert MAX_TOKENS > 256
    panel.examples.another.click()
    assert panel.problem.value == ""
    assert panel.shown
    panel.examples.task.value = "mini-bool"
    assert panel.text.value.endswith((" true", " false"))


def test_control_tokens_of_a_chat_are_tokens_and_typed_ones_text(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant : {% endif %}"
    data = {"task": "mini-addsub", "rows": 8, "template": template}
    run(small("lora", data=data, eval={"tasks": ["mini-addsub"], "rows": 2}), root=tmp_path)
    panel = InspectPanel(tmp_path)
    words = [row["token"] for row in look(panel, "Loss per token")]
    assert panel.text.value.startswith("<s>user : ")
    assert panel.problem.value == ""
    panel.range.value = (1, len(words))
    prompt = [row["token"] for row in look(panel, "Loss per token")]
    panel.text.value += " </s>"
    typed = [row["token"] for row in look(panel, "Loss per token")]
    assert TYPED in panel.problem.value
    assert "</s>" in prompt
    assert "</s>" not in typed
    assert tokenize(asyncio.run(panel.loaded()), "tom has", " 3 </s>").ids.tolist().count(2) == 0


def test_hostile_text_stays_text(finished: Finished) -> None:
    panel = panel_of(finished, "own")
    assert HOSTILE in panel.text.value
    for view in ("Loss per token", "Logit lens", "Adapter contribution per token"):
        look(panel, view)
        assert panel.problem.value == ""
        for shown in panel.shown:
            shown.table.value = True
            assert "<img" not in shown.rows.value
            assert "&amp;lt;" not in shown.rows.value
            (output,) = shown.output.outputs
            assert "<img" not in str(output["data"])
    assert type(panel.part).__name__ == "Label"
    panel.text.value = HOSTILE * 40
    assert "tokens, but must have" in panel.problem.value
    panel.run_id = HOSTILE
    panel.start.click()
    assert "<img" not in panel.problem.value
    assert "&lt;img" in panel.problem.value


@pytest.mark.parametrize("name", all_adapters())
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_views_of_every_method_are_drawn_or_refused_with_a_reason(finished: Finished, name: str, family: str) -> None:
    root, names = finished
    record = find_run(names["lora"], root)
    model = tiny(f"tiny:{family}")
    fields = {"heads": 4} if "heads" in all_adapters()[name].config.model_fields else {}
    injection = inject(model, all_adapters()[name].config(**fields))
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    text = TokenizedText(torch.arange(3, 12), [f"t{i}" for i in range(9)], 1, 8)

    class Letters:
        def decode(self, ids: list[int]) -> str:
            return str(ids)

        def convert_ids_to_tokens(self, token: int) -> str:
            return str(token)

    asked = Request(LoadedRun(record, model, Letters(), injection), text)
    drawn = set()
    for title, view in VIEWS.items():
        try:
            figures = view.draw(asked)
            # A figure without data has an annotation.
            assert all(plots.data(figure) or figure.layout.annotations for figure in figures)
            drawn.add(title)
        except LabError as error:
            assert len(str(error)) > 20
    assert drawn >= set(DENSE) - WITHOUT_A_CHANGE - WITHOUT_SITES


def test_long_tables_are_cut() -> None:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(x=list(range(MAX_ROWS + 5)), y=list(range(MAX_ROWS + 5)))
    shown = FigureView(figure)
    shown.table.value = True
    assert shown.rows.value.count("<tr>") == MAX_ROWS + 1
    assert f"the first {MAX_ROWS} of {MAX_ROWS + 5} rows" in shown.rows.value
