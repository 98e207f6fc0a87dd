"""A long option loses to a short one, or a score called acc_norm is not the one of lm-eval.

Area: scoring
Elsewhere: lm-eval divides by characters (acc_norm) or bytes (acc_bytes), other tools by tokens; numbers are compared.
Before: only the plain sum was offered, as "by text".
Here: `acc_norm` beside it divides the log-likelihood of an option by its characters, with the tokens that all options
begin with.
Verdict: silent → right
"""

import pytest

from llm_adapters_lab.evaluation.likelihood import Question, _uncached_likelihoods, choice_scores
from llm_adapters_lab.evaluation.scoring import count
from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.registry import get_task


def test_acc_norm_is_that_of_lm_eval() -> None:
    base, task = load_base("nano"), get_task("mini-bool")
    words = (("true", "the big red dog"), ("false", "the big cat of my old aunt"))
    row = Example("row", "Who is it? true: the big red dog", "", "", "true", words)
    ids = base.tokenizer(prompts.cloze(row))["input_ids"]
    whole = [base.tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for _, text in words]
    (sums,) = _uncached_likelihoods(base.model, [ids], [whole], 0)
    question = Question(row, base.tokenizer("Who is it?")["input_ids"])
    (found,) = choice_scores(base.model, base.tokenizer, task, [question], "qa")
    expected = {label: total / len(text) for (label, text), total in zip(words, sums, strict=True)}
    assert found["text_norm"] == pytest.approx(expected, abs=1e-5)
    fixed = {"extracted": None, "correct": False, "gold": "false", "text": None}
    options = {"label": {}, "text": {"true": -6.0, "false": -9.0}, "text_norm": {"true": -0.4, "false": -0.3}}
    score = count([fixed | {"options": options}])
    assert (score["by_text"], score["acc_norm"]) == (0, 1)
