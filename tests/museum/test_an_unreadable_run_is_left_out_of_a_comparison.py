"""An unreadable run is left out of a comparison, which then names another one as the best.

Area: comparison
Elsewhere: found here
Before: `compare --filter`, `--sort` and `--limit` passed it over.
Here: it is named above the table, and under "unreadable" in JSON.
Verdict: silent → told
"""

import json
from pathlib import Path

from records import make_run
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app


def test_an_unreadable_run_is_left_out_of_a_comparison(tmp_path: Path) -> None:
    best, *_ = (make_run(tmp_path, {"type": "lora"}, {"mini-addsub": 18 - seed}, seed=seed) for seed in range(3))
    command = ["compare", "--filter", "adapter=lora", "--root", str(tmp_path)]
    assert "Unreadable" not in CliRunner().invoke(app, command).stdout
    (best.folder / "summary.json").write_text("{")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert f"Unreadable, left out: {best.id}. `show` gives the reason." in done.stdout
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert told["unreadable"] == [best.id] and len({row["run"] for row in told["rows"]}) == 2
