"""Inspect without a browser: each view shows what the library computes, or why there is nothing to show."""

import asyncio
import csv
import html
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import HOSTILE, small

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.errors import LabError
from llm_adapters_lab.evaluation.decoding import context_length
from llm_adapters_lab.inspection import (
    group_embeddings,
    group_names,
    group_weights,
    member_weights,
    probes,
    weight_metrics,
)
from llm_adapters_lab.inspection.dataset_activity import ActivityMoments
from llm_adapters_lab.inspection.heads import head_changes
from llm_adapters_lab.inspection.token_choice import tokens_run
from llm_adapters_lab.inspection.units import unit_tokens
from llm_adapters_lab.models.random_models import tiny
from llm_adapters_lab.results import plots
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import find_run, list_runs
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.tasks.encoding import encode
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import control_tokens
from widgets.figures.figure_card import FigureCard, as_csv, drawing, numbers
from widgets.figures.figure_view import MAX_ROWS
from widgets.figures.inspect_views import ALL, VIEWS, Request
from widgets.kit.loaded_runs import MAX_TOKENS, LoadedRun, TokenizedText, load_run, token_texts, tokenize
from widgets.kit.workspace import Question, Workspace
from widgets.panels.inspect_panel import TYPED, InspectPanel

Finished = tuple[Path, dict[str, str]]
SHORT = 12
"""Number of rows of a task in these tests."""
NOT_FOR_LORA = {
    "Attention on virtual tokens",
    "Expert load",
    "Rank of the merged update",
    "Similarity of groups",
    "Skills of groups",
    "Tokens that run",
    "Weights of members",
}
FOR_PREFIX = {
    "Placement",
    "Distance from initialisation over training",
    "Residual-stream similarity",
    "Attention on virtual tokens",
    "Loss per token",
    "Logit lens",
}


def panel_of(finished: Finished, name: str, **kinds: Any) -> InspectPanel:
    root, names = finished
    panel = InspectPanel(root, names[name])
    panel.limit.value = SHORT
    panel.opened()
    return panel


def look(panel: InspectPanel, view: str) -> list[dict[str, Any]]:
    """Select a view, which computes it, and return the numbers of its first figure."""
    panel.rail.value = view
    if not panel.cards:
        asyncio.run(panel.compute())
    assert panel.status.value == ""
    return panel.cards[0].drawing.rows if panel.cards and panel.cards[0].drawing else []


def reasons(panel: InspectPanel) -> dict[str, str]:
    return {item["name"]: item["reason"] for item in panel.rail.items if item["reason"]}


@pytest.mark.parametrize("view", sorted(set(VIEWS) - NOT_FOR_LORA))
def test_every_view_is_drawn_when_it_is_selected_and_explained(finished: Finished, view: str) -> None:
    panel = panel_of(finished, "lora")
    rows = look(panel, view)
    assert panel.problem.value == panel.remark.value == ""
    assert rows
    assert view in panel.about.value
    assert html.escape(VIEWS[view].description) in panel.about.value
    assert ("Source: " in panel.about.value) == (VIEWS[view].source is not None)
    for card in panel.cards:
        assert card.drawing is not None and card.view.figure["data"]
        card.table.value = True
        assert card.rows.value.count("<tr>") == 1 + len(card.drawing.rows)
        card.save.click()
        assert card.file.file is not None and card.file.file.name.endswith(".csv")
        saved = list(csv.DictReader(io.StringIO(card.file.file.data.decode())))
        assert len(saved) == len(card.drawing.rows)
        card.table.value = False
        assert card.rows.value == ""


def test_views_that_do_not_apply_are_disabled_with_the_reason(finished: Finished) -> None:
    assert set(reasons(panel_of(finished, "lora"))) == NOT_FOR_LORA
    panel = panel_of(finished, "prefix")
    found = reasons(panel)
    assert set(VIEWS) - set(found) == FOR_PREFIX
    assert all(len(reason) > 20 for reason in found.values())
    look(panel, "Update norm ‖ΔW‖")
    assert panel.cards == [] and html.escape(found["Update norm ‖ΔW‖"]) in panel.remark.value
    look(panel, "Attention on virtual tokens")
    assert panel.remark.value == "" and len(panel.cards) == 2


