"""The end token is masked as padding, and the model never learns to stop.

Area: tokens
Elsewhere: trl#1623, #2059, trl#3091, #5988, alignment-handbook#127, transformers#25790
Here: labels are masked by position, not by token id, so the end token counts also where it is the padding token; any
    of several end tokens ends an answer.
Verdict: right → right
"""

from types import SimpleNamespace

import torch

from llm_adapters_lab.evaluation.decoding import StopRule
from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.tasks.encoding import encode
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import IGNORED
from llm_adapters_lab.training.batches import collate


def test_an_answer_never_ends() -> None:
    tokenizer = load_base("nano").tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    rows = get_task("mini-math").load("train")[:16]
    for loss_on in ("answer", "all"):
        samples, _ = encode(tokenizer, rows, "qa", 256, loss_on)
        batch = collate(samples, tokenizer.pad_token_id)
        last = batch["attention_mask"].sum(-1) - 1
        assert (batch["labels"].gather(-1, last[:, None]) == end).all()
        assert (batch["labels"] == end).sum() == len(rows)
        assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    several = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[end, 17]))
    rule = StopRule(several, tokenizer, "qa")
    assert torch.tensor([rule([5, end]), rule([5, 17]), rule([5, 18])]).tolist() == [True, True, False]
