"""Every registered adapter learns in `run` on the packaged model, is saved, and restored exactly."""

from pathlib import Path

import pytest
import torch
from contract import required

from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.evaluation.decoding import StopRule
from llm_adapters_lab.evaluation.predictions import answer
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.tokens import prompt_ids

# Methods with few parameters, or with large initial values, need a larger learning rate to learn in a few steps.
RATES = {
    "prefix": 0.3,
    "prompt-tuning": 0.3,
    "parscale": 0.1,
    "ia3": 0.1,
    "bitfit": 0.03,
    "norm-tuning": 0.03,
    "krona": 0.03,
}


@pytest.mark.parametrize("kind", sorted(all_adapters()))
def test_it_learns_and_is_restored(kind: str, tmp_path: Path) -> None:
    fields = {
        "base": "nano",
        "adapter": {"type": kind, **required(kind)},
        "data": {"task": "mini-math", "rows": 16, "max_tokens": 128},
        "train": {"batch": 16, "epochs": 12, "schedule": "constant", "learning_rate": RATES.get(kind, 3e-3)},
        "eval": {"tasks": ["mini-addsub"], "rows": 2, "batch": 2, "max_new_tokens": 4},
    }
    record = run(RunSpec.parse(fields), root=tmp_path)
    losses = [event["loss"] for event in record.events("Step")]
    assert losses[-1] < 0.9 * losses[0], losses
    (norms,) = [event["norms"] for event in record.events("Norms")][-1:]
    assert norms and all(value > 0 for value in norms.values())

    base, injection = restore(record)
    assert injection is not None
    assert injection.count() == record.summary["trainable_parameters"]
    asked = sorted(record.predictions(), key=lambda row: len(row["prompt"]))
    rows = [prompt_ids(base.tokenizer, row["prompt"]) for row in asked]
    answers = answer(base.model, base.tokenizer.pad_token_id, rows, 4, StopRule(base.model, base.tokenizer, "alpaca"))
    form = get_format(base.tokenizer, "alpaca")
    assert [form.answer_text(tokens) for tokens in answers] == [row["text"] for row in asked]
    with injection.disabled(), torch.no_grad():
        plain = base.model(torch.tensor([[5, 6, 7]])).logits
    injection.eject()
    assert torch.equal(base.model(torch.tensor([[5, 6, 7]])).logits, plain)
