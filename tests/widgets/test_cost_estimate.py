"""Time and memory of a run as the panel shows them: estimated by a real process, or unknown."""

import asyncio
from pathlib import Path

import psutil
import pytest
from launches import small

from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.cost_estimate import CostEstimate, fits
from widgets.kit import warm


def estimates() -> list[psutil.Process]:
    return psutil.Process(warm.prepare().pid).children()


def estimated(spec: RunSpec, root: Path) -> str:
    costs = CostEstimate(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_CURRENT_TEST")  # another one would need another process
        asyncio.run(costs.estimate(spec))
    said: str = costs.widget.value
    return said


def test_memory_is_estimated_in_another_process(tmp_path: Path) -> None:
    said = estimated(small(), tmp_path)
    assert "A rough figure" in said and "✓ it fits" in said
    assert "the largest training step takes about" in said
    assert "MB of the" in said


def test_a_bare_base_needs_memory_for_its_weights(tmp_path: Path) -> None:
    said = estimated(small(base="tiny:llama"), tmp_path)
    assert "the largest training step takes about" in said
    assert "<b>Memory: </b>the weights take 5.2" in estimated(small(adapter=None), tmp_path)


@pytest.mark.parametrize(
    ("needed", "available", "said"),
    [
        (10**9, 10**10, "takes 1 GB of the 10 GB of this machine: ✓ it fits."),
        (9 * 10**9, 10**10, "takes 9 GB of the 10 GB of this machine: it will be tight."),
        (2 * 10**10, 10**10, "✗ takes 20 GB, more than the 10 GB of this machine: it does not fit."),
        (10**9, 0, "takes 1 GB."),
    ],
)
def test_memory_is_compared_with_that_of_the_machine(needed: int, available: int, said: str) -> None:
    assert fits("takes", needed, available) == said


def test_a_change_of_the_spec_ends_the_estimate(tmp_path: Path) -> None:
    async def kernel() -> None:
        costs = CostEstimate(tmp_path, wait=0)
        costs.show(small())
        while not estimates():
            await asyncio.sleep(0.01)
        assert "estimating" in costs.widget.value
        costs.show(None)
        assert costs.widget.value == ""
        while estimates():
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(kernel(), 180))
    warm.discard()
