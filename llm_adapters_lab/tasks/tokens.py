"""Turn rows into token ids with labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from llm_adapters_lab.errors import BadRow, BadSpec
from llm_adapters_lab.events import LeftOut
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Label of a token that the loss ignores (the default of torch's cross-entropy)."""
AT_ONCE = 4096
"""Number of texts given to a tokenizer at a time."""


@dataclass(frozen=True)
class Sample:
    """A tokenised row, of one or several documents; no token sees those of another document.

    Attributes:
        id: id of the row.
        ids: token ids.
        labels: as many labels; `IGNORED` where the loss does not count.
        extras: further model inputs of the row by name, for adapters that read the call (`CallContext.inputs`).
        starts: where in `ids` each document begins, from the second on.
    """

    id: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)
    starts: tuple[int, ...] = ()

    @property
    def counted(self) -> int:
        """Number of labels that the loss counts; the first token of a document is never predicted."""
        firsts = sum(self.labels[start] != IGNORED for start in self.starts)
        return sum(label != IGNORED for label in self.labels[1:]) - firsts


def documents(samples: Sequence[Sample]) -> list[Sample]:
    """Return the documents of rows as rows of their own, in order."""
    found: list[Sample] = []
    for sample in samples:
        for start, end in pairwise((0, *sample.starts, len(sample.ids))) if sample.starts else ():
            found.append(Sample(sample.id, sample.ids[start:end], sample.labels[start:end], sample.extras))
        found += [] if sample.starts else [sample]
    return found


def text_ids(tokenizer: Any, texts: Sequence[str], *, begin: bool = False) -> list[list[int]]:
    """Return the token ids of texts, in which control tokens such as ``</s>`` are ordinary characters.

    Args:
        tokenizer: of the base.
        texts: any number of them.
        begin: let the tokenizer add its begin token; an end token that it adds too is removed.
    """
    found: list[list[int]] = []
    for start in range(0, len(texts), AT_ONCE):
        part = list(texts[start : start + AT_ONCE])
        found += tokenizer(part, add_special_tokens=begin, split_special_tokens=True)["input_ids"]
    if begin:
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        for ids in found:
            while len(ids) > 1 and first is not None and ids[0] == ids[1] == first:  # added by two settings
                del ids[0]
            if ids and ids[-1] == last:
                del ids[-1]
    return found


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a prompt, in training as in scoring: one begin token if the base has it, no end token."""
    return text_ids(tokenizer, [text], begin=True)[0]


def answer_text(tokenizer: Any, answer: list[int], template: str | None) -> str:
    """Return the text of an answer as it is scored: up to a repeated header; all of it without a template."""
    text: str = tokenizer.decode(answer, skip_special_tokens=True)
    return prompts.cut_at_stop(text, template).strip() if template else text


def encode(
    tokenizer: Any, examples: Sequence[Example], template: str, max_tokens: int, loss_on: Literal["answer", "all"]
) -> tuple[list[Sample], LeftOut]:
    """Tokenise rows for training: prompt, answer, end token.

    Args:
        tokenizer: tokenizer of the base.
        examples: the rows.
        template: prompt template.
        max_tokens: longer rows are dropped, since truncation would cut the answer; so are rows without an output.
        loss_on: count the loss on the answer and the end token, or on all tokens.

    Returns:
        The samples, and the numbers of dropped rows and of those with unknown or control tokens.

    Raises:
        BadSpec: no row is left.
        BadRow: the tokenizer cannot read a control token as text.
    """
    heads = text_ids(tokenizer, [prompts.prompt(example, template) for example in examples], begin=True)
    answers = text_ids(tokenizer, [prompts.target(example, template) for example in examples])
    samples, count = [], Counter[str]()
    for example, head, answer in zip(examples, heads, answers, strict=True):
        ids = (*head, *answer, tokenizer.eos_token_id)
        if not example.output.strip():
            count["empty"] += 1
        elif len(ids) > max_tokens:
            count["too_long"] += 1
        else:
            count["unknown"] += tokenizer.unk_token_id in head[1:] or tokenizer.unk_token_id in answer
            samples.append(
                Sample(example.id, ids, (*[IGNORED] * len(head), *ids[len(head) :]) if loss_on != "all" else ids)
            )
    if not samples and count["empty"]:
        raise BadSpec(f"No training row is left: of {len(examples)}, {count['empty']} have an empty output.")
    if not samples:
        raise BadSpec(f"All {len(examples)} training rows are longer than data.max_tokens = {max_tokens}. Raise it.")
    kept = {sample.id for sample in samples}
    kept_rows = [example for example in examples if example.id in kept]
    count["control"] = count_control_rows(tokenizer, kept_rows, template)
    return samples, LeftOut(len(examples), **count)


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the id of every control token of a tokenizer, by its text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {str(token): number for number, token in added.items() if token.special} | dict(named)


def count_control_rows(tokenizer: Any, examples: Sequence[Example], template: str) -> int:
    """Return the number of rows in which a control token is written out.

    Raises:
        BadRow: the tokenizer cannot read it as text.
    """
    controls = control_tokens(tokenizer)
    written = re.compile("|".join(map(re.escape, controls)) or r"(?!)")
    found = [row for row in examples if any(map(written.search, (row.instruction, row.input, row.output)))]
    heads = text_ids(tokenizer, [prompts.prompt(row, template) for row in found], begin=True)
    answers = text_ids(tokenizer, [prompts.target(row, template) for row in found])
    for row, head, answer in zip(found, heads, answers, strict=True):
        if ids := {*head[1:], *answer} & {*controls.values()} - {tokenizer.unk_token_id}:
            names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(ids))))
            raise BadRow(f"{row.id}: the tokenizer reads {names} in its text as a control token. Remove it.")
    return len(found)


def pad(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"]) -> torch.Tensor:
    """Return rows of different lengths as one (rows, longest) tensor of int64, padded with `value`."""
    import torch  # here, so that listing the tasks does not load it

    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    pairs = zip(rows, fill, strict=True) if side == "right" else zip(fill, rows, strict=True)
    return torch.tensor([[*first, *second] for first, second in pairs], dtype=torch.long)