def test_a_mixture_of_experts_has_every_view_of_its_adapter(tmp_path: Path) -> None:
    spec = small("lora", base="nano-moe", adapter={"type": "lora", "rank": 2, "at": "experts"})
    panel = InspectPanel(tmp_path, run(spec, root=tmp_path).id)
    panel.opened()
    rows = look(panel, "Expert load")
    assert panel.problem.value == "" and html.escape(VIEWS["Expert load"].description) in panel.about.value
    assert len(rows) == 2 * 4 * 4 and {row["name"] for row in rows} == {"without the adapter", "with lora"}
    assert [sum(row["× even"] for row in rows[at : at + 4]) for at in (0, 16)] == pytest.approx([4, 4])
    assert {"ΔW by head", "What units read", "Adapter contribution per token"} <= set(reasons(panel))
    rows = look(panel, "Update norm ‖ΔW‖")
    assert {row["layer"] for row in rows} == {"0", "1", "2", "3"} and panel.problem.value == ""


def test_an_inventory_shows_its_skills_by_layer_and_block_and_which_groups_are_alike(tmp_path: Path) -> None:
    adapter = {"type": "poly", "skills": 3, "blocks": 2, "rank": 1, "at": "q,down"}
    data = {"task": "mini-rules", "rows": 48, "group": "task"}
    record = run(
        small("lora", adapter=adapter, data=data, eval={"tasks": ["mini-rules-plus"], "rows": 2}), root=tmp_path
    )
    injection = restore(record)[1]
    assert injection is not None
    keys = {(site.role, site.layer): key for key, site in injection.sites.items()}
    panel = InspectPanel(tmp_path, record.id)
    panel.opened()
    rows = look(panel, "Skills of groups")
    assert [card.drawing.title for card in panel.cards if card.drawing] == ["q", "down"]
    mean = group_weights(injection)
    assert [row["weight"] for row in rows] == pytest.approx(
        torch.cat([mean[keys["q", layer]].flatten() for layer in range(6)]).tolist(), abs=1e-6
    )
    assert [row["group"] for row in rows[:18:3]] == [
        name.removeprefix("mini-rules-") for name in group_names(injection)
    ]
    panel.kind.value, panel.layer.value = "down", "2"
    (card,) = panel.cards
    assert card.drawing is not None and card.drawing.title == "down, layer 2"
    by_block = [row["weight"] for row in card.drawing.rows if row["name"] == "block 1"]
    assert by_block == pytest.approx(group_weights(injection, 1)[keys["down", 2]].flatten().tolist(), abs=1e-6)

    rows = look(panel, "Similarity of groups")
    (found,) = group_embeddings(injection).values()
    assert [row["cosine"] for row in rows] == pytest.approx(found.cosine().flatten().tolist(), abs=1e-6)
    assert [card.drawing.title for card in panel.cards if card.drawing] == ["similarity", "map"]
    assert "no members between which" in reasons(panel)["Weights of members"]
    panel.close()


def test_groups_are_compared_only_if_there_are_two(tmp_path: Path) -> None:
    adapter = {"type": "hyper", "bottleneck": 2, "embedding": 4, "hidden": 4, "code": 4}
    data = {"task": "mini-addsub", "rows": 16, "group": "task"}
    short = {"batch": 4, "max_steps": 1}
    record = run(small("lora", adapter=adapter, data=data, train=short, eval={"tasks": []}), root=tmp_path)
    panel = InspectPanel(tmp_path, record.id)
    panel.opened()
    assert "a single group or none" in reasons(panel)["Similarity of groups"]
    assert "no inventory of skills" in reasons(panel)["Skills of groups"]
    panel.close()


