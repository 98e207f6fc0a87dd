"""Figures of what happens inside: what their traces and tables hold, whatever tokens and modules are called."""

import json

import pytest
import torch
from odd_models import encoder_decoder, family
from records import HOSTILE, make_run

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.placement import sites
from llm_adapters_lab.core.registry import all_adapters, get_adapter
from llm_adapters_lab.events import Norms
from llm_adapters_lab.inspection.ablations import Ablation
from llm_adapters_lab.inspection.dataset_activity import Activity
from llm_adapters_lab.inspection.routing import ExpertLoad
from llm_adapters_lab.inspection.units import UnitTokens
from llm_adapters_lab.inspection.weight_metrics import Norm
from llm_adapters_lab.models import random_models
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.appearance import colour

TOKENS = ["Tom", " has", "\n", " ", '"3"', " <b>&"]


def quiet(figure) -> str:
    text = json.dumps(json.loads(figure.to_json()))
    assert "<img" not in text
    assert "<script" not in text
    return text


def test_the_table_of_a_figure_names_axes_and_values(tmp_path):
    runs = [make_run(tmp_path, None, {"a": 1, "b": 2}), make_run(tmp_path, {"type": "lora"}, {"a": 10, "b": 15})]
    rows = plots.data(plots.accuracy(*runs))
    assert {"name": "lora", "x": "b", "accuracy (%)": 75.0} in rows
    assert {"name": "lora", "x": "mean", "accuracy (%)": 62.5} in rows
    rows = plots.data(plots.loss_curve(*runs))
    assert {"name": "lora", "update step": 6, "loss (nats per label token)": pytest.approx(2 / 2.718281828)} in rows
    rows = plots.data(plots.norm_heatmap(runs[1]))
    assert {"layer": "1", "site": "v", "norm": 1.5} in rows
    assert json.loads(json.dumps(rows)) == rows


def test_the_learning_rate_has_a_panel_of_its_own(tmp_path):
    figure = plots.loss_curve(make_run(tmp_path, {"type": "lora"}, {}))
    (rate,) = [trace for trace in figure.data if trace.yaxis == "y2"]
    assert list(rate.y) == [1e-3] * 6
    assert figure.layout.yaxis2.domain[1] < figure.layout.yaxis.domain[0]
    assert {"update step": 6, "rate": 1e-3} in plots.data(figure)


def test_norms_can_be_followed_through_training(tmp_path):
    run = make_run(tmp_path, {"type": "lora"}, {}, norms={"model.layers.0.q": 1.0})
    for step in range(100):
        run.append(Norms(7 + step, {"model.layers.0.q": 1.0 + step}))
    figure = plots.norm_evolution(run)
    steps = figure.layout.sliders[0].steps
    assert len(figure.data) == len(steps) <= 40
    assert steps[-1].label == "106"
    assert [trace.visible for trace in figure.data].index(True) == len(steps) - 1
    assert sum(steps[3].args[0]["visible"]) == 1
    assert {trace.zmax for trace in figure.data} == {100.0}
    assert plots.data(figure)[-1] == {"name": "step 106", "layer": "0", "site": "q", "norm": 100.0}


def test_norms_and_spectra_of_sites():
    figure = plots.site_norms(
        {"model.layers.0.q": Norm(1, 0.02), "model.layers.1.q": Norm(1, 0.01)}, "lora", relative=True
    )
    assert plots.data(figure)[0] == {"layer": "0", "site": "q", "% of ‖W‖": 2.0}
    figure = plots.spectra({"model.layers.0.q": torch.tensor([3.0, 1.0, 1e-9]), "zero": torch.zeros(3)}, "lora")
    (line,) = figure.data
    assert line.name == "q, layer 0"
    assert (list(line.x), list(line.y), line.line.color) == ([1, 2], [3.0, 1.0], colour("lora"))
    assert figure.layout.yaxis.type == "log"
    assert plots.spectra({"zero": torch.zeros(3)}, "lora").layout.annotations[0].text
    long = plots.spectra({"model.layers.0.q": torch.linspace(1, 0.1, 500)}, "lora").data[0]
    assert (long.x[0], long.x[-1]) == (1, 500)
    assert len(long.x) <= 61


