"""What a draft costs: parameters counted, memory estimated by a real process, time from finished runs."""

import asyncio
from pathlib import Path

import psutil
import pytest
from launches import small

from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.cost_strip import CostStrip, fits
from widgets.kit import warm
from widgets.kit.draft import Draft, make_draft


def estimates() -> list[psutil.Process]:
    return psutil.Process(warm.prepare().pid).children()


def estimated(draft: Draft, root: Path) -> str:
    costs = CostStrip(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_CURRENT_TEST")  # another one would need another process
        asyncio.run(costs.estimate(draft))
    said: str = costs.widget.value
    return said


def of(spec: RunSpec) -> Draft:
    return make_draft(spec, {})


def test_parameters_memory_and_time(tmp_path: Path) -> None:
    said = estimated(of(small()), tmp_path)
    assert "<b>12,288</b> trainable (0.93 %)" in said
    assert "~" in said and " MB of " in said and "roughly 0:" in said


def test_a_sweep_costs_all_its_runs(tmp_path: Path) -> None:
    varied = {"adapter.rank": [2, 8], "seed": [0, 1, 2]}
    said = estimated(make_draft(small(), varied, {"adapter.alpha": ("adapter.rank", 2.0)}), tmp_path)
    assert "<b>6,144 – 24,576</b> trainable" in said and "for all 6 runs" in said


def test_a_bare_base_needs_memory_for_its_weights(tmp_path: Path) -> None:
    said = estimated(of(small(adapter=None)), tmp_path)
    assert "nothing is trained" in said and "~5.27 MB of" in said


def test_what_cannot_be_estimated_says_why(tmp_path: Path) -> None:
    said = estimated(of(small(base="no/such/model")), tmp_path)
    assert said.count("unknown") >= 1 and "no/such/model" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("needed", "available", "said", "look"),
    [
        (10**9, 10**10, "~1 GB of 10 GB", 'class=""'),
        (9 * 10**9, 10**10, "~9 GB of 10 GB: tight", "lab-warn"),
        (2 * 10**10, 10**10, "✗ ~20 GB of 10 GB: does not fit", "lab-bad"),
        (10**9, 0, "~1 GB", "title"),
    ],
)
def test_memory_is_compared_with_that_of_the_machine(needed: int, available: int, said: str, look: str) -> None:
    assert f">{said}<" in fits(needed, available, "a step") and look in fits(needed, available, "a step")


def test_a_change_of_the_draft_ends_the_estimate(tmp_path: Path) -> None:
    async def kernel() -> None:
        while estimates():  # of an earlier test
            await asyncio.sleep(0.01)
        costs = CostStrip(tmp_path, wait=0, pause=0)
        costs.show(of(small()))
        while not estimates():
            await asyncio.sleep(0.01)
        assert "…" in costs.widget.value and "trainable" in costs.widget.value
        costs.show(None)
        assert costs.widget.value == ""
        while estimates():
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(kernel(), 180))
    warm.discard()