def test_a_fusion_shows_its_members_by_token_and_by_site(tmp_path: Path) -> None:
    short = {"batch": 4, "max_steps": 2, "learning_rate": 0.01}
    fields: dict[str, Any] = {"train": short, "eval": {"tasks": ["mini-addsub"], "rows": 2}}
    tasks = ("mini-addsub", "mini-bool")
    own = [run(small("lora", data={"task": task, "rows": 16}, **fields), root=tmp_path).id for task in tasks]
    record = run(small("lora", adapter={"type": "fusion", "of": own}, **fields), root=tmp_path)
    injection = restore(record)[1]
    assert injection is not None
    panel = InspectPanel(tmp_path, record.id)
    panel.opened()
    rows = look(panel, "Weights of members")
    assert panel.problem.value == panel.remark.value == ""
    assert [card.drawing.title for card in panel.cards if card.drawing] == ["by token", "by site"]
    assert {row["member"] for row in rows} == {*tasks}  # members are named after the tasks of their runs
    ids = tokenize(load_run(record), panel.text.value).ids[None]
    weights = member_weights(injection, ids)
    mean = torch.stack([*weights.values()]).mean(0)
    assert [row["weight"] for row in rows] == pytest.approx(mean.T.flatten().tolist(), abs=1e-4)
    panel.kind.value, panel.layer.value = "v", "3"
    key = next(key for key, site in injection.sites.items() if (site.role, site.layer) == ("v", 3))
    assert panel.cards[1].drawing is not None
    by_site = [row["weight"] for row in panel.cards[1].drawing.rows]
    assert by_site == pytest.approx(weights[key].mean(0).tolist(), abs=1e-4) and sum(by_site) == pytest.approx(1)
    panel.close()


def test_a_mixture_shows_its_members_at_some_sites(tmp_path: Path) -> None:
    adapter = {"type": "molora", "rank": 2, "members": 3, "at": "down"}
    panel = InspectPanel(tmp_path, run(small("lora", adapter=adapter), root=tmp_path).id)
    panel.opened()
    rows = look(panel, "Weights of members")
    titles = [card.drawing.title for card in panel.cards if card.drawing]
    assert titles == [f"down, layer {layer} (3 of 6 sites)" for layer in (0, 2, 5)]
    assert {row["member"] for row in rows} == {"member 0", "member 1", "member 2"}
    first = rows[0]["token"]
    assert sum(row["weight"] for row in rows if row["token"] == first) == pytest.approx(1)
    panel.close()


def test_the_tokens_that_run_are_shown_by_site(tmp_path: Path) -> None:
    panel = InspectPanel(tmp_path, run(small("lora", adapter={"type": "coda", "bottleneck": 4}), root=tmp_path).id)
    panel.opened()
    rows = look(panel, "Tokens that run")
    assert len({row["site"] for row in rows}) == 6 and len({row["token"] for row in rows}) > 5
    base, injection = restore(next(iter(list_runs(tmp_path))))
    assert injection is not None
    example = get_task("mini-addsub").load("test", None)[0]
    (sample,), _ = encode(base.tokenizer, [example], get_task("mini-addsub").template, 256, "answer")
    found = tokens_run(injection, torch.tensor(sample.ids[:-1])[None])
    assert [row["value"] for row in rows] == [int(one) for own in found.values() for one in own.tolist()]
    panel.close()