def test_similarities_are_written_into_the_cells():
    matrix = torch.tensor([[1.0, 0.25], [0.25, 1.0]])
    figure = plots.similarity(matrix, ["one", HOSTILE])
    quiet(figure)
    assert figure.data[0].texttemplate
    assert {"x": HOSTILE, "y": "one", "overlap": 0.25} in plots.data(figure)


@pytest.mark.parametrize("kind", sorted(all_adapters()))
def test_every_adapter_has_a_place_on_the_anatomy(kind: str):
    model = random_models.tiny("tiny:gpt2")
    anatomy, entry = Anatomy.of(model), get_adapter(kind)
    sites = entry.cls.sites(anatomy, model, entry.at)
    figure = plots.placement(anatomy, sites, kind)
    rows = plots.data(figure)
    assert {row["module"] for row in rows if row["name"].startswith("adapted")} == {site.key for site in sites}
    free = {row["module"] for row in rows if row["name"] == "not adapted"}
    assert free == {site.key for site in anatomy.projections} - {site.key for site in sites}
    assert {trace.marker.color for trace in figure.data if trace.name and "adapted " in trace.name} - {
        "rgba(128,136,144,0.22)"
    } == ({colour(kind)} if sites else set())


def test_a_placement_follows_the_order_of_execution():
    model = random_models.tiny("tiny:llama")
    anatomy, entry = Anatomy.of(model), get_adapter("series")
    figure = plots.placement(anatomy, entry.cls.sites(anatomy, model, "attn+mlp.in"), "series")
    names = list(figure.layout.xaxis.ticktext)
    assert names == ["q", "k", "v", "o", "attn out", " ", "mlp in", "gate", "up", "down", " "]


def test_the_parts_of_layers_that_differ_have_columns_of_their_own():
    anatomy = Anatomy.of(family("jamba"))
    figure = plots.placement(anatomy, sites(anatomy, "mixer?+experts.down?"), "lora")
    names = list(figure.layout.xaxis.ticktext)
    mlp = ["gate", "up", "down", "experts<br>gate<br>up", "experts<br>down", "router", " "]
    assert names == ["in<br>proj", "out<br>proj", " ", "q", "k", "v", "o", " ", *mlp]
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["<b>state space</b>", "<b>attention</b>", "<b>MLP</b>"]
    rows = {row["place"]: row for row in plots.data(figure)}
    assert rows["experts.down"]["size"] == "64 → 32, 4 of 4" and rows["experts.down"]["name"] == "adapted projection"
    assert rows["experts.gate_up"]["size"] == "32 → 128, 4 of them"
    circles = figure.data[-1]
    assert sorted(zip(circles.x, circles.y, strict=True)) == [(2, 0), (7, 1), (14, 0), (14, 1)]


def test_encoder_and_decoder_share_the_rows():
    anatomy = Anatomy.of(encoder_decoder("t5"))
    figure = plots.placement(anatomy, sites(anatomy, "encoder.q,cross.v"), "lora")
    assert {(r["layer"], r["place"]) for r in plots.data(figure) if r["name"].startswith("adapted")} == {
        *((str(i), "encoder.q") for i in range(3)),
        *((str(i), "cross.v") for i in range(2)),
    }


def test_a_strip_has_a_colour_for_each_token():
    values = torch.tensor([0.5, -2.0, 0.0, 1.0, float("nan"), 0.25])
    figure = plots.token_strip(TOKENS, values)
    (bar,) = figure.data
    assert list(bar.text) == ["Tom", "\u00a0has", "↵", "␣", '"3"', "\u00a0&lt;b&gt;&amp;"]
    assert (bar.marker.cmin, bar.marker.cmax) == (-2.0, 2.0)
    assert list(bar.marker.color) == [0.5, -2.0, 0.0, 1.0, 0.0, 0.25]
    assert plots.data(figure)[1] == {"position": 1, "token": " has", "change (nats)": -2.0}
    assert plots.data(figure)[5]["token"] == " <b>&"
    assert plots.token_strip(TOKENS, values.abs()).data[0].marker.cmin == 0
    assert plots.token_strip(TOKENS, values[:2]).layout.annotations[0].text == "6 tokens and 2 values"
    lines = plots.token_strip(["word"] * 100, torch.ones(100)).data[0]
    assert max(b + w for b, w in zip(lines.base, lines.x, strict=True)) <= 84
    assert max(lines.y) == 5
    quiet(plots.token_strip([HOSTILE], torch.ones(1), title=HOSTILE, words=HOSTILE, unit=HOSTILE))


