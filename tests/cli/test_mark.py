"""The command `mark`."""

import json
from pathlib import Path

from records import make_run
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.runs.marks import Marks, marks
from llm_adapters_lab.runs.record import note


def test_a_run_is_marked_and_shown(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, {"type": "lora"}, {"mini-addsub": 3}, seed=seed) for seed in range(2)]

    def call(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["mark", *words, "--root", str(tmp_path)])
        assert done.exit_code == code, done.output
        return done.output

    assert call(runs[0].id).strip() == f"{runs[0].id}: no star, no tags"
    said = call(runs[0].id, "--star", "--tag", "good", "--tag", "old", "--baseline", "--note", "so *good*")
    assert said.splitlines() == [f"{runs[0].id}: ★ baseline #good #old", "so *good*"]
    call(runs[0].id, "--untag", "old", "--no-star")
    assert marks(runs[0]) == Marks(tags=("good",), baseline=True)
    found = json.loads(call(runs[1].id, "--baseline", "--json"))
    assert found == {"id": runs[1].id, "star": False, "tags": [], "baseline": True, "note": ""}
    assert marks(runs[0]) == Marks(tags=("good",))
    assert note(runs[0]) == "so *good*"
    listed = CliRunner().invoke(app, ["list", "--root", str(tmp_path)]).output
    assert "#good" in listed
    plain = json.loads(
        CliRunner().invoke(app, ["list", "--filter", "tag=good", "--json", "--root", str(tmp_path)]).output
    )
    assert [(row["id"], row["star"], row["tags"], row["baseline"]) for row in plain] == [
        (runs[0].id, False, ["good"], False)
    ]
    assert "cannot be a tag" in call(runs[0].id, "--tag", "a,b", code=2)
    assert "There is no run" in call("nothing", "--star", code=2)
