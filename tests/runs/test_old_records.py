"""Records that version 0.1.0 has written are read, compared and restored by this one."""

import shutil
from pathlib import Path

import pytest
import torch

from llm_adapters_lab.results.comparison import compare
from llm_adapters_lab.results.reports import report
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run, find_run, list_runs
from llm_adapters_lab.runs.restoring import restore

RECORDS = Path(__file__).parent / "records_0_1_0"
BASE, LORA = "nano-base-9d20e28705", "nano-lora-d3a1d7d90e"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORDS, tmp_path / "runs"))


def test_their_ids_are_those_of_their_specs(root: Path) -> None:
    assert {record.id: record.spec.id for record in list_runs(root)} == {BASE: BASE, LORA: LORA}
    assert find_run("nano-l", root).id == LORA


@pytest.mark.parametrize("name", [BASE, LORA])
def test_they_are_finished_and_not_done_again(root: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in sorted((root / name).rglob("*")) if path.is_file()}
    assert run(Run(root / name).spec, root=root).summary["status"] == "finished"
    assert {path: path.read_bytes() for path in sorted((root / name).rglob("*")) if path.is_file()} == before


def test_they_are_compared_and_reported(root: Path) -> None:
    records = [Run(root / BASE), Run(root / LORA)]
    rows = compare(records)
    assert [(row["run"], row["task"]) for row in rows] == [
        (BASE, "mini-addsub"),
        (LORA, "mini-addsub"),
        (LORA, "mini-bool"),
    ]
    assert all(row["accuracy"] == Run(root / row["run"]).summary["scores"][row["task"]]["accuracy"] for row in rows)
    assert LORA in report(records, root / "report.html").read_text(encoding="utf-8")


def test_the_adapter_is_restored_and_the_same_spec_trains_it_again(root: Path, tmp_path: Path) -> None:
    _, injection = restore(Run(root / LORA))
    assert injection is not None
    assert injection.count() == Run(root / LORA).summary["trainable_parameters"]
    again = run(Run(root / LORA).spec, root=tmp_path / "again")
    before, now = (
        [event["loss"] for event in record.events("Step", "Validated")] for record in (Run(root / LORA), again)
    )
    assert now == pytest.approx(before, rel=1e-4)  # another processor may round otherwise
    _, trained = restore(again)
    assert trained is not None
    state = injection.state_dict()
    assert all(torch.allclose(state[key], tensor, atol=1e-4) for key, tensor in trained.state_dict().items())
