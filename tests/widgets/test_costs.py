"""What a run will cost, as the panel says it: worked out by a real process, or not known."""

import asyncio
import os
from pathlib import Path

import pytest
from launches import small

from llm_adapters_lab.runs.forecast.duration import alike
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.cost_estimate import Costs, fits


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]


def worked_out(spec: RunSpec, root: Path) -> str:
    costs = Costs(root)
    asyncio.run(costs.work_out(spec))
    said: str = costs.widget.value
    return said


def test_memory_is_that_of_the_machine_s_examination(tmp_path: Path) -> None:
    said = worked_out(small(), tmp_path)
    assert "not known yet" in said and "✓ it fits" in said
    assert "training takes at its largest step about" in said
    assert "MB of the" in said


def test_time_is_that_of_runs_like_it(finished: tuple[Path, dict[str, str]]) -> None:
    root, ids = finished
    spec = Run(root / ids["lora"]).spec
    other = spec.model_copy(update={"adapter": spec.adapter.model_copy(update={"rank": 2}), "seed": 9})
    (event,) = Run(root / ids["lora"]).events("Finished")
    assert alike(other, root) == [event["seconds"]]
    assert alike(spec.model_copy(update={"base": "smollm2-135m"}), root) == []


def test_what_cannot_be_known_is_said(tmp_path: Path) -> None:
    said = worked_out(small(base="tiny:llama"), tmp_path)
    assert "not known. Only the training of an adapter on a base with a tokenizer" in said
    assert "<b>Memory: </b>the weights take 5.2" in worked_out(small(adapter=None), tmp_path)


@pytest.mark.parametrize(
    ("needed", "available", "said"),
    [
        (10**9, 10**10, "takes 1 GB of the 10 GB of this machine: ✓ it fits."),
        (9 * 10**9, 10**10, "takes 9 GB of the 10 GB of this machine: it will be tight."),
        (2 * 10**10, 10**10, "✗ takes 20 GB, more than the 10 GB of this machine: it does not fit."),
        (10**9, 0, "takes 1 GB."),
    ],
)
def test_whether_it_fits(needed: int, available: int, said: str) -> None:
    assert fits("takes", needed, available) == said


def test_a_change_ends_what_is_being_worked_out(tmp_path: Path) -> None:
    async def kernel() -> None:
        costs, before = Costs(tmp_path, wait=0), children()
        costs.show(small())
        while children() == before:
            await asyncio.sleep(0.01)
        assert "being worked out" in costs.widget.value
        costs.show(None)
        assert costs.widget.value == ""
        while children() != before:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(kernel(), 60))
