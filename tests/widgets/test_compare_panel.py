"""The place Compare without a browser: rows are selected, filtered and sorted, and words and figures are read."""

import asyncio
import json
import os
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from records import HOSTILE, make_run

from llm_adapters_lab.events import Failed
from llm_adapters_lab.files import append_line
from llm_adapters_lab.runs.marks import mark, marks
from llm_adapters_lab.runs.record import Run, write_note
from llm_adapters_lab.runs.spec import RunSpec
from widgets.figures.run_grid import GROUP
from widgets.kit.workspace import Question, Workspace
from widgets.panels.compare_panel import VIEWS, ComparePanel

LORA, SERIES = {"type": "lora", "rank": 4}, {"type": "series"}


def asked(root: Path, adapter: Any, right: int, seed: int = 0, **more: Any) -> Run:
    """Write a run with 20 answers to the task "a", of which the first `right` are correct."""
    run = make_run(root, adapter, {"a": right}, seed=seed, **more)
    path = run.folder / "predictions.jsonl"
    path.unlink()
    for i in range(20):
        answer = {"extracted": "7" if i < right else "8", "gold": "7", "correct": i < right}
        append_line(path, {"task": "a", "id": f"a/test/{i}", "prompt": f"3 + {i} =", "text": "so 7", **answer})
    return run


@pytest.fixture
def six(tmp_path: Path) -> dict[str, Run]:
    """Three seeds of a group, another adapter, the bare base, and a run that failed."""
    found = {f"r4 s{seed}": asked(tmp_path, LORA, right, seed) for seed, right in enumerate((14, 15, 13))}
    found |= {"series": asked(tmp_path, SERIES, 12), "base": asked(tmp_path, None, 1)}
    found["failed"] = make_run(tmp_path, LORA | {"rank": 16}, {}, done=False)
    found["failed"].append(Failed(found["failed"].id, "training", "ValueError: the loss is nan"))
    for age, run in enumerate(found.values()):
        os.utime(run.folder / "spec.json", (1e9 + 60 * age,) * 2)
    return found


def text(markup: str) -> str:
    return unescape(re.sub("<[^>]*>", " ", markup))


def names(panel: ComparePanel) -> list[str]:
    return [panel.table.rows[key]["name"] for key, _ in panel.table.lines]


def cells(panel: ComparePanel, name: str) -> dict[str, str]:
    row = next(row for row in panel.table.rows.values() if row["name"] == name)
    return dict(zip((column["label"] for column in panel.table.columns), row["cells"], strict=True))


def test_one_line_for_each_group_of_seeds_with_mean_and_deviation(six: dict[str, Run], tmp_path: Path) -> None:
    panel = ComparePanel(tmp_path)
    assert panel.problem.value == ""
    assert names(panel) == ["lora r4 q,v", "series b256 mlp s0", "base", "lora r16 q,v s0"]  # by accuracy
    assert cells(panel, "lora r4 q,v") | {"started": ""} == {
        "type": "lora",
        "placement": "q,v",
        "init": "kaiming",
        "rank": "4",
        "seed": "0–2",
        "params": "2k",
        "accuracy %": "70.0 ± 5.0 (3)",
        "loss": "0.700",
        "time": "0:01",
        "started": "",
    }
    row = panel.table.rows[f"{GROUP}{six['r4 s0'].id}"]
    place = [column["key"] for column in panel.table.columns].index("accuracy")
    assert "seeds 70.0 %, 75.0 %, 65.0 %" in row["tips"][place]
    assert panel.table.best == {f"{GROUP}{six['r4 s0'].id}": [place]}
    failed = panel.table.rows[six["failed"].id]
    assert (failed["sign"], failed["bad"]) == ("✗", True)
    assert "ValueError: the loss is nan" in failed["state"]
    assert cells(panel, "lora r16 q,v s0")["accuracy %"] == "–"


