"""The spec of a finished run is edited, and its result counts for another spec.

Area: comparison
Elsewhere: found here
Before: `list`, `show` and `rerun` gave the edited rank beside the accuracy of the former one.
Here: a run id is a hash of its spec, which is checked whenever a record is read; `list` calls the run unreadable. A
    folder may be renamed.
Verdict: silent → refused
"""

from pathlib import Path

import pytest
from records import make_run

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.results.comparison import compare
from llm_adapters_lab.results.run_index import entry
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.reproduce import rerun


@pytest.mark.parametrize("done", [True, False])
def test_the_spec_of_a_run_is_edited(done: bool, tmp_path: Path) -> None:
    run = make_run(tmp_path, {"type": "lora", "rank": 2}, {"mini-addsub": 10}, done=done)
    file, words = run.folder / "spec.json", "spec.json was edited: it is the spec of nano-lora-"
    file.write_text(file.read_text().replace('"checkpoint_every": 0', '"checkpoint_every": 5'))  # changes no result
    assert entry(run).fault == ""
    file.write_text(file.read_text().replace('"rank": 2', '"rank": 7'))
    assert words in entry(run).fault
    for call in (lambda: run.spec, lambda: compare([run]), *([lambda: rerun(run)] if done else [])):
        with pytest.raises(BadSpec, match=words):
            call()
    file.write_text(file.read_text().replace('"rank": 7', '"rank": 2'))
    moved = Run(run.folder.rename(tmp_path / "the best one"))
    assert (entry(moved).fault == "") is done
