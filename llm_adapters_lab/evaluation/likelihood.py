"""The likelihood of each answer that a question offers, without generating anything.

A question is read in two ways, which can differ widely. *label*: the prompt that the model is asked to answer, followed
by each label as in a trained answer ("the correct answer is answer2"). *text*: the bare question, followed by the words
of each option. A model that has never seen the form of the answers can be at chance by label and know the answers by
text; an adapter that raises the first and not the second has taught the form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.evaluation.decoding import (
    AT_ONCE,
    PromptBatch,
    can_batch,
    can_join,
    common_prefix,
    inputs_of,
    likelihoods,
    require_finite,
    shared_prefix,
)
from llm_adapters_lab.evaluation.statistics import options
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example, Task
from llm_adapters_lab.tasks.formats import Format, get_format
from llm_adapters_lab.tasks.tokens import pad, text_ids

Labels = tuple[list[int], list[list[int]]]
"""Token ids that all answers with a label begin with, and those that follow in each."""


@dataclass(frozen=True)
class Question:
    """A row to be answered.

    Attributes:
        example: the row.
        ids: token ids of its prompt.
        prompt: the text of the prompt.
        number: of the row among those to be scored.
    """

    example: Example
    ids: list[int]
    prompt: str = ""
    number: int = 0


def choice_scores(
    model: Any,
    tokenizer: Any,
    task: Task,
    questions: Sequence[Question],
    template: str | Format,
    *,
    at_once: int = AT_ONCE,
    prefix: PromptBatch | None = None,
    known: Mapping[int, Sequence[float]] | None = None,
) -> list[dict[str, dict[str, float]]]:
    """Return the log-likelihoods of each question's options in nats, summed over tokens.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        task: has the labels of questions that do not list their own.
        questions: the questions.
        template: of their prompts.
        at_once: maximum number of questions in memory, if below `AT_ONCE`.
        prefix: what all prompts begin with, if it has been read.
        known: values of the labels by question, from `read_labels`; default: the prompts are read here.

    Returns:
        {"label": {label: value}, "text": {label: value}, "text_norm": {label: value}}; the latter two are empty where
        the options have no words of their own. "text_norm" is "text" divided by the number of characters of the option,
        as in `acc_norm` of lm-eval. A common beginning of all labels counts as part of the question.

    Raises:
        NotFinite: a value is nan or infinite.
    """
    form, at_once, results = get_format(tokenizer, template), min(at_once, AT_ONCE), []
    targets = [_label_targets(task, question.example, form) for question in questions]
    prompted = dict(enumerate(question.ids for question in questions))
    by_label = known or _score(model, tokenizer, prompted, targets, at_once, prefix, False)
    worded = {i: question.example for i, question in enumerate(questions) if has_option_texts(question.example)}
    asked = text_ids(tokenizer, [prompts.cloze(example) for example in worded.values()], begin=True)
    texts = [[f" {text}" for _, text in example.options] for example in worded.values()]
    # Whole, because a common beginning counts where values are divided by lengths.
    by_text = _score(model, tokenizer, dict(zip(worded, asked, strict=True)), texts, at_once, None, True)
    for i, question in enumerate(questions):
        names, worded_options = options(question.example, task.labels), question.example.options if i in worded else ()
        text = {label: by_text[i][n] for n, (label, _) in enumerate(worded_options)}
        norm = {label: text[label] / len(words) for label, words in worded_options}
        results.append({"label": dict(zip(names, by_label[i], strict=True)), "text": text, "text_norm": norm})
    return results


def read_labels(
    model: Any,
    pad_id: int,
    labels: Sequence[Labels],
    found: dict[int, list[float]],
    batch: PromptBatch,
    rows: Sequence[int],
) -> None:
    """Add the log-likelihoods of labels to `found`; called by `greedy` with prompts after which their labels begin."""
    values = likelihoods(model, batch, [labels[row][1] for row in rows], pad_id)
    require_finite(torch.tensor([sum(each) for each in values]), rows)
    found |= zip(rows, values, strict=True)


def parted_labels(tokenizer: Any, task: Task, questions: Sequence[Question], form: Format) -> list[Labels]:
    """Return the labels of each question."""
    return [_parted(tokenizer, _label_targets(task, question.example, form)) for question in questions]


def longest_options(tokenizer: Any, task: Task, questions: Sequence[Question], template: str | Format) -> list[int]:
    """Return how many tokens each question has with its longest option, by label or by text."""
    found, form = [], get_format(tokenizer, template)
    for question in questions:
        labels = text_ids(tokenizer, _label_targets(task, question.example, form))
        found.append(len(question.ids) + max(map(len, labels), default=0))
        if has_option_texts(question.example):
            (cloze,) = text_ids(tokenizer, [prompts.cloze(question.example)], begin=True)
            texts = text_ids(tokenizer, [f" {text}" for _, text in question.example.options])
            found[-1] = max(found[-1], len(cloze) + max(map(len, texts)))
    return found


def _label_targets(task: Task, example: Example, form: Format) -> list[str]:
    return [form.label_target(label, example) for label in options(example, task.labels)]


def has_option_texts(example: Example) -> bool:
    """Return whether the options of a question have words of their own, besides their labels."""
    pairs = example.options
    return bool(pairs) and all(text.strip() and text != label for label, text in pairs)


def _score(
    model: Any,
    tokenizer: Any,
    rows: dict[int, list[int]],
    targets: list[list[str]],
    at_once: int,
    prefix: PromptBatch | None,
    whole: bool,
) -> dict[int, list[float]]:
    """Return the log-likelihoods of the targets of each row; rows are numbered by the model's further inputs."""
    answers = dict(zip(rows, (_parted(tokenizer, group, whole) for group in targets), strict=True))
    order, found = sorted(rows, key=lambda row: len(rows[row])), dict[int, list[float]]()
    by = _uncached_likelihoods
    if can_batch(model) and rows:
        with inputs_of(model, order):
            prefix = prefix or shared_prefix(model, list(rows.values()))
        by = partial(likelihoods, prefix=prefix, joins=can_join(model))
    for start in range(0, len(order), at_once):
        part = order[start : start + at_once]
        asked, rest = [rows[row] + answers[row][0] for row in part], [answers[row][1] for row in part]
        with inputs_of(model, part):
            values = by(model, asked, rest, tokenizer.pad_token_id)
        require_finite(torch.tensor([sum(each) for each in values]), part)
        found |= zip(part, values, strict=True)
    return found


def _parted(tokenizer: Any, targets: Sequence[str], whole: bool = False) -> Labels:
    """Return the token ids that all targets begin with, none if they stay `whole`, and those that follow in each."""
    answers = text_ids(tokenizer, targets)
    shared = 0 if whole else common_prefix(answers)
    return answers[0][:shared], [answer[shared:] for answer in answers]


@torch.no_grad()
def _uncached_likelihoods(
    model: Any, rows: Sequence[list[int]], answers: Sequence[Sequence[list[int]]], pad_id: int
) -> list[list[float]]:
    """Return what `likelihoods` does for any causal model, without a cache: each prompt runs with each answer."""
    results = []
    for number, (row, group) in enumerate(zip(rows, answers, strict=True)):
        ids = pad([row + answer for answer in group], pad_id, "right").to(device_of(model))
        mask = pad([[1] * (len(row) + len(answer)) for answer in group], 0, "right").to(device_of(model))
        with inputs_of(model, [number] * len(group)):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, len(row) - 1 : -1].float()
        each = logits.gather(-1, ids[:, len(row) :, None])[..., 0] - logits.logsumexp(-1)
        results.append(each.masked_fill(mask[:, len(row) :] == 0, 0).sum(-1).tolist())
    return results
