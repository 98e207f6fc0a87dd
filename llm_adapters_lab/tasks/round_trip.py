"""The round trip of an answer: encoded and decoded by the tokenizer, is it still judged right?

A tokenizer of lower-case words writes "B" as "b"; a rule that reads one line never matches a gold answer of two. On
such rows even a perfect model is counted as wrong, so they are found before anything is trained or scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from llm_adapters_lab.events import Unreadable
from llm_adapters_lab.tasks.base import Example, Rule, Task
from llm_adapters_lab.tasks.formats import Format, get_format
from llm_adapters_lab.tasks.tokens import text_ids

SHOWN = 3


def unreadable(
    tokenizer: Any,
    task: Task,
    rows: Sequence[Example],
    of: str,
    template: str | Format,
    rule: Rule,
    limit: int | None = None,
) -> Unreadable:
    """Judge a perfect answer to every row by the rule of the task; takes seconds for 170,000 rows.

    Args:
        tokenizer: of the base.
        task: has extraction and comparison.
        rows: of the task.
        of: what the rows are, "train" or "test/<task>".
        template: of the prompts.
        rule: extracts the answers.
        limit: maximum number of tokens of an answer, where it is generated. Then the row's output, the bare gold
            answer and "The answer is ..." are tried; in training only the output, which the model learns.
    """
    form = get_format(tokenizer, template)
    tried = [_perfect(task, row, form, rule, limit is None) for row in rows]
    texts = list(dict.fromkeys(text for _, answers in tried for text in answers))
    read = {}
    for text, ids in zip(texts, text_ids(tokenizer, texts), strict=True):
        read[text] = form.answer_text(ids) if limit is None or len(ids) <= limit else None
    judge, wrong = cache(partial(task.judge, rule=rule)), []
    for row, (gold, answers) in zip(rows, tried, strict=True):
        judged = [judge(read[text], gold) for text in answers]
        if judged and not any(right for _, right in judged):
            found = f"is read as {judged[-1][0]!r:.60}" if read[answers[-1]] is not None else f"exceeds {limit} tokens"
            wrong.append(f"{row.id}: {gold!r:.60} {found}")
    return Unreadable(of, len(wrong), len(rows), tuple(wrong[:SHOWN]))


def indistinct(tokenizer: Any, task: Task, rows: Sequence[Example], of: str, template: str | Format) -> Unreadable:
    """Return the rows whose gold label has the same tokens as another label, so that their likelihoods are equal."""
    form = get_format(tokenizer, template)
    texts = [form.label_target(label, Example("", "", "", "", "")) for label in task.labels]
    ids = dict(zip(task.labels, map(tuple, text_ids(tokenizer, texts)), strict=True))
    times = Counter(ids.values())
    alike = (row for row in rows if times[ids.get(row.answer, ())] > 1)
    wrong = [f"{row.id}: {row.answer!r:.60} has the tokens of another label" for row in alike]
    return Unreadable(of, len(wrong), len(rows), tuple(wrong[:SHOWN]))


def _perfect(task: Task, row: Example, form: Format, rule: Rule, trained: bool) -> tuple[str, list[str]]:
    """Return the gold answer, and the texts that give it; none where a training row states no answer."""
    said = [form.target(row)] if row.output.strip() else []
    if trained:
        gold = row.answer or (task.extract(row.output, rule) if said else None)
        return gold or "", said if gold else []
    stated = form.target(replace(row, output=f"The answer is {row.answer}."))
    return row.answer, [*said, stated, form.label_target(row.answer, row)]
