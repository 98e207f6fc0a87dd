"""A wrong type ends in an AttributeError deep inside, or is taken for something else.

Area: adapters
Elsewhere: found here.
Before: `stack(model, ["a"])`, `mix(model, {"a": "0.5"})`, `inject(model, {...})`, and conv, prefix and prompt tuning on
a ViT raised TypeError, KeyError or AttributeError.
Here: every public function names the argument, what it must be and what was given, before it does anything.
Verdict: crash → refused
"""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import ViTConfig, ViTModel

import llm_adapters_lab as lab
from llm_adapters_lab.core import get_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject
from llm_adapters_lab.models.random_models import tiny

WRONG: list[Callable[[Any, Any], Any]] = [
    lambda model, a: lab.stack(model, ["a"]),  # type: ignore[arg-type]
    lambda model, a: lab.mix(model, {"a": "0.5"}),  # type: ignore[dict-item]
    lambda model, a: lab.inject(model, {"type": "lora"}),  # type: ignore[arg-type]
    lambda model, a: lab.merge(model),
    lambda model, a: lab.save_adapter(model, "x"),
    lambda model, a: lab.compare("runs"),  # type: ignore[arg-type]
    lambda model, a: lab.run({"base": "nano"}),  # type: ignore[arg-type]
    lambda model, a: lab.Recorder(a),
    lambda model, a: lab.inspection.streams(model, [1, 2]),
]


@pytest.mark.parametrize("call", WRONG)
def test_wrong_types_are_refused_by_name(call: Callable[[Any, Any], Any]) -> None:
    model = tiny("tiny:llama")
    a = lab.inject(model, get_adapter("lora").config(type="lora"), name="a")
    with pytest.raises(BadSpec, match=r"\w+: \w+ must be .*; given was "):
        call(model, a)
    size: dict[str, Any] = {"image_size": 16, "patch_size": 8, "num_hidden_layers": 1}
    vit = ViTModel(ViTConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2, **size))
    for kind in ("conv", "prefix", "prompt-tuning"):
        with pytest.raises(CannotInject, match=f"'{kind}' acts on rows of tokens, and ViTModel has none"):
            lab.inject(vit, get_adapter(kind).config(type=kind))
