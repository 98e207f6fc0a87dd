"""The lab as people use it: a real JupyterLab, Notebook and Voila in a real browser."""

import csv
import re

from playwright.sync_api import expect

from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import list_runs
from llm_adapters_lab.runs.spec import RunSpec
from widgets.lab import TABS

QUICK = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4},
    "data": {"rows": 64, "validation": 8},
    "train": {"batch": 8, "max_steps": 4, "learning_rate": 1e-3},
    "eval": {"tasks": ["mini-addsub"], "rows": 8},
}
LONG = {**QUICK, "data": {}, "train": {"batch": 8, "max_steps": 20_000, "epochs": 1000.0}}
PAYLOAD = '<img src=x onerror="window.hit=1"><script>window.hit=2</script> [x](javascript:window.hit=3) How many?'


def lab(spec=None, **more):
    given = "".join(f", {name}={value!r}" for name, value in more.items())
    spec = f", RunSpec.parse({spec!r})" if spec else ""
    return f"from llm_adapters_lab import RunSpec\nfrom widgets import Lab\nlab = Lab('runs'{spec}{given})\nlab"


def plot(notebook, title):
    figures = notebook.page.locator(".lab .js-plotly-plot").filter(has_text=title)
    return figures.locator("visible=true").last


def step(notebook):
    """Return the step that the status bar shows."""
    notebook.says(r"step \d+ of")
    return int(re.search(r"step (\d+)", notebook.bar().inner_text())[1])


def test_from_an_empty_notebook_to_the_accuracy_plot(notebook):
    notebook.write()
    notebook.open()
    cell = notebook.page.locator(".jp-CodeCell .cm-content")
    cell.click()
    notebook.page.keyboard.type("from widgets import Lab\nLab()")
    notebook.page.keyboard.press("Shift+Enter")  # the first click
    notebook.says("not started", seconds=90)
    notebook.shoot("lab")
    notebook.button("Start").click()  # the second; there is no third
    notebook.says(r"step \d+ of 120", seconds=90)
    notebook.says("finished", seconds=240)
    expect(plot(notebook, "Accuracy on each dataset")).to_contain_text("mini-addsub")
    (record,) = list_runs(notebook.folder / "runs")
    assert record.id == RunSpec.load("quickstart").id
    assert record.summary["scores"]["mini-addsub"]["accuracy"] > 0.8
    expect(plot(notebook, "Training")).to_contain_text("train loss (smoothed)")
    notebook.button("Evaluate the base model for comparison").click()
    expect(plot(notebook, "Accuracy on each dataset")).to_contain_text("base", timeout=60_000)
    notebook.shoot("finished")


def test_stop_and_resume(notebook):
    notebook.show(lab(LONG))
    notebook.button("Start").first.click()
    notebook.says(r"step \d+ of 20000", seconds=90)
    expect(plot(notebook, "Training")).to_contain_text("train loss (smoothed)")
    notebook.shoot("running")
    notebook.button("Stop").click()
    notebook.says("stopped")
    expect(notebook.page.locator(".lab").get_by_text(re.compile(r"Resume continues after step \d+"))).to_be_visible()
    notebook.shoot("stopped")
    notebook.button("Resume").last.click()
    notebook.says(r"running · step \d+ of 20000", seconds=90)
    notebook.button("Stop").click()
    notebook.says("stopped")


def test_a_run_is_followed_after_a_reload_and_after_a_restart(notebook):
    notebook.show(lab(LONG))
    notebook.button("Start").first.click()
    first = step(notebook)
    notebook.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    notebook.page.reload()
    notebook.ready()
    expect(notebook.bar()).not_to_contain_text(f"step {first} of")
    second = step(notebook)
    assert second > first
    expect(plot(notebook, "Training")).to_contain_text("train loss (smoothed)")
    notebook.shoot("after a reload")
    notebook.restart()
    notebook.write("from widgets import Lab\nLab()")  # without a spec, as in a new notebook
    notebook.open()
    notebook.run()
    third = step(notebook)
    assert third > second
    expect(plot(notebook, "Training")).to_contain_text("train loss (smoothed)")
    notebook.shoot("after a restart")
    assert len(list_runs(notebook.folder / "runs")) == 1
    notebook.button("Stop").click()
    notebook.says("stopped")


def test_an_invalid_rank_is_reported_and_starts_nothing(notebook):
    notebook.show(lab())
    notebook.fill("rank", "0")
    notebook.says("not valid yet")
    expect(notebook.page.get_by_role("alert").filter(has_text="adapter.rank must be")).to_be_visible()
    expect(notebook.button("Start")).to_be_disabled()
    notebook.shoot("invalid")
    notebook.fill("rank", "4")
    notebook.says("not started")
    expect(notebook.button("Start")).to_be_enabled()
    assert not (notebook.folder / "runs").exists()
    # With the keyboard alone, every tab can be reached, and the first control behind them.
    notebook.page.get_by_role("tab", name="Setup", exact=True).focus()
    notebook.page.keyboard.press("ArrowRight")
    notebook.page.keyboard.press("Enter")
    expect(notebook.button("Preview rows")).to_be_visible()
    notebook.tab("Setup")
    notebook.walk()


