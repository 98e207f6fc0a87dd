"""Do a benchmark file and keep what it finds: JSON, a table and figures in `docs/benchmark/`, and learning rates.

    python benchmarks/methods.py papermill_runs/benchmarks/nano-all.yaml --recipes
    python benchmarks/methods.py papermill_runs/benchmarks/nano-all.yaml --rule mcnemar     # the same with early ends

Finished runs are read, so that a second call writes the same files at once. Figures need Chromium. `--recipes` also
writes the rates that `train.learning_rate: auto` stands for.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

from llm_adapters_lab.results.benchmark_report import Standing, saved_tokens, standings, verdicts
from llm_adapters_lab.results.formatting import interval, percent
from llm_adapters_lab.results.plots import benchmark_figures, benchmark_tiers, search_figure
from llm_adapters_lab.runs.recipes import NEAR
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.benchmarks import Benchmark, Outcome, benchmark
from llm_adapters_lab.sweeps.executors import make_executor

ROOT = Path(__file__).parents[1]
OUT, RECIPES = ROOT / "docs" / "benchmark", ROOT / "llm_adapters_lab" / "runs" / "recipes.json"
RATE = "train.learning_rate"


def answers(outcome: Outcome) -> dict[str, str]:
    """Return for every method how many seeds answered each question, a digit each."""
    found = {}
    for contest, runs in outcome.finals.items():
        count: dict[tuple[str, str], int] = {}
        for run in runs:
            for row in run.predictions():
                key = row["task"], row["id"]
                count[key] = count.get(key, 0) + bool(row["correct"])
        found[contest.words] = "".join(str(count[key]) for key in sorted(count))
    return found


def recipes(outcome: Outcome, source: str) -> dict[str, Any]:
    """Return the best rate of every type of adapter, the rates that are nearly as good, and those that were tried."""
    rates: dict[str, Any] = {}
    for contest in outcome.benchmark.contests():
        tried = {t.changes[RATE]: t.loss for t in outcome.trials if t.contest == contest and math.isfinite(t.loss)}
        best = outcome.best(contest)
        if best is None or best.run.spec.adapter is None or best.run.spec.adapter.type == "union":
            continue
        good = [rate for rate, loss in tried.items() if loss <= best.loss + NEAR]
        own = {"rate": best.changes[RATE], "low": min(good), "high": max(good), "tried": [min(tried), max(tried)]}
        rates.setdefault(best.run.spec.adapter.type, own)
    spec = RunSpec.parse({**outcome.benchmark.spec, "adapter": None})
    fields: dict[str, Any] = {"base": spec.base, "data.task": spec.data.task}
    fields |= {"train.batch": spec.train.batch, "train.max_steps": spec.train.max_steps}
    return {"source": source, "seen": fields, "rates": dict(sorted(rates.items()))}


def table(found: list[Standing]) -> str:
    """Return the standings as a table in Markdown."""
    heads = [
        "tier",
        "method",
        "accuracy (95 %)",
        "forgetting",
        "parameters",
        "FLOPs",
        "rate",
        "its loss",
        "typical loss",
    ]
    several = len({(s.contest.base, s.contest.task) for s in found}) > 1
    lines = [heads, ["---"] * len(heads)]
    for one in found:
        ends = f"{percent(one.accuracy)} ({interval(*one.ends['accuracy'])})" if one.tier else "–"
        forgotten = f"{one.measures['forgetting']:+.2f}" if "forgetting" in one.measures else "–"
        cells = [str(one.tier or "–"), one.contest.words if several else one.contest.method, ends, forgotten]
        cells += [f"{one.measures['trainable']:,.0f}", f"{one.measures['flops']:.2g}"] if one.tier else ["–", "–"]
        rate = one.setting.get(RATE)
        cells += ["–" if rate is None else f"{rate:.2g}", f"{one.loss:.3f}", f"{one.typical_loss:.3f}"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def pictures(outcome: Outcome, found: list[Standing], name: str, few: bool) -> list[str]:
    """Write the figures as PNG, as a browser draws them, and return their file names; of `few`, tiers and search."""
    from playwright.sync_api import sync_playwright

    names = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        drawn = [benchmark_tiers(found), search_figure(outcome)] if few else benchmark_figures(outcome, found)
        for figure in drawn:
            title = figure.layout.title.text.lower().replace(" ", "-")
            figure.update_layout(paper_bgcolor="white", plot_bgcolor="white", width=900)
            page = browser.new_page(
                viewport={"width": 916, "height": figure.layout.height + 16}, device_scale_factor=1.5
            )
            page.set_content(figure.to_html(include_plotlyjs=True, config={"staticPlot": True}), wait_until="load")
            page.locator(".plot-container").wait_for()
            page.screenshot(path=OUT / f"{name}-{title}.png")
            names.append(f"{name}-{title}.png")
            page.close()
        browser.close()
    return names


def main() -> None:
    """Parse the command line, do the benchmark and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="benchmark file")
    parser.add_argument("--root", default="runs", help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at a time")
    parser.add_argument("--rule", help="in place of search.rule; the files then have its name")
    parser.add_argument("--few", action="store_true", help="draw tiers and search only")
    parser.add_argument("--recipes", action="store_true", help="also write the learning rates")
    given = parser.parse_args()
    what, name = Benchmark.load(given.file), given.file.stem
    if given.rule:
        what = Benchmark.parse(
            {
                **what.model_dump(by_alias=True, exclude_none=True),
                "search": {**what.search.model_dump(by_alias=True, exclude_none=True), "rule": given.rule},
            }
        )
        name += f"-{given.rule}"
    outcome = benchmark(what, root=given.root, executor=make_executor("process", jobs=given.jobs))
    found = standings(outcome)
    value = {
        "benchmark": what.model_dump(mode="json", by_alias=True, exclude_none=True),
        "verdicts": verdicts(outcome, found),
        "saved_tokens": saved_tokens(outcome),
        "unfinished": dict(outcome.unfinished),
        "standings": [one.row() for one in found],
        "trials": [
            {
                "method": t.contest.words,
                **{name: value for name, value in t.changes.items() if name in what.ranges(t.contest.method)},
                "loss": t.loss if math.isfinite(t.loss) else None,
                "tokens": t.tokens,
                "ended": t.ended,
            }
            for t in outcome.trials
        ],
        "seeds_right": answers(outcome),
    }
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    images = "" if given.rule else "\n".join(f"![]({image})" for image in pictures(outcome, found, name, given.few))
    said = "\n\n".join(verdicts(outcome, found))
    text = f"# {name}\n\n`python benchmarks/methods.py {given.file}`\n\n{said}\n\n{table(found)}\n\n{images}\n"
    (OUT / f"{name}.md").write_text(text, encoding="utf-8")
    if given.recipes:
        content = recipes(outcome, f"docs/benchmark/{name}.json")
        RECIPES.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n".join(verdicts(outcome, found)))


if __name__ == "__main__":
    main()