def test_groups_unfold_and_the_luckiest_seed_is_never_marked(six: dict[str, Run], tmp_path: Path) -> None:
    panel = ComparePanel(tmp_path)
    panel.table.unfolded = [f"{GROUP}{six['r4 s0'].id}"]
    assert names(panel)[:4] == ["lora r4 q,v", "seed 0", "seed 1", "seed 2"]
    assert [depth for _, depth in panel.table.lines] == [0, 1, 1, 1, 0, 0, 0]
    panel.together.value = False
    assert names(panel)[:2] == ["lora r4 q,v s1", "lora r4 q,v s0"]
    assert panel.table.best == {}
    assert "lora r4 q,v s1 has the highest" not in panel.verdict.value or "not separable" in panel.verdict.value


def test_the_verdict_comes_first_and_says_what_is_compared(six: dict[str, Run], tmp_path: Path) -> None:
    panel = ComparePanel(tmp_path)
    words = "lora r4 q,v has the highest mean accuracy; not separable from series b256 mlp s0; better than base."
    assert text(panel.verdict.value).strip() == words
    assert "All 5 finished runs are compared." in text(panel.scope.value)
    assert "p corrected for 2 tests (Holm)." in text(panel.scope.value)
    lines = re.findall(r"<tr title=.*?</tr>", panel.versus.value)
    assert [text(line).split()[0] for line in lines] == ["≈", "▼"]
    panel.workspace.selection.ids = [six["series"].id, six["base"].id]
    assert "The 2 selected runs are compared." in text(panel.scope.value)
    assert "differ on 11 of 20 items" in text(panel.scope.value)
    assert text(panel.verdict.value).strip().startswith("series b256 mlp s0 is better than base: +55.0 points, 95 %")
    assert "p &lt; 0.001 (exact McNemar, 20 items)." in panel.verdict.value
    assert list(panel.table.colours) == [six["series"].id, six["base"].id]
    panel.workspace.selection.ids = [six["base"].id]
    assert "All 5 finished runs are compared." in text(panel.scope.value)
    assert text(panel.verdict.value).strip() == words


def test_the_reference_is_picked_or_the_baseline(six: dict[str, Run], tmp_path: Path) -> None:
    mark(six["base"], baseline=True)
    panel = ComparePanel(tmp_path)
    assert panel.reference.value == six["base"].id
    assert text(panel.verdict.value).strip().startswith("Compared with base, ")
    assert panel.table.rows[six["base"].id]["baseline"]
    panel.reference.value = six["series"].id
    assert text(panel.verdict.value).strip().startswith("Compared with series")
    panel.reference.value = ""
    assert "has the highest mean" in panel.verdict.value
    panel.workspace.runs.refresh()
    assert panel.reference.value == ""


def test_filter_with_comparisons_and_its_errors_at_the_field(six: dict[str, Run], tmp_path: Path) -> None:
    panel = ComparePanel(tmp_path)
    panel.filter.value = "rank>=8"
    assert names(panel) == ["lora r16 q,v s0"]
    assert "1 of 6" in panel.counts.value
    panel.filter.value = "rank>=8 rnak"
    assert (names(panel), panel.table.empty) == ([], "No run matches the filter.")
    panel.filter.value = "rnak>=8"
    assert "No run has a field 'rnak'" in text(panel.filter_error.value)
    assert panel.problem.value == ""
    panel.filter.value = "lr=3 placement=q,v"
    assert panel.filter_error.value == ""
    panel.filter.value = "seed<=1 adapter=lora state=finished"
    assert panel.filter_error.value == ""
    assert names(panel) == ["lora r4 q,v"]
    assert cells(panel, "lora r4 q,v")["seed"] == "0–1"
    assert "All 2 finished runs that match the filter" in panel.scope.value
    write_note(six["r4 s2"], "a new note")
    panel.workspace.runs.refresh()
    assert panel.filter.value == "seed<=1 adapter=lora state=finished"
    assert names(panel) == ["lora r4 q,v"]


