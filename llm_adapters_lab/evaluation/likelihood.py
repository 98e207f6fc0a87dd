"""How likely a model finds each of the answers that a question offers, without generating anything.

Two readings of one question, because they can differ widely. *label*: the prompt that the model is asked to answer,
followed by each label as a trained answer has it ("the correct answer is answer2"). *text*: the bare question, followed
by the words of each option. A model that has never seen the form of the answers can be at chance by label and know the
answers by text; an adapter that lifts the first and not the second has taught the form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.evaluation.decoding import can_batch, common, likelihoods
from llm_adapters_lab.evaluation.statistics import options
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example, Task
from llm_adapters_lab.tasks.tokens import pad, prompt_ids

AT_ONCE = 16
"""Most prompts whose options run together: their logits are options x tokens x vocabulary numbers."""


@dataclass(frozen=True)
class Choice:
    """A question to choose an answer to: the row, and the tokens of its prompt."""

    example: Example
    ids: list[int]


def choice_scores(
    model: Any, tokenizer: Any, task: Task, items: Sequence[Choice], template: str
) -> list[dict[str, dict[str, float]]]:
    """Return for each question the log-likelihoods of its options in nats, summed over tokens.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        task: gives the labels where a question does not list its own.
        items: the questions.
        template: that of their prompts.

    Returns:
        {"label": {label: value}, "text": {label: value}}; "text" is empty where the options have no words of their own.
        What all answers of a question begin with is part of the question: it adds the same to each.
    """
    results: list[dict[str, dict[str, float]]] = []
    for start in range(0, len(items), AT_ONCE):
        part = items[start : start + AT_ONCE]
        labels = [options(item.example, task.labels) for item in part]
        targets = [
            [prompts.label_target(label, item.example, template) for label in names]
            for item, names in zip(part, labels, strict=True)
        ]
        by_label = _score(model, tokenizer, [item.ids for item in part], targets)
        asked = [item.example for item in part if worded(item.example)]
        questions = [prompt_ids(tokenizer, prompts.cloze(example)) for example in asked]
        texts = [[f" {text}" for _, text in example.options] for example in asked]
        by_text = dict(zip((e.id for e in asked), _score(model, tokenizer, questions, texts), strict=True))
        for item, names, values in zip(part, labels, by_label, strict=True):
            given = (label for label, _ in item.example.options)
            found = dict(zip(given, by_text.get(item.example.id, ()), strict=False))
            results.append({"label": dict(zip(names, values, strict=True)), "text": found})
    return results


def worded(example: Example) -> bool:
    """Say whether the options of a question have words of their own, beside their labels."""
    pairs = example.options
    return bool(pairs) and all(text.strip() and text != label for label, text in pairs)


def _score(
    model: Any, tokenizer: Any, rows: Sequence[list[int]], targets: Sequence[Sequence[str]]
) -> list[list[float]]:
    if not rows:
        return []
    answers = [[tokenizer(t, add_special_tokens=False)["input_ids"] for t in group] for group in targets]
    shared = [common(group) for group in answers]
    asked = [row + group[0][:n] for row, group, n in zip(rows, answers, shared, strict=True)]
    rest = [[answer[n:] for answer in group] for group, n in zip(answers, shared, strict=True)]
    by = likelihoods if can_batch(model) else _whole
    return by(model, asked, rest, tokenizer.pad_token_id)


@torch.no_grad()
def _whole(
    model: Any, rows: Sequence[list[int]], answers: Sequence[Sequence[list[int]]], pad_id: int
) -> list[list[float]]:
    """Do the work of `likelihoods` for any causal model: every prompt with every answer, without a cache."""
    results = []
    for row, group in zip(rows, answers, strict=True):
        ids = pad([row + answer for answer in group], pad_id, "right").to(device_of(model))
        mask = pad([[1] * (len(row) + len(answer)) for answer in group], 0, "right").to(device_of(model))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, len(row) - 1 : -1].float()
        each = logits.gather(-1, ids[:, len(row) :, None])[..., 0] - logits.logsumexp(-1)
        results.append((each * mask[:, len(row) :]).sum(-1).tolist())
    return results
