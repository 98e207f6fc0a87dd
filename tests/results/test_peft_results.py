"""Published results of peft: read, checked, put into tiers, and tested against one of them."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.statistics import two_shares, wilson
from llm_adapters_lab.results.peft_results import Result, figure, rank, read_peft_results, summary

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "published" / "peft_metamathqa.csv"
BASE = "meta-llama/Llama-3.2-3B"


def write(folder: Path, name: str, accuracy: float, **more: Any) -> Path:
    """Write a result as peft does; `more` are other values by name."""
    plan = {"model_id": more.get("base", BASE), "seed": 0, "optimizer_kwargs": {"lr": more.get("lr", 1e-4)}}
    info = {"experiment_name": name, "created_at": more.get("at", "2026-01-01"), "train_config": plan}
    adapter = {"peft_type": more["method"]} if "method" in more else None
    scored = {"step": 5000, "test accuracy": accuracy, "forgetting": more.get("forgetting", 0.1)}
    trained = {"status": more.get("status", "success"), "train_time": 9.0, "num_trainable_params": 7, "file_size": 5}
    trained |= {"accelerator_memory_max": 3, "metrics": [{"step": 250, "valid accuracy": 0.3}, scored]}
    path = folder / f"{name.replace('/', '--')}{more.get('suffix', '')}.json"
    path.write_text(json.dumps({"run_info": info | {"peft_config": adapter}, "train_info": trained, "meta_info": {}}))
    return path


def made(folder: Path, **correct: int) -> list[Result]:
    for name, count in correct.items():
        write(folder, name, count / 1319)
    return read_peft_results(folder)[0]


def test_a_folder_is_read_and_what_is_no_result_is_named(tmp_path: Path) -> None:
    write(tmp_path, "lora/r32", 636 / 1319, method="LORA", lr=2e-4)
    write(tmp_path, "lora/r32", 600 / 1319, at="2025-01-01", suffix="--old")
    write(tmp_path, "full/ft", 622 / 1319, forgetting=None)
    write(tmp_path, "oft/x", 0.5, status="failed")
    (tmp_path / "notes.json").write_text("{}")
    found, left_out = read_peft_results(tmp_path)
    assert [(r.name, r.method, r.correct) for r in found] == [("lora/r32", "LORA", 636), ("full/ft", "full", 622)]
    assert found[0].learning_rate == 2e-4 and found[0].ends == wilson(636, 1319)
    assert (found[0].forgetting, found[1].forgetting, found[0].memory) == (0.1, None, 3)
    assert len(left_out) == 3
    assert any("oft--x.json: failed" in text for text in left_out)
    assert any("notes.json: no result of peft" in text for text in left_out)
    assert any("another run of lora/r32; the latest counts" in text for text in left_out)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="no folder"):
        read_peft_results(tmp_path / "none")
    with pytest.raises(BadSpec, match="has no result of peft"):
        read_peft_results(tmp_path)
    write(tmp_path, "a", 636 / 1319)
    with pytest.raises(BadSpec, match="no share of 1000 questions"):
        read_peft_results(tmp_path, 1000)
    with pytest.raises(BadSpec, match=r"no result 'b'\. Did you mean 'a'|no result 'b'"):
        rank(read_peft_results(tmp_path)[0], "b")
    write(tmp_path, "other", 636 / 1319, base="gpt2")
    with pytest.raises(BadSpec, match=r"different bases.*Compare one base"):
        rank(read_peft_results(tmp_path)[0])


def test_tiers_and_verdicts(tmp_path: Path) -> None:
    results = made(tmp_path, best=700, near=680, middle=600, close=590, last=400)
    places = rank(results, "middle")
    assert [(p.result.name, p.tier) for p in places] == [
        ("best", 1),
        ("near", 1),
        ("middle", 2),
        ("close", 2),
        ("last", 3),
    ]
    mine = results[2]
    verdicts = {p.result.name: p.verdict(mine) for p in places}
    assert verdicts == {
        "best": "better",
        "near": "better",
        "middle": "",
        "close": "not distinguishable",
        "last": "worse",
    }
    # By hand: z of 600 and 590 of 1,319, which is the largest p of four and stays as it is.
    pooled = 1190 / 2638
    z = (10 / 1319) / math.sqrt(pooled * (1 - pooled) * 2 / 1319)
    (close,) = [p.p for p in places if p.result.name == "close"]
    assert close == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert summary(places).startswith("Compared with middle (45.5 %")
    assert "the other 4 results are: not distinguishable 1, better 2, worse 1." in summary(places)
    drawn = figure(places)
    assert list(drawn.data[0].x) == pytest.approx([100 * r.accuracy for r in results])
    assert [colour == drawn.data[0].marker.color[2] for colour in drawn.data[0].marker.color] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_two_shares() -> None:
    assert two_shares(5, 10, 5, 10) == 1 and two_shares(0, 10, 0, 20) == 1
    assert two_shares(0, 1000, 500, 1000) < 1e-9
    assert (
        two_shares(60, 100, 50, 100) == pytest.approx(two_shares(50, 100, 60, 100)) == pytest.approx(0.1552, abs=1e-3)
    )


def test_names_from_files_are_text(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    results = made(tmp_path, a=600)
    write(tmp_path, "b", 500 / 1319)
    path = tmp_path / "b.json"
    path.write_text(path.read_text().replace('"experiment_name": "b"', f'"experiment_name": "{hostile}"'))
    results, _ = read_peft_results(tmp_path)
    assert "<img" not in figure(rank(results)).to_json().replace("\\u003c", "<")


def test_the_command(tmp_path: Path) -> None:
    made(tmp_path, best=700, middle=600)
    asked = ["published", str(tmp_path), "--against", "middle", "--html", str(tmp_path / "ranking.html"), "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)["results"]
    assert [(r["name"], r["tier"], r["verdict"]) for r in found] == [("best", 1, "better"), ("middle", 2, "")]
    assert (tmp_path / "ranking.html").stat().st_size > 1000


def test_peft_own_ranking_cannot_tell_a_third_of_its_rows_from_lora(tmp_path: Path) -> None:
    if not PUBLISHED.is_file():
        pytest.skip("the published rows are not here")
    with PUBLISHED.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            write(tmp_path, row["experiment"], float(row["test_acc"]), method=row["peft_type"], lr=float(row["lr"]))
    results, left_out = read_peft_results(tmp_path)
    assert len(results) == 63 and not left_out
    places = rank(results, "lora/llama-3.2-3B-rank32")
    (mine,) = [p.result for p in places if p.p is None]
    alone = [r for r in results if r is not mine and two_shares(r.correct, r.total, mine.correct, mine.total) > 0.05]
    assert len(alone) == 23  # as published without a correction
    verdicts = [p.verdict(mine) for p in places]
    assert verdicts.count("not distinguishable") >= 23 and verdicts.count("better") <= 1
