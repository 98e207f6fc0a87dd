"""Two threads that run one model at the same time get each other's state.

Area: scoring
Elsewhere: found here.
Before: with virtual tokens before the input, outputs came back too long by their number, or another thread's were cut.
Here: the state of a call is kept by thread. Adapters that stand in for parameters of the base, or read the call, refuse
a second thread.
Verdict: silent → right
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from composition_cases import put
from contract import logits, tokens

from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import CannotInject
from llm_adapters_lab.models.random_models import tiny


@pytest.fixture(autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("kind", ["prompt-tuning", "p-tuning", "prefix", "series", "norm-tuning", "conv"])
def test_each_thread_gets_its_own_outputs(kind: str) -> None:
    model, cases = tiny("tiny:llama"), [tokens(1, 5), tokens(3, 9)]
    put(model, "a", kind, **get_adapter(kind).cls.example)
    expected = [logits(model, ids) for ids in cases]

    def work(number: int) -> int:
        for done in range(30):
            try:
                found = logits(model, cases[number])
            except CannotInject as error:
                assert "Another thread" in str(error)
                return done
            torch.testing.assert_close(found, expected[number])
        return 30

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(work, [0, 1])) == 60 or kind in ("norm-tuning", "conv")
    torch.testing.assert_close(logits(model, cases[0]), expected[0])
