"""Options exceed the context of the model, although the question fits.

Area: scoring
Elsewhere: found here
Before: an IndexError on learned positions, and silence on rotary ones.
Here: a row fits only together with its longest option, by label and by text; others are counted as too long. Training
    rows beyond the context are refused.
Verdict: silent → told
"""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llm_adapters_lab.evaluation.predictions import evaluate
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.tasks.answers import answer_form
from llm_adapters_lab.tasks.base import Example, Task


@pytest.mark.parametrize("protocol", ["lab", "options"])
@pytest.mark.parametrize("options", [(("yes", "yes"), ("no " * 12, "no " * 12)), (("a", "b"), ("no", "c " * 60))])
def test_options_exceed_the_context(protocol: str, options: tuple[tuple[str, str], ...]) -> None:
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=293, **size)).eval()
    long = Example("long", "a " * 56, "", options[0][0], options[0][0], options)
    short = replace(long, id="short", instruction="a", options=(("yes", "yes"), ("no", "no")))
    form = answer_form("label", tuple(label for label, _ in options))
    task = Task("own", "", lambda split, root: [long, short], **form, template="qa")
    tokenizer = Blueprint("nano").tokenizer
    found = evaluate(model, tokenizer, task, [short, long], protocol=protocol, max_new_tokens=1)
    assert {row["id"]: row.get("too_long", False) for row in found} == {"long": True, "short": False}
