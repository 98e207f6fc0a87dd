"""A report of many runs needs a service, or leaves out what failed and was resumed.

Area: comparison
Elsewhere: SimpleTuner#2327, LlamaFactory#7100.
Here: one HTML file below 10 MB that loads nothing, with the loss of every run, also of failed ones, and across resumes.
Verdict: right → right
"""

import json
import re
from pathlib import Path

from html_page import Page
from records import make_run

from llm_adapters_lab.events import Failed, Resumed
from llm_adapters_lab.results.reports import report


def test_twenty_runs_are_one_small_offline_file(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, {"type": "lora"}, {"a": 9, "b": 7}, seed=n, steps=300) for n in range(19)]
    for step in (100, 150, 250):
        runs[3].append(Resumed(runs[3].id, "training", step))
    lost = make_run(tmp_path, {"type": "lora"}, {}, seed=19, steps=40, done=False)
    lost.append(Failed(lost.id, "training", "TrainingFailed: the loss of step 41 is nan"))
    path = report([*runs, lost], tmp_path / "report.html")
    assert path.stat().st_size < 10_000_000
    page = Page(path.read_text(encoding="utf-8"))
    assert not [tag for tag, given in page.elements if {"src", "href", "srcset", "data"} & set(given)]
    assert "TrainingFailed: the loss of step 41 is nan" in page.text
    figures = [json.loads(script) for script in page.scripts if script.startswith("{")]
    (losses,) = [one for one in figures if one["layout"]["title"]["text"] == "Training loss, smoothed"]
    drawn = [re.search(r"seed (\d+)", trace["hovertemplate"]) for trace in losses["data"]]
    assert sorted(int(found[1]) for found in drawn if found) == list(range(20))
