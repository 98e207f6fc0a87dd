"""A terminal or a log file that knows no dash ends a run that is already finished.

Area: training
Elsewhere: found here
Before: with an ASCII or Latin-1 output a run was trained and scored, then ended in a UnicodeEncodeError and exit code
1.
Here: what the output cannot show is replaced by a question mark.
Verdict: crash → right
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from records import make_run


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_dash_ends_a_finished_run(encoding: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, None, {"mini-addsub": 10})
    (run.folder / "note.txt").write_text("\u2013 \u4e2d", encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for command in (["list"], ["show", run.id], ["compare", run.id], ["show", "\u4e2d"]):
        words = [sys.executable, "-m", "llm_adapters_lab", *command, "--root", str(tmp_path)]
        done = subprocess.run(words, env=environment, capture_output=True, check=False)
        assert done.returncode == (2 if command[-1] == "\u4e2d" else 0), done.stderr
        assert b"Traceback" not in done.stderr and (command[0] != "list" or b"?" in done.stdout)