def test_the_lens_grid_shows_where_the_adapter_says_something_else():
    tokens = [f"t{i}" for i in range(12)]
    top = [[f"a{i}" for i in range(12)], ["longer than a cell"] * 12]
    base = [[f"a{i}" if i else "z" for i in range(12)], ["other"] * 12]
    chance = torch.rand(2, 12)
    figure = plots.lens_grid(tokens, top, chance, base=base, rank=torch.ones(2, 12), name="lora")
    (cells,) = figure.data
    assert (len(cells.z), len(cells.z[0])) == (2, 10)
    assert cells.text[0][0] == "a2"
    assert cells.text[1][0] == "<b>longer…</b>"
    assert "without the adapter: other" in cells.customdata[1][0]
    assert "rank of the target: 1" in cells.customdata[1][0]
    assert "last 10 of 12" in figure.layout.title.subtitle.text
    assert list(figure.layout.yaxis.ticktext) == ["input", "0"]
    row = plots.data(figure)[0]
    assert (row["after layer"], row["text"], row["probability"]) == ("input", "a2", pytest.approx(float(chance[0, 2])))
    hostile = quiet(plots.lens_grid([HOSTILE], [[HOSTILE]], chance[:1, :1], base=[["x"]], name=HOSTILE))
    assert "&lt;img" in hostile


def test_values_by_layer_and_token():
    figure = plots.layer_tokens(TOKENS, torch.rand(3, 6), "lora", title=HOSTILE, unit="ratio", words=HOSTILE)
    quiet(figure)
    assert len(plots.data(figure)) == 18
    assert figure.layout.yaxis.autorange == "reversed"
    assert figure.data[0].zmin == 0


def test_ablation_bars_are_changes_from_the_whole_adapter():
    figure = plots.ablation_bars(Ablation(full=1.0, base=1.5, without={0: 1.25, 1: 0.75}), "lora")
    (bar,) = figure.data
    assert (list(bar.x), list(bar.y), bar.marker.color) == ([0, 1], [0.25, -0.25], colour("lora"))
    assert [shape.y0 for shape in figure.layout.shapes] == [0, 0.5]
    far = plots.ablation_bars(Ablation(full=1.0, base=9.0, without={0: 1.25}), "lora")
    assert len(far.layout.shapes) == 1
    assert "9.000" in far.layout.title.subtitle.text


def test_lines_over_layers_and_over_the_factor():
    figure = plots.stream_similarity(torch.tensor([[1.0, 1.0], [0.5, 0.7]]), torch.tensor([1.0, 0.9]), "lora")
    rows = plots.data(figure)
    assert {row["name"] for row in rows} == {"cosine, mean over tokens", "linear CKA"}
    assert rows[1]["similarity"] == pytest.approx(0.6)
    figure = plots.interpolation_curve([(0.0, 2.0), (1.0, 1.0), (1.5, 1.2)], "lora")
    assert list(figure.data[0].y) == [2.0, 1.0, 1.2]
    assert len(figure.layout.shapes) == 2
    assert plots.data(figure)[2] == {"name": "lora", "factor λ": 1.5, "loss (nats per token)": 1.2}


def test_backgrounds_are_clear_and_pictures_can_be_saved(tmp_path):
    run = make_run(tmp_path, {"type": "lora"}, {"a": 1})
    for figure in (plots.norm_evolution(run), plots.interpolation_curve([], "lora"), plots.spectra({}, None)):
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
        assert figure.layout.title.text
    assert plots.CONFIG["modeBarButtons"] == [["toImage"]]


