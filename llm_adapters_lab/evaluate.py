"""Score a model on a task: ask, generate, read the answer, judge, count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria

from llm_adapters_lab import prompts
from llm_adapters_lab.batches import pad, prompt_ids
from llm_adapters_lab.statistics import chance, majority, wilson
from llm_adapters_lab.tasks import Example, Rule, Task


class RepeatedHeader(StoppingCriteria):
    """End a row where the model begins to repeat a header of the prompt, that is, to ask itself the next question."""

    def __init__(self, tokenizer: Any, start: int, template: str) -> None:
        """Watch for the stop strings of a template in what comes after `start` prompt tokens."""
        self.tokenizer, self.start = tokenizer, start
        self.stops = prompts.get_template(template).stop
        # A header is at most so many tokens, whatever the vocabulary: every token is at least one character.
        self.window = max(map(len, self.stops)) + 1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return for each row whether it has ended."""
        tails = input_ids[:, max(self.start, input_ids.shape[1] - self.window) :]
        texts = self.tokenizer.batch_decode(tails, skip_special_tokens=True)
        ended = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, texts: Sequence[str], max_new_tokens: int, template: str
) -> tuple[list[str], list[int]]:
    """Answer prompts greedily in one batch, padded on the left and masked.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: of that model.
        texts: the prompts.
        max_new_tokens: longest answer in tokens.
        template: prompt form, for its stop strings.

    Returns:
        The text of each answer, up to a repeated header, and its length in tokens.
    """
    rows = [prompt_ids(tokenizer, text) for text in texts]
    ids = pad(rows, tokenizer.pad_token_id, "left").to(model.device)
    mask = pad([[1] * len(row) for row in rows], 0, "left").to(model.device)
    own = getattr(model, "generation_config", None)
    ends = {tokenizer.eos_token_id}
    stated = getattr(own, "eos_token_id", None)
    ends |= set(stated) if isinstance(stated, list) else {stated}
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(e for e in ends if e is not None),
        pad_token_id=tokenizer.pad_token_id,
    )
    stop = [RepeatedHeader(tokenizer, ids.shape[1], template)]
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, stopping_criteria=stop)
    new = out[:, ids.shape[1] :]
    answers = tokenizer.batch_decode(new, skip_special_tokens=True)
    lengths = (new != tokenizer.pad_token_id).sum(-1).tolist()
    return [prompts.cut_at_stop(a, template).strip() for a in answers], lengths


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    *,
    template: str | None = None,
    batch: int = 32,
    max_new_tokens: int | None = None,
    rule: Rule = "lab",
) -> Iterator[dict[str, Any]]:
    """Yield one prediction per row: task, id, prompt, text, tokens, extracted, gold, correct.

    Prompts of like length are answered together, so the order is by length, not that of the rows.

    Args:
        model: base or adapted model, in evaluation mode.
        tokenizer: of the model.
        task: gives template, extraction and judgement.
        examples: rows of its test split.
        template: default: that of the task.
        batch: prompts at a time.
        max_new_tokens: default: that of the task.
        rule: extraction rule.
    """
    template = template or task.template
    asked = [(prompts.prompt(example, template), example) for example in examples]
    asked.sort(key=lambda pair: (len(pair[0]), pair[1].id))
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        texts, lengths = generate(
            model, tokenizer, [text for text, _ in part], max_new_tokens or task.max_new_tokens, template
        )
        for (question, example), text, tokens in zip(part, texts, lengths, strict=True):
            extracted = task.extract(text, rule)
            yield {
                "task": task.name,
                "id": example.id,
                "prompt": question,
                "text": text,
                "tokens": tokens,
                "extracted": extracted,
                "gold": example.answer,
                "correct": extracted is not None and task.same(extracted, example.answer),
            }


def score(
    task: Task, predictions: Sequence[dict[str, Any]], examples: Sequence[Example], rule: Rule = "lab"
) -> dict[str, Any]:
    """Count predictions into a score.

    Returns:
        accuracy, correct, total; low and high of its 95 % Wilson interval; chance (of guessing among the options, or
        None for numbers); majority (always saying the most common answer); in_format (share of texts from which an
        answer of the asked form could be read); extraction (the rule). Shares are between 0 and 1.
    """
    correct, total = sum(p["correct"] for p in predictions), len(predictions)
    low, high = wilson(correct, total)
    return {
        "accuracy": correct / total,
        "correct": correct,
        "total": total,
        "low": low,
        "high": high,
        "chance": chance(task, examples),
        "majority": majority([p["gold"] for p in predictions]),
        "in_format": sum(p["extracted"] is not None for p in predictions) / total,
        "extraction": rule,
    }
