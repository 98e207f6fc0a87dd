"""NaN logits are scored as an answer.

Area: scoring
Elsewhere: found here; fp16 overflow and damaged files in many threads.
Before: the first label or token won, and the run ended as finished.
Here: scoring fails by name, with task and rows, whatever the protocol; the adapter and the answers so far are kept.
Verdict: silent → refused
"""

from pathlib import Path
from typing import Any

import pytest
from small_bases import nano_with_nan

from llm_adapters_lab.errors import NotFinite
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec


@pytest.mark.parametrize("protocol", ["lab", "paper", "options"])
def test_nan_logits_are_refused(protocol: str, tmp_path: Path) -> None:
    scoring: dict[str, Any] = {"tasks": ["mini-bool"], "rows": 6, "protocol": protocol, "max_new_tokens": 4}
    spec = RunSpec.parse({"base": str(nano_with_nan(tmp_path / "base")), "eval": scoring})
    for _ in range(2):  # it fails again, and is not taken for finished
        with pytest.raises(NotFinite, match=r"mini-bool cannot be scored, rows mini-bool/test/\d.* nan or infinite"):
            run(spec, root=tmp_path / "runs")
        record = Run(tmp_path / "runs" / spec.id)
        assert (record.summary["status"], record.summary["stage"]) == ("failed", "scoring")
        assert not record.done
        assert not list(record.predictions())
