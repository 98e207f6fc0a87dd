"""The summary of a run is damaged, and every command that reads it ends in a traceback.

Area: comparison
Elsewhere: found here
Before: half a file, `[]` or `{}` ended in a JSONDecodeError, AttributeError or KeyError, even in `run`.
Here: the file is named, with what to do; `list` calls the run unreadable.
Verdict: crash → refused
"""

import json
from pathlib import Path

import pytest
from records import make_run
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app


@pytest.mark.parametrize("text", ["half", "[]", "{}", "", "\x00"])
def test_a_damaged_summary_ends_in_a_traceback(text: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", {"type": "lora"}, {"mini-addsub": 10})
    file, spec, out = run.folder / "summary.json", str(tmp_path / "spec.json"), str(tmp_path / "out")
    (tmp_path / "spec.json").write_text((run.folder / "spec.json").read_text())
    file.write_text(file.read_text()[:99] if text == "half" else text)
    export = ("export", run.id, out)
    commands = *((name, run.id) for name in ("show", "rerun", "rescore", "compare")), ("run", spec), export
    for command in (*commands, ("report", run.id, "--out", out)):
        done = CliRunner().invoke(app, [*command, "--root", str(tmp_path / "runs")])
        assert done.exit_code == 2, (command, done.output, done.exception)
        assert "summary.json is damaged: " in done.output and "Repeat the run with --fresh" in done.output
    listed = CliRunner().invoke(app, ["list", "--json", "--root", str(tmp_path / "runs")])
    assert [row["status"] for row in json.loads(listed.stdout)] == ["unreadable"]
