"""An unknown extraction rule judges answers, by the rule of another name.

Area: scoring
Elsewhere: found here
Before: `Task.judge("5", "5", "banana")` was right.
Here: a rule is lab or original; anything else is refused.
Verdict: silent → refused
"""

from typing import Any

import pytest

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.tasks.registry import get_task


@pytest.mark.parametrize("rule", ["banana", "Lab", "", None, 5])
def test_an_unknown_rule_judges_answers(rule: Any) -> None:
    for name in ("mini-addsub", "gsm8k", "own:x.csv?labels=yes|no"):
        with pytest.raises(BadSpec, match=r"Task\.judge: rule must be .*'lab', 'original'"):
            get_task(name).judge("5", "5", rule)
