"""A failure is a result: the record says where, why, what is left and how to continue, wherever one looks."""

import html
import json
from pathlib import Path
from typing import Any

from fault_lab import Lab
from nursery import FIELDS

from llm_adapters_lab.runs.record import list_runs
from llm_adapters_lab.runs.status import state

EXPLODES: dict[str, Any] = {
    **{"base": "nano", "adapter": {"type": "full-fine-tuning"}, "data": FIELDS["data"], "eval": {}},
    "train": {"batch": 4, "max_steps": 9, "epochs": 9.0, "learning_rate": 10.0, "clip": 0.0, "schedule": "constant"},
}


def test_a_failure_is_shown_by_show_list_launch_and_report(lab: Lab, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(EXPLODES), encoding="utf-8")
    child = lab.nursery.start("run", spec, "--root", tmp_path)
    assert child.wait() == 2, child.said
    assert "error: The " in child.said and "its rows begin with mini-" in child.said
    assert "Traceback" not in child.said
    (record,) = list_runs(tmp_path)
    failed = record.summary
    step = failed["step"]
    assert (failed["status"], failed["stage"]) == ("failed", "training")
    assert step > 0
    assert failed["error"].startswith("TrainingFailed: The ") and f"of step {step + 1} is" in failed["error"]
    assert "change it as the error says" in failed["advice"] and f"after step {step} is kept" in failed["advice"]
    assert failed["traceback"].startswith("Traceback (most recent call last)")
    assert str(Path.home()) not in failed["traceback"]
    child = lab.nursery.start("show", record.id, "--root", tmp_path)
    assert child.wait() == 0, child.said
    for key in ("stage", "error", "advice", "traceback"):
        assert failed[key].strip() in child.said
    child = lab.nursery.start("list", "--root", tmp_path, "--json")
    assert child.wait() == 0, child.said
    assert json.loads(child.said)[0]["status"] == "failed"
    assert state(record).name == "failed"
    assert failed["error"] in state(record).reason and failed["advice"] in state(record).reason
    child = lab.nursery.start("report", record.id, "--root", tmp_path, "--out", tmp_path / "report.html")
    assert child.wait() == 0, child.said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for key in ("stage", "error", "advice", "traceback"):
        assert failed[key] in html.unescape(page)
