"""The published rows: numbers, remarks, and the pages that show both."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.results.comparison import remarks as told
from llm_adapters_lab.results.published_results import names, published, remarks, tables
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec

PAGES = {
    path.stem: path.read_text(encoding="utf-8") for path in (Path(__file__).parents[2] / "docs/published").iterdir()
}


@pytest.mark.parametrize("name", names())
def test_every_row_is_on_a_page_with_its_numbers_and_remarks(name: str) -> None:
    page = PAGES.get(name.rpartition("-")[0], PAGES["README"])
    assert name in page
    for table in tables():
        assert all(f"{score:.1f}" in page for score in table["rows"].get(name, {}).values())
    both = page + PAGES["README"]
    assert all(text.replace("|", r"\|") in both for text in remarks(name))


def test_remarks_are_those_of_the_row_and_the_task() -> None:
    dropout = "LoRA's dropout of 0.05 stays on"
    assert any(dropout in text for text in remarks("llama-7b-lora"))
    assert not any(dropout in text for text in remarks("llama-7b-series"))
    assert any("#70" in text for text in remarks("bloomz-7b-lora", "boolq"))
    assert not any("#70" in text for text in remarks("bloomz-7b-lora", "gsm8k"))


def test_a_comparison_shows_each_remark_once() -> None:
    rows = published("llama-7b-lora", ["gsm8k", "svamp"]) + published("llama-13b-lora", ["gsm8k"])
    lines = [line for line in told(rows) if "llama-" in line.partition(":")[0]]
    assert len(lines) == len({line.partition(": ")[2] for line in lines})
    assert any(line.startswith("llama-7b-lora: ") and "SVAMP 46.9" in line for line in lines)
    assert any(line.startswith("llama-7b-lora, llama-13b-lora: On a GPU the scoring") for line in lines)


@pytest.mark.parametrize("name", ["llama-7b-lora", "bloomz-7b-prefix", "llama-13b-series"])
def test_a_comparison_shows_the_remarks_of_the_row_only(name: str) -> None:
    rows = published(name, ["boolq"])
    *own, general = told(rows)
    assert not {line.partition(": ")[2] for line in own} & set(remarks("gpt-j-6b-parallel", ""))
    assert 0 < len(own) == len(rows[0]["remarks"]) - 11
    assert general == "11 more remarks hold for all published rows: see docs/published, or --json."


def test_an_unknown_row_offers_the_nearest() -> None:
    with pytest.raises(BadSpec, match="llama-7b-lora"):
        published("llama-7b-loar")


def test_a_row_without_a_task_in_common_is_told(tmp_path: Path) -> None:
    spec = RunSpec.parse({"eval": {"tasks": ["mini-addsub"], "rows": 2, "max_new_tokens": 3}})
    record = run(spec, root=tmp_path)
    said = CliRunner().invoke(app, ["compare", record.id, "--root", str(tmp_path), "--paper", "llama-7b-lora"]).output
    assert "llama-7b-lora: the paper has none of these tasks" in " ".join(said.split())


def test_published_rows_have_the_interval_that_the_paper_does_not_give() -> None:
    (row,) = published("llama-7b-lora", ["gsm8k"])
    assert (row["correct"], row["total"]) == (495, 1319)  # 37.5 %
    assert row["low"] == pytest.approx(0.3495, abs=1e-3) and row["high"] == pytest.approx(0.4018, abs=1e-3)
    for name in names():
        for each in published(name):
            assert abs(each["correct"] / each["total"] - each["accuracy"]) <= 0.5 / each["total"] + 1e-9
            assert each["low"] <= each["accuracy"] <= each["high"]


def test_the_paper_is_ranked_like_the_results_of_peft() -> None:
    asked = ["published", "paper", "--task", "svamp", "--against", "llama-7b-lora"]
    value = json.loads(CliRunner().invoke(app, [*asked, "--json"]).output)["results"]
    near = {row["name"]: row["verdict"] for row in value}
    assert near["gpt-3.5"] == "better" and near["bloomz-7b-prefix"] == "worse"
    assert "not distinguishable" in near.values() and near["llama-7b-lora"] == ""
    text = CliRunner().invoke(app, asked).output
    assert "One seed each, unpaired." in text and "rate" not in text.splitlines()[0]
    wrong = CliRunner().invoke(app, ["published", "paper", "--task", "svam"])
    assert wrong.exit_code == 2 and "svamp" in wrong.output