def test_the_rank_of_merges_is_shown(tmp_path: Path) -> None:
    train = {"batch": 8, "max_steps": 8, "learning_rate": 0.03, "regime": {"name": "lte", "heads": 4, "every": 2}}
    adapter = {"type": "lora", "rank": 1, "at": "q,down"}
    panel = InspectPanel(tmp_path, run(small("lora", adapter=adapter, train=train), root=tmp_path).id)
    panel.opened()
    rows = look(panel, "Rank of the merged update")
    assert [(row["update step"], row["rank"]) for row in rows] == [(step, 4) for step in (2, 4, 6, 8)]
    assert look(panel, "Singular values of ΔW")
    panel.close()


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
    assert [card.drawing.title for card in panel.cards if card.drawing] == ["base", "lora", "difference"]
    assert panel.range.value == (first, len(ids) - 1)
    assert panel.part.value == f"“{base.tokenizer.decode(ids[first:])}”"
    bare, adapted = probes.both(injection, lambda: probes.token_loss(base.model, ids))
    assert [row["token"] for row in rows] == [t.replace("\n", "↵") for t in token_texts(base.tokenizer, ids.tolist())]
    for card, expected, unit in zip(
        panel.cards, (bare, adapted, adapted - bare), ("loss (nats)", "loss (nats)", "change (nats)"), strict=True
    ):
        assert card.drawing is not None
        values = [row[unit] for row in card.drawing.rows]
        assert all(v != v for v in values[:first])
        assert values[first:] == pytest.approx(expected[first - 1 :].tolist(), abs=1e-5)

    look(panel, "Layer ablation")
    (card,) = panel.cards
    assert card.drawing is not None
    words = f"{float(adapted[first - 1 :].mean()):.3f}, without any of it {float(bare[first - 1 :].mean()):.3f}"
    assert words in card.drawing.words
    panel.range.value = (1, 3)  # drawn at once
    assert f"with the whole adapter {float(adapted[:3].mean()):.3f}" in panel.cards[0].head.value

    rows = look(panel, "Update norm ‖ΔW‖")
    norms = weight_metrics.norms(injection)
    assert sorted(row["‖ΔW‖"] for row in rows) == pytest.approx(sorted(norm.change for norm in norms.values()))
    assert {row["site"] for row in rows} == {"q", "v", "down"} and [row["layer"] for row in rows][::3] == [*"012345"]

    rows = look(panel, "Logit lens")  # up to the end of the range
    lens = probes.both(injection, lambda: probes.logit_lens(base.model, ids[:4]))
    assert len(rows) == lens[0].top.shape[0] * 4
    for card, found in zip(panel.cards[:2], lens, strict=True):
        assert card.drawing is not None
        assert card.drawing.rows[-1]["probability"] == pytest.approx(float(found.probability[-1, -1, 0]), abs=1e-6)
    assert panel.cards[2].drawing is not None
    change = lens[0].target_probability.log() - lens[1].target_probability.log()
    assert panel.cards[2].drawing.rows[-1]["change (nats)"] == pytest.approx(float(change[-1, 2]), abs=1e-4)

    rows = look(panel, "ΔW by head")
    key = next(key for key, site in injection.sites.items() if site.role == "q")
    heads = head_changes(injection)[key]
    assert [row["‖ΔW_h‖"] for row in rows[:4]] == pytest.approx(heads.change.tolist(), rel=1e-5)


def test_what_units_read_is_that_of_the_chosen_site(finished: Finished) -> None:
    root, names = finished
    panel = panel_of(finished, "lora")
    look(panel, "What units read")
    assert len(panel.cards) == 3 and "of 12 sites" in panel.cards[0].head.value
    panel.kind.value, panel.layer.value = "v", "2"
    (card,) = panel.cards
    base, injection = restore(find_run(names["lora"], root))
    assert injection is not None and card.drawing is not None and card.drawing.title == "v, layer 2"
    key = next(key for key, site in injection.sites.items() if (site.role, site.layer) == ("v", 2))
    (found,) = unit_tokens(injection, key, vocabulary=len(base.tokenizer))
    best = token_texts(base.tokenizer, found.high[:, 0].tolist())
    assert [row["text"] for row in card.drawing.rows if row["x"] == "high 1"] == best
    panel.kind.value = "down"
    assert "do not read the residual stream" in panel.remark.value and panel.cards == []


def test_activity_is_that_of_the_rows_of_the_task(finished: Finished) -> None:
    root, names = finished
    panel = panel_of(finished, "lora")
    rows = look(panel, "Activity over a data set")
    assert [card.drawing.title for card in panel.cards if card.drawing] == [
        "Prompt tokens",
        "Answer tokens",
        "Control tokens",
    ]
    base, injection = restore(find_run(names["lora"], root))
    assert injection is not None
    moments = ActivityMoments(injection, [*control_tokens(base.tokenizer).values()])
    for row in panel.examples.written(SHORT):
        moments.add(torch.tensor(row.ids), torch.tensor(row.labels))
    key = next(key for key, site in injection.sites.items() if site.role == "q")
    expected = moments.table()[key]["prompt"]
    assert rows[0]["tokens"] == expected.count
    assert rows[0]["mean ‖c‖ / ‖y‖"] == pytest.approx(expected.mean, rel=1e-5)
    assert rows[0]["standard deviation"] == pytest.approx(expected.std, rel=1e-4)