def test_colours_read_on_light_and_dark_pages():
    def light(c: str) -> float:
        parts = [int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for kind in all_adapters():
        assert 1.05 / (light(colour(kind)) + 0.05) > 2.2, kind
        assert (light(colour(kind)) + 0.05) / (light("#111418") + 0.05) > 2.2, kind


def test_loads_of_experts_lie_side_by_side_and_layers_may_differ():
    def loads(*shares, weight=None):
        return {f"model.layers.{i}.moe.experts": ExpertLoad(i, torch.tensor(s), weight, 7) for i, s in shares}

    before = loads((0, [0.5, 0.25, 0.25]), (2, [0.1, 0.9]))
    after = loads((0, [0.25, 0.25, 0.5]), (2, [1.0, 0.0]))
    figure = plots.expert_loads(before, after, "lora")
    rows = plots.data(figure)
    assert [(row["name"], row["layer"], row["expert"], row["text"]) for row in rows[:5]] == [
        ("without the adapter", "0", 0, "50"),
        ("without the adapter", "0", 1, "25"),
        ("without the adapter", "0", 2, "25"),
        ("without the adapter", "2", 0, "10"),
        ("without the adapter", "2", 1, "90"),
    ]
    assert [row["× even"] for row in rows[5:]] == pytest.approx([0.75, 0.75, 1.5, 2.0, 0.0])
    assert "mean weight" not in quiet(figure)
    weighed = loads((0, [0.0, 1.0]), weight=torch.tensor([float("nan"), 0.6]))
    assert quiet(plots.expert_loads(weighed, weighed, HOSTILE)).count("mean weight 0.600") == 2
    wide = loads((0, [0.01] * 100))
    assert plots.expert_loads(wide, wide, None).data[0].text is None


def test_layers_go_down_and_sites_have_the_names_of_placements():
    values = {f"model.layers.{i}.attn.c_attn": Norm(1.0 + i, 0.5) for i in (1, 0)} | {"lm_head": Norm(9.0, 0.1)}
    roles = dict.fromkeys(values, "qkv") | {"lm_head": "head"}
    (cells,) = (figure := plots.site_norms(values, "lora", roles=roles)).data
    assert (list(cells.x), list(cells.y)) == (["qkv", "head"], ["0", "1", "all"])
    assert [list(row) for row in cells.z] == [[1.0, None], [2.0, None], [None, 9.0]]
    assert figure.layout.yaxis.autorange == "reversed"
    figure = plots.placement(Anatomy.of(random_models.tiny("tiny:llama")), [], None)
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]


def test_heads_have_a_cell_each_and_layers_may_have_fewer():
    figure = plots.layer_heads({1: torch.tensor([1.0, 3.0]), 4: torch.tensor([2.0])}, "lora", title=HOSTILE, unit="x")
    quiet(figure)
    assert [(row["layer"], row["head"], row["x"]) for row in plots.data(figure)] == [
        ("1", 0, 1.0),
        ("1", 1, 3.0),
        ("4", 0, 2.0),
    ]
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 3.0)
    assert plots.layer_heads({}, None, title="", unit="").layout.annotations[0].text


def test_units_read_tokens_with_both_signs():
    low, high = torch.tensor([[7, 8], [1, 2]]), torch.tensor([[5, 6], [3, 4]])
    found = UnitTokens(torch.tensor([4, 0]), high, low, high.float(), -low.float(), torch.ones(2), "norm")
    figure = plots.unit_tokens(found, {i: HOSTILE if i == 7 else f"t{i}" for i in range(9)}, title=HOSTILE)
    quiet(figure)
    (cells,) = figure.data
    assert list(cells.y) == ["4", "0"]
    assert list(cells.text[1]) == ["t1", "t2", "t4", "t3"]
    assert list(cells.z[1]) == [-1.0, -2.0, 4.0, 3.0] and (cells.zmin, cells.zmax) == (-8.0, 8.0)


def test_activity_has_a_figure_for_each_kind_of_token():
    moments = {"prompt": Activity(7, 0.5, 0.25), "answer": Activity(0, float("nan"), float("nan"))}
    table = {f"model.layers.{i}.self_attn.q_proj": moments for i in (0, 1)}
    figure = plots.activity(table, "prompt", "lora")
    assert plots.data(figure)[1] == {
        "layer": "1",
        "site": "q",
        "mean ‖c‖ / ‖y‖": 0.5,
        "standard deviation": 0.25,
        "tokens": 7,
    }
    assert "7 tokens" in figure.layout.title.subtitle.text
    assert plots.activity(table, "answer", "lora").layout.annotations[0].text == "no answer tokens"