def test_the_header_sorts_in_both_directions(six: dict[str, Run], tmp_path: Path) -> None:
    panel = ComparePanel(tmp_path)
    panel.table.sort = ["name", False]
    assert names(panel) == ["base", "lora r16 q,v s0", "lora r4 q,v", "series b256 mlp s0"]
    panel.table.sort = ["adapter.rank", True]
    assert names(panel)[:2] == ["lora r16 q,v s0", "lora r4 q,v"]
    panel.table.sort = ["begun", False]
    assert names(panel) == ["lora r4 q,v", "series b256 mlp s0", "base", "lora r16 q,v s0"]
    panel.table.sort = ["accuracy", False]
    assert names(panel)[-1] == "lora r16 q,v s0"  # what has no value comes last in any case


def test_columns_are_chosen_and_reset(six: dict[str, Run], tmp_path: Path) -> None:
    panel = ComparePanel(tmp_path)
    before = [column["key"] for column in panel.table.columns]
    assert panel.table.fit
    panel.choose.value = True
    boxes = {box.tooltip: box for box in panel._menu.children[0].children}
    assert boxes["adapter.rank"].value
    boxes["adapter.rank"].value = False
    boxes["id"].value = True
    keys = [column["key"] for column in panel.table.columns]
    assert ("adapter.rank" in keys, "id" in keys, panel.table.fit) == (False, True, False)
    panel._menu.children[1].click()
    assert [column["key"] for column in panel.table.columns] == before
    assert not panel.choose.value


def test_only_changed_rows_are_sent(six: dict[str, Run], tmp_path: Path) -> None:
    panel = ComparePanel(tmp_path)
    sent: list[Any] = []
    panel.table.send = lambda content, buffers=None: sent.append(content)
    rows = panel.table.rows
    write_note(six["series"], "**good**")
    panel.workspace.runs.refresh()
    assert panel.table.rows is rows
    (message,) = sent
    assert (list(message["rows"]), message["gone"]) == ([six["series"].id], [])
    assert rows[six["series"].id]["note"] == "**good**"
    panel.workspace.runs.refresh()
    assert len(sent) == 1


