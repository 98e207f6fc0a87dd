"""A truth value in a spec becomes the number one.

Area: training
Elsewhere: found here
Before: `validation: true`, `max_steps: true` and `learning_rate: true` were taken as 1, 1 and 1.0.
Here: true and false are refused wherever a spec or a sweep takes a number, also inside a list.
Verdict: silent → refused
"""

import pytest

from llm_adapters_lab.config import change
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.spec import Sweep

NUMBERS = ("data.validation", "data.rows", "train.max_steps", "train.learning_rate", "eval.rows", "seed")
FIELDS = (*NUMBERS, "adapter.rank", "adapter.alpha", "adapter.dropout")


@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_becomes_the_number_one(value: bool) -> None:
    for name in FIELDS:
        with pytest.raises(BadSpec, match=f"{name}: must be a.* number.*given was {str(value).lower()}"):
            RunSpec.parse(change({"adapter": "lora"}, {name: value}))
    for part in ({"seeds": [value, 2]}, {"random": {"count": value, "seed": 0, "fields": {"seed": {"choice": [1]}}}}):
        with pytest.raises(BadSpec, match="given was"):
            Sweep.parse({"spec": {}, **part})
    spec = RunSpec.parse({"train": {"deterministic": value}, "data": {"allow_dropped": value}})
    assert spec.train.deterministic is spec.data.allow_dropped is value
    assert Sweep.parse({"spec": {}, "grid": {"train.packing": [True, False]}}).grid == {"train.packing": [True, False]}
