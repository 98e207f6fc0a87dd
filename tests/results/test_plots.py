"""Figures: what their traces hold, whatever the runs are called."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from records import HOSTILE, make_run

from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.results.appearance import BASE, colour, looks
from llm_adapters_lab.results.comparison import compare, mean_accuracy
from llm_adapters_lab.results.plots import accuracy, loss_curve, norm_heatmap, parameters_against_accuracy
from llm_adapters_lab.results.plots.runs import running_mean
from llm_adapters_lab.runs.record import Run

LORA, SERIES = {"type": "lora", "rank": 4}, {"type": "series"}


@pytest.fixture
def three(tmp_path: Path) -> list[Run]:
    base = make_run(tmp_path, None, {"a": 1, "b": 2})
    return [base, make_run(tmp_path, LORA, {"a": 10, "b": 15}), make_run(tmp_path, SERIES, {"a": 12, "b": 5}, seed=1)]


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def test_importing_the_module_leaves_plotly_alone():
    modules = (
        "llm_adapters_lab.results.plots.runs, llm_adapters_lab.results.plots.weights, llm_adapters_lab.results.reports"
    )
    code = f"import sys, {modules}; assert 'plotly' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_adapter_type_has_its_colour_and_the_base_is_grey():
    kinds = list(all_adapters())
    assert colour(None) == BASE
    assert len({colour(kind) for kind in kinds}) == len(kinds)


def test_a_run_has_one_colour_in_every_figure(three: list[Run]):
    _, lora, series = three
    bars = {bar.name: bar.marker.color for bar in accuracy(*three).data if bar.type == "bar"}
    assert bars == {"base": BASE, "lora": colour("lora"), "series": colour("series")}
    assert {line.line.color for line in loss_curve(lora, series).data} == {colour("lora"), colour("series")}
    red, green, blue = (int(colour("series")[i : i + 2], 16) for i in (1, 3, 5))
    assert norm_heatmap(series).data[0].colorscale[1][1] == f"rgb({red},{green},{blue})"


def test_runs_of_one_type_are_told_apart_by_what_differs(tmp_path: Path):
    twins = [make_run(tmp_path, {"type": "lora", "rank": rank}, {}) for rank in (2, 8)]
    assert [look.name for look in looks(twins).values()] == ["lora (rank 2)", "lora (rank 8)"]
    assert [line.line.dash for line in loss_curve(*twins).data if line.name] == ["solid", "dash"]


def test_the_loss_curve_has_every_step_and_the_held_out_rows(three: list[Run]):
    figure = loss_curve(*three)
    assert not named(figure, "base")
    (line,) = named(figure, "lora")
    assert list(line.x) == [1, 2, 3, 4, 5, 6]
    assert line.y[-1] == pytest.approx(2 / 2.718281828)
    assert [list(trace.x) for trace in figure.data if trace.mode == "lines+markers"] == [[6], [6]]
    assert "loss" in figure.layout.yaxis.title.text


def test_a_long_curve_is_thinned_but_keeps_its_ends(tmp_path: Path):
    figure = loss_curve(make_run(tmp_path, LORA, {}, steps=3001))
    (line,) = named(figure, "lora")
    assert len(line.x) <= 801
    assert (line.x[0], line.x[-1]) == (1, 3001)


def test_smoothing_keeps_straight_lines_and_both_ends():
    values = [float(i) for i in range(50)]
    assert running_mean(values, range(50), half=5) == pytest.approx(values)
    assert running_mean([3.0], [0], half=5) == [3.0]


def test_the_heat_map_shows_the_last_norms_by_layer_and_site(three: list[Run]):
    (cells,) = norm_heatmap(three[1]).data
    assert list(cells.y) == ["0", "1"]
    assert set(cells.x) == {"q", "v"}
    assert [list(row) for row in cells.z] == [[0.5, 0.5], [1.5, 1.5]]
    assert (cells.zmin, cells.zmax) == (0, 1.5)


@pytest.mark.parametrize(
    ("norms", "y", "x"),
    [
        ({"model/layer0": 1.0, "model/layer1": 2.0}, ["0", "1"], ["whole layer"]),
        ({"model.layers.10.mlp.down_proj:mlp": 1.0}, ["10"], ["mlp"]),
        ({"transformer.h.2.attn.c_attn": 1.0, "model": 0.0}, ["2", "all"], ["attn.c_attn", "model"]),
        ({"model.layers.0.q": 0.0}, ["0"], ["q"]),
    ],
)
def test_any_site_key_finds_a_place(tmp_path: Path, norms: dict[str, float], y: list[str], x: list[str]):
    (cells,) = norm_heatmap(make_run(tmp_path, LORA, {}, norms=norms)).data
    assert (list(cells.x), list(cells.y)) == (x, y)


def test_accuracy_bars_carry_intervals_and_the_mean(three: list[Run]):
    figure = accuracy(*three)
    bar, mean = named(figure, "lora")
    assert list(bar.y) == [50.0, 75.0]
    assert list(mean.y) == [62.5]
    assert bar.y[0] + bar.error_y.array[0] == pytest.approx(70.07, abs=0.01)
    assert bar.y[0] - bar.error_y.arrayminus[0] == pytest.approx(29.93, abs=0.01)
    (majority,) = named(figure, "majority baseline")
    assert [y for y in majority.y if y is not None] == [10.0] * 4
    assert not named(figure, "chance level")[0].visible


def test_datasets_that_only_some_runs_have_give_no_mean_there(tmp_path: Path):
    both = make_run(tmp_path, LORA, {"a": 10, "b": 10})
    one = make_run(tmp_path, SERIES, {"b": 4})
    figure = accuracy(both, one)
    assert len(named(figure, "lora")) == 2
    (bar,) = named(figure, "series")
    assert list(bar.x) == [1]
    assert mean_accuracy(one, ["a", "b"]) is None


def test_parameters_are_set_against_the_mean(three: list[Run]):
    figure = parameters_against_accuracy(*three)
    assert [(t.x[0], t.y[0]) for t in figure.data] == [(1000, 62.5), (2000, 42.5)]
    assert figure.layout.shapes[0].y0 == pytest.approx(7.5)


def test_nothing_to_show_is_said(tmp_path: Path):
    bare = make_run(tmp_path, None, {}, done=False)
    for figure in (loss_curve(bare), accuracy(bare), parameters_against_accuracy(bare), norm_heatmap(bare)):
        assert figure.layout.annotations[0].text


def test_names_are_escaped(tmp_path: Path):
    run = make_run(tmp_path, LORA, {HOSTILE: 3, "a": 2}, norms={f"model.layers.0.{HOSTILE}": 1.0})
    twin = make_run(tmp_path, LORA, {HOSTILE: 3, "a": 2}, data={"root": HOSTILE})
    both = (accuracy(run, twin), loss_curve(run, twin), parameters_against_accuracy(run, twin))
    assert looks([run, twin])[twin.id].name == f"lora (root {HOSTILE})"
    for figure in (*both, norm_heatmap(run)):
        text = json.dumps(figure.to_dict(), default=str)
        assert "<img" not in text
        assert "<script" not in text
    assert "&lt;img" in accuracy(run).layout.xaxis.ticktext[0]


def test_the_table_has_a_row_for_each_run_and_dataset(three: list[Run]):
    rows = compare(three)
    assert [(row["name"], row["task"]) for row in rows][:3] == [("base", "a"), ("base", "b"), ("lora", "a")]
    assert rows[2]["accuracy"] == 0.5
    assert rows[2]["share_of_base"] == pytest.approx(0.02)
    assert rows[0]["steps"] is None
    assert json.loads(json.dumps(rows)) == rows


def test_an_unfinished_run_keeps_its_row(tmp_path: Path):
    (row,) = compare([make_run(tmp_path, LORA, {"a": 3}, done=False)])
    assert (row["status"], row["task"], row["accuracy"]) == ("unfinished", None, None)