def test_table_and_selection_are_one(six: dict[str, Run], tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    panel = ComparePanel(workspace)
    assert panel.table.lines == []
    panel.opened()
    panel.table.selected = [six["series"].id]
    assert workspace.selection.ids == (six["series"].id,)
    workspace.selection.ids = [six["base"].id, six["series"].id]
    assert panel.table.selected == [six["base"].id, six["series"].id]
    assert "2 selected" in panel.counts.value
    panel.filter.value = "series"
    assert "the filter hides 1" in panel.counts.value
    panel.clear.click()
    assert workspace.selection.ids == ()
    assert panel.delete_selected.disabled
    panel.hidden()
    workspace.selection.ids = [six["base"].id]
    assert panel.table.selected == []
    panel.opened()
    assert panel.table.selected == [six["base"].id]


def test_rows_open_their_run_and_get_a_star(six: dict[str, Run], tmp_path: Path) -> None:
    workspace, went = Workspace(tmp_path), list[tuple[str, tuple[str, ...]]]()
    workspace.on_go(lambda place: went.append((place, workspace.selection.ids)))
    panel = ComparePanel(workspace)
    panel.opened()
    for key in ("series", "base", "failed"):
        panel.table._told(None, {"open": six[key].id}, [])
    assert [place for place, _ in went] == ["Inspect", "Monitor", "Monitor"]
    assert went[0][1] == (six["series"].id,)
    panel.table._told(None, {"star": f"{GROUP}{six['r4 s0'].id}"}, [])
    assert all(marks(six[f"r4 s{seed}"]).star for seed in range(3))
    assert panel.table.rows[f"{GROUP}{six['r4 s0'].id}"]["star"]
    panel.table._told(None, {"star": "nonsense", "open": 7}, [])
    panel.table._told(None, "nonsense", [])
    assert panel.problem.value == ""
    panel.places[1].click()
    assert went[-1][0] == "Playground"


def test_every_view_draws(six: dict[str, Run], tmp_path: Path) -> None:
    panel = ComparePanel(tmp_path)
    kinds = {}
    for view in VIEWS:
        panel.view.value = view
        assert panel.problem.value == ""
        kinds[view] = [trace["type"] for trace in panel.figure.figure["data"]]
    assert kinds["Tiers"] == ["scatter", "scatter"]
    assert kinds["By task"] == ["bar", "scatter"]
    assert kinds["Heat map"] == ["heatmap"]
    assert len(kinds["Curves"]) == 4  # the base learns nothing
    panel.view.value = "Tiers"
    mean, rings = panel.figure.figure["data"]
    assert list(mean["x"]) == pytest.approx([70, 60, 5])
    assert sorted(rings["x"]) == pytest.approx([65, 70, 75])
    panel.view.value = "Heat map"
    panel.across.value, panel.down.value = "seed", ""
    (cell,) = panel.figure.figure["data"]
    assert [list(line) for line in cell["z"]] == [pytest.approx([(70 + 60 + 5) / 3, 75, 65])]
    assert [list(line) for line in cell["customdata"]] == [[3, 1, 1]]


def test_differing_specs_compare_adapters_among_themselves(six: dict[str, Run], tmp_path: Path) -> None:
    panel = ComparePanel(tmp_path)
    panel.view.value = "Specs"
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in panel.markup.value.split("<tr>")[2:]]
    table = {text(key).strip(): [text(cell).strip() for cell in line] for key, *line in rows}
    assert table["adapter.type"] == ["lora", "series", "no adapter"]
    assert not [key for key in table if key.startswith("train.")]
    assert panel.figure.layout.display == "none"


def test_items_are_filtered_and_open_inspect(six: dict[str, Run], tmp_path: Path) -> None:
    workspace, went = Workspace(tmp_path), list[Any]()
    workspace.on_go(lambda place: went.append((place, workspace.question, workspace.selection.ids[:2])))
    panel = ComparePanel(workspace)
    panel.opened()
    panel.view.value = "Items"
    items = panel.items
    assert [items.first.value, items.second.value] == [six["r4 s0"].id, six["series"].id]
    assert items.position.value == "1–2 of 2"
    items.second.value = six["r4 s1"].id
    assert items.list.items == []
    items.second.value = six["base"].id
    assert items.position.value == "1–13 of 13"
    first = items.list.items[0]
    assert (first["id"], first["question"], first["gold"]) == ("a/test/1", "3 + 1 =", "7")
    assert [answer["right"] for answer in first["answers"]] == [True, False]
    items.outcome.value = "A wrong, B right"
    assert items.position.value == "0 items"
    items.outcome.value = "all items"
    assert items.position.value == "1–20 of 20"
    items.search.value = "3 + 12"
    assert [item["id"] for item in items.list.items] == ["a/test/12"]
    items.list._told(None, {"inspect": ["a", "a/test/12"]}, [])
    assert went == [("Inspect", Question("a", "a/test/12"), (six["r4 s0"].id, six["base"].id))]
    items.list._told(None, {"inspect": 7}, [])


def test_deleting_asks_and_names_the_runs(six: dict[str, Run], tmp_path: Path) -> None:
    panel = ComparePanel(tmp_path)
    panel.table.selected = [six["base"].id, six["failed"].id]
    panel.delete_selected.click()
    assert "Delete 2 runs permanently" in panel.question.value
    assert six["base"].id in panel.question.value
    assert "lora r16 q,v s0" in panel.question.value
    panel.table.selected = [six["base"].id]  # another selection cancels the question
    panel.confirm_delete.click()
    assert six["base"].folder.is_dir()
    panel.delete_selected.click()
    panel.confirm_delete.click()
    assert not six["base"].folder.exists()
    assert panel.workspace.selection.ids == ()
    assert "base" not in names(panel)


