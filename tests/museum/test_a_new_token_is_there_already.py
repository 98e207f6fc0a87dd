"""A token is added that the tokenizer has already: nothing is added, and nothing says so.

Area: tokens
Elsewhere: `add_tokens` of transformers returns 0, and the resize that follows adds nothing.
Here: refused by name and id before any weight is loaded, as are blank tokens, and starts of unknown words.
Verdict: refused → refused
"""

import pytest

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.preflight import preflight
from llm_adapters_lab.runs.spec import RunSpec


def test_a_token_that_exists_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", pytest.fail)
    for token, match in (
        ("</s>", r"'</s>' is a token of this base already \(id 2\)"),
        ("the", "already"),
        (" ", "blank"),
    ):
        spec = RunSpec.parse({"adapter": "lora", "data": {"task": "mini-math", "rows": 4}, "tokens": [token]})
        with pytest.raises(BadSpec, match=match):
            preflight(spec, Blueprint(*spec.base_parts))
