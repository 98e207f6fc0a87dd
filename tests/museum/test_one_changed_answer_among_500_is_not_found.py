"""One answer among 500 that the adapter gets wrong and the base right is not found.

Area: comparison
Elsewhere: h2o-llmstudio#695, ms-swift#4660, unsloth#969: a way to see what fine-tuning has broken is asked for.
Before: `compare --items` named the row, but neither what was said nor how likely it was; the panel did not list rows.
Here: `compare --items`, the report and the Compare panel show the row with both answers and their log-likelihoods.
Verdict: silent → told
"""

from pathlib import Path

from records import make_answers
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.results.paired_tests import disagreements
from llm_adapters_lab.results.reports import report
from widgets import ComparePanel


def test_the_row_is_found_with_both_answers(tmp_path: Path) -> None:
    base = make_answers(tmp_path, None, [True] * 500)
    adapted = make_answers(tmp_path, {"type": "lora"}, [True] * 321 + [False] + [True] * 178)
    (item,) = disagreements(base, adapted)
    assert (item["id"], item["right"]) == ("mini-bool/test/321", "first")
    assert item["first_options"]["label"] == {"true": -0.25, "false": -1.5}
    shown = CliRunner().invoke(app, ["compare", str(base.folder), str(adapted.folder), "--items"]).stdout
    page = report([base, adapted], tmp_path / "report.html").read_text(encoding="utf-8")
    for text in (shown, page):
        for words in ("it is true", "it is false", "true -0.25", "true -1.50"):
            assert words in text
    panel = ComparePanel(tmp_path)
    panel.view.value = "Items"
    panel.items.outcome.value = "A right, B wrong" if panel.items.first.value == base.id else "A wrong, B right"
    (row,) = panel.items.list.items
    assert "mini-bool/test/321" in shown and row["id"] == "mini-bool/test/321"
    assert {"it is true", "it is false"} == {answer["said"].strip() for answer in row["answers"]}
    panel.close()
