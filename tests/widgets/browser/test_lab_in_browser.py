"""The lab as people use it: a real JupyterLab, Notebook and Voila in a real browser."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect
from records import make_run

from llm_adapters_lab.runs.background import working
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.queue import queued
from llm_adapters_lab.runs.record import list_runs
from llm_adapters_lab.runs.spec import RunSpec
from widgets.lab import PLACES

QUICK = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4, "alpha": 8},
    "data": {"rows": 64, "validation": 8},
    "train": {"batch": 8, "max_steps": 4, "learning_rate": 1e-3},
    "eval": {"tasks": ["mini-addsub"], "rows": 8},
}
LONG = {**QUICK, "data": {}, "train": {"batch": 8, "max_steps": 20_000, "epochs": 1000.0}}
PAYLOAD = '<img src=x onerror="window.hit=1"><script>window.hit=2</script> [x](javascript:window.hit=3) How many?'
SHIFTS = """() => {
  window.shifts = [];
  const seen = new Map(), lab = document.querySelector('.lab');
  window.watch = setInterval(() => {
    const top = lab.getBoundingClientRect().top;
    for (const e of lab.querySelectorAll('.lm-TabBar, .lab-card, .lab-monitor > *')) {
      const at = e.getBoundingClientRect().top - top, shown = e.checkVisibility();
      if (shown && seen.has(e) && Math.abs(at - seen.get(e)) > 8)
        shifts.push(`${e.className.slice(0, 60)}: ${Math.round(seen.get(e))} to ${Math.round(at)}`);
      if (shown) seen.set(e, at); else seen.delete(e);
    }
  }, 100);
}"""


def lab(spec=None, **more):
    given = "".join(f", {name}={value!r}" for name, value in more.items())
    spec = f", RunSpec.parse({spec!r})" if spec else ""
    return f"from llm_adapters_lab import RunSpec\nfrom widgets import Lab\nlab = Lab('runs'{spec}{given})\nlab"


def place(notebook, name):
    """Open a place, and return the part of the page that shows it."""
    notebook.tab(name)
    places = notebook.page.locator(".lab .jupyter-widget-tab").first
    return places.locator("> .widget-tab-contents > :not(.lm-mod-hidden)")


def finished(notebook, count, seconds=240):
    """Wait until so many runs have finished."""
    page = notebook.page
    for _ in range(int(4 * seconds)):
        if sum(record.done for record in list_runs(notebook.folder / "runs")) >= count:
            return
        page.wait_for_timeout(250)
    raise AssertionError(f"{count} runs did not finish in {seconds} s")


def test_from_an_empty_notebook_to_the_accuracies_in_two_clicks(notebook):
    notebook.write()
    notebook.open()
    cell = notebook.page.locator(".jp-CodeCell .cm-content")
    cell.click()
    notebook.page.keyboard.type("from widgets import Lab\nLab()")
    notebook.page.keyboard.press("Shift+Enter")  # the first click
    notebook.says("lora r8", seconds=90)
    notebook.says("86,016 trainable", seconds=90)
    notebook.shoot("setup")
    notebook.button("Start").click()  # the second; there is no third
    notebook.shows(r"step \d+ of 120", seconds=90)
    notebook.page.evaluate(SHIFTS)
    finished(notebook, 1)
    shifts = notebook.page.evaluate("() => { clearInterval(watch); return shifts; }")
    assert not shifts, shifts
    notebook.says("finished")
    shown = place(notebook, "Monitor")
    expect(shown).to_contain_text("mini-addsub")
    (record,) = list_runs(notebook.folder / "runs")
    assert record.id == RunSpec.load("quickstart").id
    assert record.summary["scores"]["mini-addsub"]["accuracy"] > 0.8
    notebook.shoot("finished")
    notebook.button("Evaluate base").click()
    finished(notebook, 2)
    expect(notebook.button("Evaluate base")).to_have_count(0)


def test_a_sweep_of_six_by_typing_lists_survives_the_kernel(notebook):
    notebook.show(lab(QUICK))
    notebook.fill("rank", "2, 4, 8")
    notebook.fill("seeds", "2 seeds")
    notebook.says(r"6 runs \(3 ranks × 2 seeds\)")
    notebook.shoot("sweep")
    notebook.button("Start 6 runs").click()
    notebook.shows("queued", seconds=90)
    notebook.restart()
    notebook.write("from widgets import Lab\nLab()")  # as in a new notebook
    notebook.open()
    notebook.run()
    notebook.bar()
    finished(notebook, 6)
    specs = [record.spec for record in list_runs(notebook.folder / "runs")]
    assert {(s.adapter.rank, s.adapter.alpha, s.seed) for s in specs} == {
        (r, 2.0 * r, s) for r in (2, 4, 8) for s in (0, 1)
    }
    expect(notebook.page.get_by_role("tab", name="Compare (6)")).to_be_visible()
    shown = place(notebook, "Compare")
    expect(shown.locator(".lab-grid [role=row]")).to_have_count(4)  # the head, and a group of two seeds for each rank
    notebook.shoot("compare")


def test_a_queue_stop_clone_and_resume(notebook):
    notebook.show(lab(LONG))
    notebook.button("Start").click()
    notebook.shows(r"step \d+ of 20,?000", seconds=90)
    notebook.tab("Setup")
    notebook.fill("rank", "2")
    notebook.button("Queue").click()
    notebook.shows(r"queued", seconds=30)
    notebook.shoot("queue")
    notebook.page.get_by_role("button", name=re.compile("^Stop")).first.click()
    page = notebook.page
    for _ in range(400):  # the queued one starts when the first has stopped
        if not queued(notebook.folder / "runs") and working(notebook.folder / "runs"):
            break
        page.wait_for_timeout(100)
    notebook.shows(r"stopped · step \d+ of 20,000", seconds=30)
    notebook.page.get_by_role("button", name=re.compile("^Clone")).first.click()
    notebook.says("copy of")
    notebook.fill("rank", "16")
    notebook.says(r"rank \d+ → 16")


def test_a_run_is_followed_after_a_reload(notebook):
    notebook.show(lab(LONG))
    notebook.button("Start").click()
    notebook.shows(r"step \d+ of 20,?000", seconds=90)
    notebook.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    notebook.reload()
    notebook.shows(r"step \d+ of 20,?000")
    notebook.shoot("after a reload")
    notebook.button("Stop").first.click()
    notebook.shows("Resume continues after step", seconds=60)
    notebook.button("Resume").last.click()
    notebook.shows(r"▶ running", seconds=90)
    assert working(notebook.folder / "runs")


def test_a_fault_is_told_at_its_field_and_in_the_bar(notebook):
    notebook.show(lab())
    notebook.says("trainable", seconds=60)
    notebook.field("rank").fill("0")  # without leaving the field
    notebook.says("adapter.rank must be a whole number", seconds=2)
    expect(notebook.page.locator(".lab-at-adapter-rank .lab-error")).to_be_visible()
    expect(notebook.button("Start")).to_be_disabled()
    notebook.shoot("invalid")
    notebook.tab("Monitor")
    notebook.page.locator(".lab-bar .lab-goto").click()
    expect(notebook.field("rank")).to_be_focused()
    expect(notebook.page.locator(".lab-tip")).to_contain_text("rank r of the update")
    notebook.page.keyboard.press("ArrowUp")
    notebook.says("lora r1")
    notebook.page.keyboard.press("ArrowUp")
    notebook.says("lora r2")
    expect(notebook.button("Start")).to_be_enabled()
    assert not (notebook.folder / "runs").exists()
    # With the keyboard alone, every place and every control can be reached.
    notebook.page.get_by_role("tab", name="Setup", exact=True).focus()
    notebook.page.keyboard.press("ArrowRight")
    notebook.page.keyboard.press("Enter")
    expect(notebook.page.get_by_role("tab", name=re.compile("^Monitor"))).to_have_attribute("aria-selected", "true")
    notebook.tab("Setup")
    notebook.walk()


def test_the_draft_can_be_copied_and_loaded(notebook):
    notebook.show(lab())
    notebook.says("trainable", seconds=60)
    notebook.page.get_by_label("Copy as …").select_option("YAML")
    expect(notebook.page.get_by_label("Copy as …")).to_contain_text("✓ YAML copied")
    text = notebook.page.evaluate("() => navigator.clipboard.readText()")
    changed = text.replace("rank: 8", "rank: 2").replace("seed: 0", "seed: 3")
    (notebook.folder / "my.yaml").write_text(changed, encoding="utf-8")
    spec = RunSpec.load(notebook.folder / "my.yaml")
    assert (spec.seed, spec.train, spec.adapter.rank) == (3, RunSpec.load("quickstart").train, 2)
    notebook.page.get_by_text("Load a spec from a file").click()
    with notebook.page.expect_file_chooser() as chosen:
        notebook.page.locator(".lab").get_by_role("button", name="Upload a file").click()
    chosen.value.set_files(notebook.folder / "my.yaml")
    notebook.says("lora r2")
    notebook.fill("path or preset", "missing.yaml")
    notebook.button("Load").click()
    expect(notebook.page.get_by_role("alert").filter(has_text="There is no spec file missing.yaml")).to_be_visible()
    notebook.shoot("load")


def test_a_file_is_uploaded_its_columns_mapped_and_its_rows_seen(notebook):
    rows = [json.dumps({"frage": f"What is {n} plus 2 ?", "lösung": str(n + 2)}) for n in range(40)]
    (notebook.folder / "sums.jsonl").write_text("\n".join(rows), encoding="utf-8")
    notebook.show(lab(QUICK))
    notebook.says("trainable", seconds=60)
    with notebook.page.expect_file_chooser() as chosen:
        notebook.button("Upload").click()
    chosen.value.set_files(notebook.folder / "sums.jsonl")
    notebook.shows("sums.jsonl", seconds=30)
    notebook.field("question").select_option("frage")
    notebook.field("answer").select_option("lösung")
    notebook.says("sums.jsonl")
    notebook.shoot("columns")
    notebook.button("See rows").click()
    expect(notebook.page.locator(".lab .lab-bubble").first).to_contain_text("###")
    notebook.shoot("rows")


def test_hostile_text_executes_nothing(notebook):
    with (notebook.folder / "hostile.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["instruction", "answer"])
        rows.writerows([f"{PAYLOAD} {n} {'more ' * (n % 3)}", "7"] for n in range(40))
    task = f"own:{notebook.folder / 'hostile.csv'}?form=number"
    spec = {**QUICK, "data": {"task": task, "validation": 8}, "eval": {"tasks": [task], "rows": 4, "max_new_tokens": 8}}
    notebook.show(lab(spec))
    notebook.says("trainable", seconds=60)
    notebook.button("See rows").click()
    expect(notebook.page.locator(".lab .lab-bubble").first).to_contain_text("<i")  # in tokens
    notebook.button("raw row").click()
    expect(notebook.page.locator(".lab .lab-rendered").first).to_contain_text("<img")
    notebook.button("Start").first.click()
    finished(notebook, 1, seconds=120)
    notebook.says("finished")
    notebook.shoot("run")
    for name in PLACES[2:]:
        place(notebook, name)
        notebook.page.wait_for_timeout(2500)
    notebook.button("Generate").click()
    notebook.shows(r"\d+ tokens?", seconds=60)
    assert notebook.page.evaluate("() => window.hit ?? null") is None
    assert notebook.page.locator(".lab img[src=x]").count() == 0


def test_an_item_of_compare_opens_in_inspect_and_the_adapter_is_downloaded(notebook):
    root = notebook.folder / "runs"
    right = {**QUICK, "train": {**QUICK["train"], "max_steps": 60, "learning_rate": 5e-3}, "data": {}}
    first, second = (run(RunSpec.parse(spec), root=root) for spec in (QUICK, right))
    notebook.show(lab(QUICK))
    shown = place(notebook, "Compare")
    expect(shown.locator(".lab-grid [role=row]")).to_have_count(3)
    shown.get_by_role("button", name="Items", exact=True).click()
    shown.get_by_label("who is right").select_option(index=2)
    notebook.shoot("items")
    shown.get_by_role("button", name=re.compile("[Ii]nspect")).last.click()
    expect(notebook.page.locator(".lab").get_by_role("tab", name="Inspect")).to_have_attribute("aria-selected", "true")
    notebook.page.get_by_role("option", name=re.compile("Loss per token")).click()
    notebook.shows("Loss per token")
    expect(notebook.page.locator(".lab .js-plotly-plot:visible").first).to_be_visible(timeout=90_000)
    notebook.shoot("inspect")
    shown = place(notebook, "Compare")
    notebook.button("Clear").click()
    shown.locator(".lab-grid [role=row]").nth(1).click()
    with notebook.page.expect_download() as got:
        notebook.page.get_by_role("button", name=re.compile("^Download adapter")).click()
    saved = Path(got.value.path())
    shutil.copy(saved, notebook.folder / "adapter.zip")
    shutil.unpack_archive(notebook.folder / "adapter.zip", notebook.folder / "adapter")
    assert list((notebook.folder / "adapter").rglob("adapter.safetensors"))
    assert first.id != second.id
    notebook.theme("Dark")
    for title in PLACES:
        notebook.tab(title)
        notebook.page.wait_for_timeout(500)
        notebook.check()


@pytest.mark.parametrize("count", [30, 1000])
def test_many_runs_are_compared(notebook, count):
    for number in range(count):
        adapter = {"type": "lora", "rank": 1 + number % 8, "at": ("q,v", "mlp", "attn")[number // 8 % 3]}
        make_run(notebook.folder / "runs", adapter, {"a": 5 + number % 9, "b": number % 14}, seed=number)
    notebook.show(lab(QUICK))
    shown = place(notebook, "Compare")
    grid = shown.get_by_role("grid", name="runs")
    expect(grid).to_have_attribute("aria-rowcount", re.compile(r"\d+"))
    expect(shown.locator(".lab-grid [role=row]").nth(3)).to_be_visible()
    assert grid.get_by_role("row").count() < 60  # only what is visible is in the page
    shown.get_by_role("columnheader", name=re.compile("rank")).click()
    shown.locator(".lab-filter input").fill("rank>=7 at=mlp")
    expect(shown.locator(".lab-grid [role=row]").nth(1)).to_contain_text("mlp")
    shown.locator(".lab-filter input").fill("rnk>=7")
    expect(shown).to_contain_text("No run has a field 'rnk'")
    shown.locator(".lab-filter input").fill("")
    expect(notebook.page.get_by_title(f"{count} of {count} runs are shown")).to_be_visible()
    shown.get_by_role("checkbox", name="select all").or_(shown.get_by_label("select all")).first.click()
    expect(notebook.page.locator(".lab-counts")).to_contain_text(f"{count} selected")
    notebook.shoot(f"compare {count}")


def test_a_beginner_and_large_text(notebook):
    notebook.show(lab(QUICK, level="beginner", text="large", locked=["train.learning_rate"]))
    notebook.shows("1 of 5")
    expect(notebook.field("learning rate 🔒")).to_be_disabled()
    notebook.shoot("beginner")
    notebook.button("Next").click()
    notebook.shows("2 of 5")
    notebook.button("Close the tour").click()
    expect(notebook.page.locator(".lab-coach")).to_be_hidden()


def test_the_app_through_voila(voila):
    voila.write("from widgets import Lab\nLab()")
    voila.page.goto(f"{voila.server.url}/voila/render/{voila.path}?token={voila.server.token}")
    voila.says("lora r8", seconds=90)
    voila.shoot("lab")
    voila.fill("steps (at most)", "4")
    voila.says("4 steps")
    voila.button("Start").click()
    finished(voila, 1)
    voila.says("finished")
    voila.shoot("finished")


def test_the_same_in_notebook_7(classic):
    classic.show(lab(QUICK))
    classic.button("Start").first.click()
    finished(classic, 1)
    classic.says("finished")
    expect(place(classic, "Monitor")).to_contain_text("mini-addsub")
    classic.shoot("finished")