def test_a_long_computation_can_be_stopped_and_shows_what_there_is(finished: Finished) -> None:
    panel = panel_of(finished, "lora")
    panel.rail.value = "Placement"
    panel.limit.value = 100_000
    panel.examples.offer_also("mini-math")

    async def use() -> None:
        panel.rail.value = "Activity over a data set"
        for _ in range(1000):
            await asyncio.sleep(0.05)
            if panel.stop.layout.display == "" and panel._done[0] >= 3:
                break
        assert panel.stop.layout.display == ""
        assert "of" in panel.status.value
        panel.stop.click()
        while panel.status.value:
            await asyncio.sleep(0.02)

    asyncio.run(use())
    assert panel.stop.layout.display == "none"
    assert panel.cards and panel.cards[0].drawing is not None
    stopped = panel.cards[0].drawing.rows[0]["tokens"]
    panel.limit.value = 2
    assert panel.cards[0].drawing.rows[0]["tokens"] < stopped


def test_sites_are_chosen_by_name_and_layer(finished: Finished) -> None:
    panel = panel_of(finished, "lora")
    look(panel, "Singular values of ΔW")
    assert panel.sites.layout.display == ""
    assert panel.question.layout.display == panel.span.layout.display == "none"
    assert [value for _, value in panel.kind.options] == [ALL, "q", "v", "down"]
    assert panel.layer.options[:2] == (("all layers", ALL), ("layer 0", "0"))

    def names() -> set[str]:
        return {trace["name"] for trace in panel.cards[0].view.figure["data"]}

    assert len(names()) == 18
    panel.kind.value = "down"
    assert names() == {f"down, layer {i}" for i in range(6)}
    panel.layer.value = "2"
    assert names() == {"down, layer 2"}
    rows = look(panel, "Adapter contribution per token")
    assert [row["position"] for row in rows] == list(range(len(rows)))
    assert all(row["‖c‖ / ‖y‖"] > 0 for row in rows)
    panel.layer.value = panel.kind.value = ALL
    assert [card.drawing.title for card in panel.cards if card.drawing] == ["q", "v", "down"]


def test_results_are_kept_and_figures_change_in_place(finished: Finished) -> None:
    panel = panel_of(finished, "lora")
    look(panel, "Loss per token")
    assert panel.cards[0].drawing is not None
    before = panel.cards[0].drawing.rows
    cards = list(panel.cards)
    look(panel, "Logit lens")
    assert panel.cards == cards  # the same widgets
    look(panel, "Loss per token")
    assert panel.cards[0].drawing is not None and panel.cards[0].drawing.rows is before
    panel.text.value += " and more"
    assert panel.cards[0].drawing.rows is not before
    look(panel, "Placement")
    assert len(panel.cards) == 1 and cards[1].view.comm is None  # closed


def test_a_newer_selection_supersedes_the_one_that_is_computed(finished: Finished) -> None:
    panel = panel_of(finished, "lora")
    look(panel, "Placement")

    async def use() -> None:
        panel.rail.value = "Activity over a data set"
        assert "computing" in panel.status.value and panel.cards  # the earlier figure stays
        await asyncio.sleep(0.05)
        panel.rail.value = "Scaling λ"
        panel.rail.value = "Residual-stream similarity"
        while panel.status.value:
            await asyncio.sleep(0.02)

    asyncio.run(use())
    assert [card.drawing.title for card in panel.cards if card.drawing] == ["base", "lora", "difference", "Similarity"]
    assert not any("Activity" in str(key) for key in panel._kept)


def test_the_run_follows_the_selection_and_weights_stand_side_by_side(finished: Finished) -> None:
    root, names = finished
    workspace = Workspace(root)
    panel = InspectPanel(workspace)
    assert panel.run_id in names.values()
    workspace.selection.ids = [names["prefix"]]
    assert panel.run_id == names["prefix"]
    assert panel.box.options[0][0].startswith("✓ ") and not panel.box.options[1][0].startswith("✓")
    panel.opened()
    workspace.selection.ids = [names["lora"], names["own"], names["prefix"]]
    assert panel.run_id == names["lora"]
    look(panel, "Update norm ‖ΔW‖")
    titles = [card.drawing.title for card in panel.cards if card.drawing]
    known = workspace.runs.names
    assert titles[:2] == [known[names["lora"]], known[names["own"]]]
    assert panel.cards[2].drawing is not None and "acts on the whole model" in panel.cards[2].drawing.words
    tops = {trace["zmax"] for card in panel.cards[:2] for trace in card.view.figure["data"]}
    assert len(tops) == 1
    look(panel, "Loss per token")
    assert [card.drawing.title for card in panel.cards if card.drawing] == ["base", "lora", "difference"]
    panel.box.value = names["own"]
    assert workspace.selection.first == names["lora"] and panel.run_id == names["own"]
    workspace.selection.ids = []
    assert panel.run_id == names["own"]
    panel.close()
    assert workspace.selection._observers == [] == workspace.runs._observers