def test_the_spec_can_be_copied_and_loaded(notebook):
    notebook.show(lab())
    notebook.page.get_by_text("Export as code").click()
    notebook.button("Copy YAML").click()
    expect(notebook.button("Copied")).to_be_visible()
    text = notebook.page.evaluate("() => navigator.clipboard.readText()")
    notebook.shoot("export")
    changed = text.replace("rank: 8", "rank: 2").replace("base: nano", "base: nano\nseed: 3")
    (notebook.folder / "my.yaml").write_text(changed, encoding="utf-8")
    spec = RunSpec.load(notebook.folder / "my.yaml")
    assert (spec.seed, spec.train) == (3, RunSpec.load("quickstart").train)
    notebook.page.get_by_text("Load a spec from a file").click()
    with notebook.page.expect_file_chooser() as chosen:
        notebook.page.locator(".lab").get_by_role("button", name="Upload a file").click()
    chosen.value.set_files(notebook.folder / "my.yaml")
    notebook.says(spec.id)
    notebook.fill("path or preset", "missing.yaml")
    notebook.button("Load").click()
    expect(notebook.page.get_by_role("alert").filter(has_text="There is no spec file missing.yaml")).to_be_visible()
    notebook.shoot("load")


def test_hostile_text_executes_nothing(notebook):
    with (notebook.folder / "hostile.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["instruction", "answer"])
        rows.writerows([f"{PAYLOAD} {n} {'more ' * (n % 3)}", "7"] for n in range(40))
    task = f"own:{notebook.folder / 'hostile.csv'}?form=number"
    spec = {**QUICK, "data": {"task": task, "validation": 8}, "eval": {"tasks": [task], "rows": 4, "max_new_tokens": 8}}
    notebook.show(lab(spec))
    notebook.tab("Data")
    notebook.button("Preview rows").click()
    expect(plot(notebook, "Length of the rows")).to_be_visible()
    notebook.shoot("data")
    notebook.button("raw row").click()
    expect(notebook.page.locator(".lab .lab-rendered").first).to_contain_text("<img")
    notebook.button("Start").first.click()
    notebook.says("finished", seconds=120)
    expect(plot(notebook, "Accuracy on each dataset")).to_be_visible()
    expect(plot(notebook, "Training")).to_be_visible()
    notebook.shoot("run")
    look_inside(notebook)
    ask(notebook)
    assert PAYLOAD in notebook.page.evaluate(
        "() => [...document.querySelectorAll('textarea')].map(e => e.value).join()"
    )
    assert notebook.page.evaluate("() => window.hit ?? null") is None
    assert notebook.page.locator(".lab img[src=x]").count() == 0


def test_inspect_and_playground(notebook):
    record = run(RunSpec.parse(QUICK), root=notebook.folder / "runs")
    notebook.show(lab(run_id=record.id))
    notebook.says("finished")
    look_inside(notebook)
    ask(notebook)
    notebook.theme("Dark")
    for title in TABS:
        notebook.tab(title)
        notebook.check()


def look_inside(notebook):
    notebook.tab("Inspect")
    notebook.field("view").select_option("Loss per token")
    notebook.button("Compute").click()
    expect(plot(notebook, "Loss per token")).to_be_visible()
    notebook.shoot("tokens")
    notebook.field("view").select_option("Relative update norm ‖ΔW‖ / ‖W‖")  # from now on, figures follow the selection
    expect(plot(notebook, "q_proj")).to_be_visible()
    notebook.shoot("norms")


def ask(notebook):
    notebook.tab("Playground")
    notebook.button("Generate").click()
    expect(notebook.page.locator(".lab").get_by_text("done", exact=True)).to_be_visible()
    notebook.shoot("playground")


def test_the_same_through_voila(voila):
    voila.write(lab(QUICK))
    voila.page.goto(f"{voila.server.url}/voila/render/{voila.path}?token={voila.server.token}")
    voila.says("not started", seconds=90)
    voila.shoot("lab")
    voila.button("Start").first.click()
    voila.says("finished", seconds=120)
    expect(plot(voila, "Training")).to_contain_text("train loss (smoothed)")
    expect(plot(voila, "Accuracy on each dataset")).to_contain_text("mini-addsub")
    voila.shoot("finished")


def test_the_same_in_notebook_7(classic):
    classic.show(lab(QUICK))
    classic.button("Start").first.click()
    classic.says("finished", seconds=120)
    expect(plot(classic, "Training")).to_contain_text("train loss (smoothed)")
    expect(plot(classic, "Accuracy on each dataset")).to_contain_text("mini-addsub")
    classic.shoot("finished")
