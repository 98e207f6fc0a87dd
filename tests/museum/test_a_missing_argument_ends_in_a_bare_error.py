"""A missing argument, or one of another type, ends in a bare Python error somewhere below.

Area: training
Elsewhere: found here
Before: `'NoneType' object is not iterable` for a split None, `'int' object has no attribute 'split'` for `{1: 2}`, and
    `'tuple' object has no attribute 'id'` for a study of one spec.
Here: the function, the argument, its type and what was given are named.
Verdict: crash → refused
"""

from typing import Any

import pytest

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.spec import Sweep
from llm_adapters_lab.sweeps.studies import study
from llm_adapters_lab.tasks.registry import get_task

WRONG: dict[str, Any] = {
    "RunSpec.load: path must be str | Path; given was None": lambda none: RunSpec.load(none),
    "RunSpec.load: changes must be dict": lambda none: RunSpec.load("quick", {1: 2}),  # type: ignore[dict-item]
    "RunSpec.load: changes must be dict.*given was .'seed=1'.": lambda none: RunSpec.load("quick", ["seed=1"]),  # type: ignore[arg-type]
    "Sweep.load: path must be": lambda none: Sweep.load(none),
    "Task.load: split must be str; given was None": lambda none: get_task("mini-bool").load(none),
    "Task.judge: text must be str": lambda none: get_task("mini-bool").judge(5, "5", "lab"),  # type: ignore[arg-type]
    "study: specs must be Sequence.RunSpec.": lambda none: study(RunSpec()),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("words", WRONG)
def test_a_missing_argument_ends_in_a_bare_error(words: str) -> None:
    with pytest.raises(BadSpec, match=words):
        WRONG[words](None)