def test_questions_of_other_places_are_inspected(finished: Finished) -> None:
    root, names = finished
    workspace = Workspace(root)
    panel = InspectPanel(workspace, names["lora"])
    workspace.on_go(lambda place: panel.opened())
    row = get_task("mini-bool").load("test", None)[2]
    workspace.go("Inspect", Question("mini-bool", row.id))
    assert panel.problem.value == "" and panel.rail.value == "Loss per token"
    assert row.instruction in panel.text.value and panel.text.value.endswith(row.output)
    assert panel.examples.task.value == "mini-bool" and panel.cards
    workspace.go("Inspect", Question(text="tom has 3 coins ."))
    assert panel.text.value == "tom has 3 coins ."
    assert panel.cards[0].drawing is not None and panel.range.value == (1, len(panel.cards[0].drawing.rows) - 1)
    panel.text.value = "another text ."
    panel.opened()  # the question is taken once
    assert panel.text.value == "another text ."
    workspace.go("Inspect", Question("mini-multi", "nothing"))
    assert "was not asked nothing" in panel.problem.value
    rows = get_task("mini-multi").load("test", None)
    workspace.go("Inspect", Question("mini-multi", rows[0].id))  # a task the run was not scored on
    assert panel.problem.value == "" and panel.text.value.endswith(rows[0].output)


def test_without_runs_it_says_what_will_be_here(tmp_path: Path) -> None:
    opened: list[str] = []
    workspace = Workspace(tmp_path)
    workspace.on_go(opened.append)
    panel = InspectPanel(workspace)
    panel.opened()
    assert panel.empty.layout.display == "" and panel._body.layout.display == "none"
    assert panel.problem.value == "" and "what an adapter has learnt" in panel.empty.children[0].value
    for button in panel.empty.children[1].children:
        button.click()
    assert opened == ["Setup", "Monitor"]
    run(small("lora", train={"batch": 4, "max_steps": 1}), root=tmp_path)
    workspace.runs.refresh()
    assert panel.empty.layout.display == "none" and panel._body.layout.display == ""
    assert panel.cards and panel.problem.value == ""
    panel.run_id = HOSTILE
    assert "&lt;img" in panel.problem.value and "<img" not in panel.problem.value
    panel.close()


def test_own_text_is_inspected_and_its_length_checked(finished: Finished) -> None:
    panel = panel_of(finished, "lora")
    look(panel, "Loss per token")
    panel.text.value = "tom has 3 coins ."
    rows = look(panel, "Loss per token")
    assert panel.range.value == (1, len(rows) - 1)
    for text in ("", "tom has 3 coins . " * 99):
        panel.text.value = text
        assert "tokens, but must have 2 to 256" in panel.problem.value
    assert MAX_TOKENS > 256 == context_length(load_run(panel.workspace.runs.run(panel.run_id)).model)
    panel.examples.another.click()
    assert panel.problem.value == ""
    assert panel.cards
    panel.examples.task.value = "mini-bool"
    assert panel.text.value.endswith((" true", " false"))


