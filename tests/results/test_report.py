"""The report: complete, offline, and deaf to markup in data."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from html_page import Page
from records import HOSTILE, make_run

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import Norms
from llm_adapters_lab.inspection.ablations import Ablation
from llm_adapters_lab.inspection.weight_metrics import Norm
from llm_adapters_lab.markup import el
from llm_adapters_lab.models import random_models
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.reports import report
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    base = make_run(tmp_path, None, {"a": 0, HOSTILE: 2}, text=HOSTILE)
    return [base, make_run(tmp_path, {"type": "lora"}, {"a": 13, HOSTILE: 5}, text=HOSTILE + "</pre></script>")]


@pytest.fixture
def page(runs: list[Run], tmp_path: Path) -> Page:
    return Page(report(runs, tmp_path / "new" / "report.html").read_text(encoding="utf-8"))


def test_the_file_is_small_and_holds_plotly_once(runs: list[Run], tmp_path: Path):
    path = report(runs, tmp_path / "report.html")
    assert path.stat().st_size < 6_000_000
    assert path.read_text(encoding="utf-8").count("* plotly.js v") == 1


def test_nothing_is_loaded_from_outside(page: Page):
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "data", "poster"} & set(attributes), tag
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "content" in a)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    style = re.search(r"script-src ([^;]*);", policy)
    assert style is not None
    assert "unsafe" not in style[1]


def test_markup_in_data_stays_text(page: Page):
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    code = [tag for tag, attributes in page.elements if tag == "script" and "type" not in attributes]
    assert len(code) == 2
    assert HOSTILE in page.text
    assert HOSTILE + "</pre></script>" in page.pre


def test_figures_are_stored_as_plain_json(page: Page):
    stored = [script for script in page.scripts if script.startswith("{")]
    assert not [script for script in stored if "<" in script]
    figures = [json.loads(script) for script in stored]
    titles = [figure["layout"]["title"]["text"] for figure in figures]
    assert titles == [
        "Accuracy on each dataset",
        "Accuracy vs trainable parameters",
        "Training loss",
        "Distance from initialisation: lora",
    ]


def test_results_read_without_scripts(page: Page):
    for words in ("65.0 %", "43.3–81.9", "90 % in format", "1,000", "2.00 %", "1.700 → 0.700", "finished"):
        assert words in page.text
    lead = "Highest mean accuracy over 2 datasets: lora, 45.0 %, with 1,000 trainable parameters (2.00 % of the base)."
    assert lead in page.text
    assert "The base without an adapter reaches 5.0 %." in page.text
    assert "a jump in accuracy can be format, not knowledge" in page.text


def test_the_recipe_in_it_gives_the_same_run(runs: list[Run], page: Page):
    recipes = [yaml.safe_load(text) for text in page.pre if text.startswith("base:")]
    assert [RunSpec.parse(fields).id for fields in recipes] == [run.id for run in runs]
    assert "python -m llm_adapters_lab run spec.yaml" in page.pre


def test_questions_on_which_runs_disagree_come_first(tmp_path: Path):
    runs = [make_run(tmp_path, None, {"a": 2}), make_run(tmp_path, {"type": "lora"}, {"a": 20})]
    text = Page(report(runs, tmp_path / "r.html").read_text(encoding="utf-8")).text
    first = text[text.index("Right answer") :]
    assert first.index("✗ wrong") < first.index("Right answer", 1)


def test_unfinished_runs_and_repeated_runs_are_shown_once(tmp_path: Path):
    run = make_run(tmp_path, {"type": "lora"}, {}, done=False)
    page = Page(report([run, run], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Nothing has been scored yet." in page.text
    assert page.text.count(run.id) == 1
    assert "unfinished" in page.text


def test_seeds_are_averaged_before_one_is_called_best(tmp_path: Path):
    right = {2: (19, 5, 6), 4: (11, 11, 11)}  # one lucky seed of the worse rank
    runs = [
        make_run(tmp_path, {"type": "lora", "rank": rank}, {"a": found}, seed=seed)
        for rank, seeds in right.items()
        for seed, found in enumerate(seeds)
    ]
    page = Page(report(runs, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Highest mean accuracy on a: lora r4 q,v, 55.0 ± 0.0 % (3 seeds)" in page.text
    assert "The data do not separate it from lora r2 q,v." in page.text
    assert "50.0 ± 39.1 %" in page.text


def test_figures_of_many_runs_stay_compact(tmp_path: Path):
    runs = [make_run(tmp_path, {"type": "lora", "rank": rank}, {"a": rank}) for rank in range(1, 13)]
    page = Page(report(runs, tmp_path / "r.html").read_text(encoding="utf-8"))
    layouts = {
        figure["layout"]["title"]["text"]: figure["layout"]
        for figure in (json.loads(script) for script in page.scripts if script.startswith("{"))
    }
    for title in ("Mean accuracy over the datasets", "Accuracy on each dataset", "Accuracy vs trainable parameters"):
        assert layouts[title]["height"] < 700 and not layouts[title].get("showlegend")
    assert not layouts["Training loss, smoothed"]["showlegend"]
    moved = [title for title in layouts if "initialisation" in title]
    assert len(moved) == 12  # all names differ
    assert [tag for tag, _ in page.elements].count("details") > 12


def test_no_runs_are_refused(tmp_path: Path):
    with pytest.raises(BadSpec, match="at least one run"):
        report([], tmp_path / "r.html")


def test_text_and_attributes_are_escaped_in_one_place():
    assert el("p", "<b>", el("i", '"'), title='"<') == '<p title="&quot;&lt;">&lt;b&gt;<i>&quot;</i></p>'


def test_without_scripts_there_is_a_table_for_every_figure(page: Page):
    tags = [tag for tag, _ in page.elements]
    at = [i for i, tag in enumerate(tags) if tag == "noscript"][1:]
    assert len(at) == 4
    for start in at:
        assert tags[start + 1] == "h3" and "table" in tags[start : start + 4]
    for words in (
        "Training loss",
        "loss (nats per label token)",
        "Distance from initialisation: lora",
        "0.7358",
    ):
        assert words in page.text


def test_a_long_curve_is_thinned_to_its_end(tmp_path: Path):
    run = make_run(tmp_path, {"type": "lora"}, {"a": 1}, steps=1001)
    text = report([run], tmp_path / "r.html").read_text(encoding="utf-8")
    table = text[text.index("<h3>Training loss") :].partition("</table>")[0]
    steps = [int(found.replace(",", "")) for found in re.findall(r"<td>([\d,]+)</td><td>[\d.]+</td>", table)]
    assert 60 < len(steps) <= 200 and steps[0] < 20 and steps[-1] > 980


def test_every_figure_has_something_in_its_place(tmp_path: Path):
    run = make_run(tmp_path, {"type": "lora"}, {"a": 1})
    model = random_models.tiny("tiny:llama")
    anatomy = Anatomy.of(model)
    one = torch.rand(3, 2)
    figures = [
        plots.norm_evolution(run),
        plots.site_norms(
            {f"model.layers.0.{HOSTILE}": Norm(2, 0.5), "model.norm": Norm(0, 0.0)}, "lora", relative=True
        ),
        plots.spectra({f"model.layers.0.{HOSTILE}": torch.tensor([2.0, 1.0])}, "lora"),
        plots.similarity(torch.eye(2), [HOSTILE, "b"]),
        plots.placement(anatomy, anatomy.sublayers, HOSTILE),
        plots.token_strip([HOSTILE, "a"], one[0], title=HOSTILE, words=HOSTILE, unit=HOSTILE),
        plots.lens_grid([HOSTILE, "a"], [[HOSTILE, "b"]] * 3, one, base=[["c", HOSTILE]] * 3, name=HOSTILE),
        plots.layer_tokens([HOSTILE, "a"], one, "lora", title=HOSTILE, unit=HOSTILE, words=HOSTILE),
        plots.ablation_bars(Ablation(1.0, 2.0, {0: 1.5, 1: 0.5}), "lora", unit=HOSTILE, score=HOSTILE),
        plots.stream_similarity(one, one[:, 0], "lora"),
        plots.interpolation_curve([(0.0, 2.0), (1.0, 1.0)], "lora", score=HOSTILE),
        plots.interpolation_curve([], "lora"),
    ]
    page = Page(report([run], tmp_path / "r.html", figures).read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags
    assert tags.count("noscript") == tags.count("figure") + 1 == len(figures) + 5
    assert len([script for script in page.scripts if script.startswith("{") and "<" in script]) == 0


def test_more_figures_can_be_added_and_fall_back_to_tables(runs: list[Run], tmp_path: Path):
    strip = plots.token_strip([HOSTILE, "word"], torch.tensor([1.0, -0.5]))
    path = report(runs, tmp_path / "r.html", [strip])
    page = Page(path.read_text(encoding="utf-8"))
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert "Where the adapter changes the loss" in page.text
    assert HOSTILE in page.text
    assert "-0.5" in page.text
    assert path.stat().st_size < 6_000_000


def test_curves_of_norms_get_a_slider(tmp_path: Path):
    run = make_run(tmp_path, {"type": "lora"}, {"a": 1})
    run.append(Norms(7, {"model.layers.0.q": 1.0}))
    text = report([run], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Distance from initialisation over training: lora" in text
    assert '"sliders":[{' in text