def test_runs_that_cannot_be_compared_are_named(six: dict[str, Run], tmp_path: Path) -> None:
    make_run(tmp_path, LORA | {"rank": 32}, {"b": 5})
    (six["series"].folder / "predictions.jsonl").unlink()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "spec.json").write_text("{", encoding="utf-8")
    panel = ComparePanel(tmp_path)
    words = text(panel.scope.value)
    assert "Not scored on all of a, so left out: lora r32 q,v s0." in words
    assert "series" in words
    assert "1 run cannot be read" in words
    assert "lora r4 q,v is better than base" in panel.verdict.value


def test_nothing_and_a_single_run(tmp_path: Path) -> None:
    workspace, went = Workspace(tmp_path / "none yet"), list[str]()
    workspace.on_go(went.append)
    panel = ComparePanel(workspace)
    panel.opened()
    assert panel.empty.layout.display == ""
    panel.start.click()
    assert went == ["Setup"]
    asked(tmp_path, LORA, 5)
    panel = ComparePanel(tmp_path)
    assert panel.empty.layout.display == "none"
    assert "lora: 25.0 %" in text(panel.verdict.value) or "Nothing to compare it with." in panel.verdict.value
    for view in VIEWS:
        panel.view.value = view
        assert panel.problem.value == ""


def test_hostile_text_is_text(tmp_path: Path) -> None:
    for adapter in (LORA, SERIES):
        write_note(make_run(tmp_path, adapter, {HOSTILE: 5, "b": 3}, text=HOSTILE), HOSTILE)
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps({"base": HOSTILE, HOSTILE: 1}), encoding="utf-8")
    panel = ComparePanel(tmp_path)
    panel.table.selected = [folder.name, *(entry for entry in panel.workspace.runs.entries if entry != folder.name)]
    panel.delete_selected.click()
    shown = []
    for view in VIEWS:
        panel.view.value = view
        figure = [panel.figure.figure["layout"], *(trace for trace in panel.figure.figure["data"])]
        shown += [str(figure), panel.markup.value, panel.verdict.value, panel.scope.value, panel.versus.value]
    shown += [panel.question.value, panel.counts.value, panel.problem.value]
    assert not [one for one in shown if "<img" in one or "<script" in one]
    assert sum("&lt;img" in one for one in shown) > 4
    assert panel.problem.value == ""


def test_many_runs_are_read_and_compared_without_blocking_the_loop(tmp_path: Path) -> None:
    make = asked(tmp_path, LORA, 10)
    spec, summary = make.spec.model_dump(mode="json"), make.summary
    answers = (make.folder / "predictions.jsonl").read_bytes()
    for rank in range(5, 25):
        for seed in range(3):
            fields = spec | {"seed": seed, "adapter": spec["adapter"] | {"rank": rank}}
            run = Run(tmp_path / RunSpec.parse(fields).id)
            run.folder.mkdir()
            run.write("spec.json", RunSpec.parse(fields).model_dump(mode="json"))
            run.write("summary.json", summary | {"id": run.id})
            (run.folder / "predictions.jsonl").write_bytes(answers)

    async def kernel() -> tuple[list[int], ComparePanel]:
        panel, turns = ComparePanel(tmp_path), []
        for change in (lambda: None, lambda: setattr(panel.table, "sort", ["adapter.rank", True])):
            change()
            turns.append(0)
            while panel._arranging._runs or panel._comparing._runs:
                await asyncio.sleep(0)
                turns[-1] += 1
        panel.close()
        return turns, panel

    turns, panel = asyncio.run(kernel())
    assert min(turns) > 1  # the loop went on meanwhile
    assert len(panel.table.lines) == 21
    assert names(panel)[0] == "lora r24 q,v"
    assert "not separable from" in panel.verdict.value
    assert panel.problem.value == ""