def test_control_tokens_of_a_chat_are_tokens_and_typed_ones_text(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant : {% endif %}"
    data = {"task": "mini-addsub", "rows": 8, "template": template}
    run(small("lora", data=data, eval={"tasks": ["mini-addsub"], "rows": 2}), root=tmp_path)
    panel = InspectPanel(tmp_path)
    panel.opened()
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
    loaded = load_run(panel.workspace.runs.run(panel.run_id))
    assert tokenize(loaded, "tom has", " 3 </s>").ids.tolist().count(2) == 0


def test_hostile_text_stays_text(finished: Finished) -> None:
    panel = panel_of(finished, "own")
    for view in ("Loss per token", "Logit lens", "Adapter contribution per token"):
        look(panel, view)
        assert HOSTILE in panel.text.value
        assert panel.problem.value == ""
        for card in panel.cards:
            card.table.value = True
            assert "<img" not in card.rows.value + card.head.value
            assert "&amp;lt;" not in card.rows.value
            assert "<img" not in str(card.view.figure)
    assert type(panel.part).__name__ == "Label"
    panel.text.value = HOSTILE * 40
    assert "tokens, but must have" in panel.problem.value


@pytest.mark.parametrize("name", all_adapters())
@pytest.mark.parametrize("family", ["llama", "gpt2", "granitemoehybrid"])
def test_views_of_every_method_are_drawn_or_disabled_with_a_reason(finished: Finished, name: str, family: str) -> None:
    root, names = finished
    record = find_run(names["lora"], root)
    model = tiny(f"tiny:{family}")
    fields: dict[str, Any] = {**all_adapters()[name].cls.example}
    try:
        injection = inject(model, all_adapters()[name].config(**fields))
    except LabError:
        pytest.skip(f"{family} has no place for it")
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    text = TokenizedText(torch.arange(3, 12), [f"t{i}" for i in range(9)], 1, 8)

    class Letters:
        def __len__(self) -> int:
            return 100

        def decode(self, ids: list[int]) -> str:
            return str(ids)

        def convert_ids_to_tokens(self, token: int) -> str:
            return str(token)

    loaded = LoadedRun(record, model, Letters(), injection)
    asked = Request(loaded, text, rows=[(text.ids, text.ids)], control=[3])
    for view in VIEWS.values():
        if reason := view.reason(loaded):
            assert len(reason) > 20 and "Traceback" not in reason
            continue
        for each in view.draw(asked):  # what is enabled can be drawn
            # A figure without data has an annotation.
            assert each.rows or each.figure["layout"].get("annotations"), (view.label, each.title)


def test_numbers_are_aligned_and_have_even_decimals() -> None:
    rows = [{"token": "=1+1", "n": 7, "loss": 4.3756}, {"token": "b", "n": 12345, "loss": 12.0}]
    markup = numbers([*rows, {"token": None, "n": None, "loss": float("nan")}])
    cells = [cell.partition("</td>")[0] for cell in markup.split('<td class="lab-num">')[1:]]
    assert (
        cells[:4] == ["7", "4.376", "12,345", "12.000"] or len({len(c.partition(".")[2]) for c in cells[1::2][:2]}) == 1
    )
    assert '<td class="">=1+1</td>' in markup and '<th scope="col" class="lab-num">loss</th>' in markup
    text = as_csv(rows)
    assert text.splitlines() == ["token,n,loss", "'=1+1,7,4.3756", "b,12345,12.0"]  # no formula in a spreadsheet


def test_long_tables_are_cut_and_files_are_not() -> None:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(x=list(range(MAX_ROWS + 5)), y=list(range(MAX_ROWS + 5)))
    card = FigureCard()
    card.show(drawing(figure, "long"))
    card.table.value = True
    assert card.rows.value.count("<tr>") == MAX_ROWS + 1
    assert f"the first {MAX_ROWS:,} of {MAX_ROWS + 5:,} rows" in card.rows.value
    card.save.click()
    assert card.file.file is not None and card.file.file.data.count(b"\n") == MAX_ROWS + 6
    card.close()


def test_figures_lose_their_title_to_the_page() -> None:
    figure = plots.interpolation_curve([(0.0, 2.0), (1.0, 1.0)], "lora")
    height = figure.layout.height
    shown = drawing(figure)
    assert shown.title == "Scaling λ: lora" and "multiplied" in shown.words
    assert shown.figure["layout"]["height"] < height and not shown.figure["layout"]["title"]
    strip = drawing(plots.token_strip(["a", "b"], torch.ones(2)), link="token")
    assert strip.figure["layout"]["meta"]["link"] == "token" and strip.figure["layout"]["meta"]["points"]
