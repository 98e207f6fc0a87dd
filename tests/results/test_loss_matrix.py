"""The loss of adapters on tasks: equal to the validation loss of training, and to the model's own."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models import load_base
from llm_adapters_lab.results.loss_matrix import loss_matrix
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.tasks.registry import get_task

TASKS = ["mini-addsub", "mini-bool"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    few: dict[str, Any] = {"eval": {"tasks": []}, "train": {"batch": 8, "max_steps": 25, "learning_rate": 0.01}}
    return [run(small("lora", data={"task": task, "rows": 64}, **few), root=root) for task in TASKS]


def test_each_adapter_is_best_at_its_own_task(runs: list[Run]) -> None:
    found = loss_matrix(runs, rows=24)
    assert found.tasks == tuple(TASKS) and found.names[0] == "base" and len(set(found.names)) == 3
    base, first, second = found.losses
    assert first[0] < base[0] - 0.3 and second[1] < base[1] - 0.3
    assert first[0] < second[0] and second[1] < first[1]
    assert found.rows == (24, 24)


def test_the_loss_of_the_base_is_the_models_own(runs: list[Run]) -> None:
    base = load_base("nano")
    total = count = 0.0
    for row in get_task("mini-bool").load("test", None)[:5]:
        prompt = base.tokenizer(f"Question: {row.instruction}\nAnswer:")["input_ids"]
        answer = base.tokenizer(f" {row.output}", add_special_tokens=False)["input_ids"] + [base.tokenizer.eos_token_id]
        with torch.no_grad():
            logits = base.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total += float(cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        count += len(answer)
    own = [run for run in runs if run.spec.data.task == "mini-bool"]
    assert loss_matrix(own, rows=5).losses[0][0] == pytest.approx(total / count, rel=1e-5)


def test_the_figure_shows_every_value(runs: list[Run]) -> None:
    found = loss_matrix(runs, rows=4)
    (trace,) = found.figure().data
    assert [list(row) for row in trace.z] == [list(row) for row in found.losses]
    assert trace.text[1][0] == f"{found.losses[1][0]:.2f}" and math.isfinite(found.losses[0][0])


def test_the_command(runs: list[Run], tmp_path: Path) -> None:
    root, names = runs[0].folder.parent, [one.id for one in runs]
    words = ["losses", *names, "--tasks", "mini-bool", "--rows", "4", "--root", str(root)]
    table = json.loads(CliRunner().invoke(app, [*words, "--json", "--html", str(tmp_path / "m.html")]).stdout)
    assert [row["mini-bool"] for row in table] == [row[0] for row in loss_matrix(runs, ["mini-bool"], 4).losses]
    assert (tmp_path / "m.html").stat().st_size > 10_000
    shown = CliRunner().invoke(app, words).output
    assert "Nats per token on 4 rows of each task" in shown
    assert CliRunner().invoke(app, [*words[:2], "--tasks", "mini-boo", "--root", str(root)]).exit_code == 2


def test_what_is_refused(runs: list[Run], tmp_path: Path) -> None:
    bare = run(small("lora", adapter=None, eval={"tasks": ["mini-bool"], "rows": 2}), root=tmp_path)
    with pytest.raises(BadSpec, match="scores the bare base"):
        loss_matrix([runs[0], bare])
    with pytest.raises(BadSpec, match="at least one run"):
        loss_matrix([])
    other = run(
        small(
            "lora",
            base="nano-moe",
            adapter={"type": "lora", "rank": 2, "at": "q,v"},
            train={"batch": 4, "max_steps": 1},
            eval={"tasks": []},
        ),
        root=tmp_path,
    )
    with pytest.raises(BadSpec, match="have different bases"):
        loss_matrix([runs[0], other])
