"""Tokenise rows for training."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from llm_adapters_lab.errors import BadRow, BadSpec
from llm_adapters_lab.events import LeftOut
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import Format, LossOn, get_format
from llm_adapters_lab.tasks.tokens import IGNORED, Sample, control_tokens, text_ids


def encode(
    tokenizer: Any, examples: Sequence[Example], template: str | Format, max_tokens: int, loss_on: LossOn
) -> tuple[list[Sample], LeftOut]:
    """Tokenise rows for training: prompt, answer, end token; a rejected answer makes a second document of the row.

    Args:
        tokenizer: tokenizer of the base.
        examples: the rows.
        template: prompt template, or the format that it stands for.
        max_tokens: longer rows are dropped, since truncation would cut the answer; so are rows with nothing to learn.
        loss_on: count the loss on the answer and the end token, on the last answer of a chat, or on all tokens.

    Returns:
        The samples, and the numbers of dropped rows and of those with unknown or control tokens.

    Raises:
        BadSpec: no row is left.
        BadRow: the tokenizer cannot read a control token as text, or a chat cannot be written; see `formats`.
    """
    form, count, samples = get_format(tokenizer, template), Counter[str](), []
    said = [example for example in examples if example.output.strip()]
    count["empty"] = len(examples) - len(said)
    pairs = [example for example in said if example.rejected]
    second = dict(
        zip((e.id for e in pairs), form.rows([_rejected(e) for e in pairs], loss_on, max_tokens), strict=True)
    )
    for example, written in zip(said, form.rows(said, loss_on, max_tokens), strict=True):
        parts = [written, *([second[example.id]] if example.rejected else [])]
        if max(len(part.ids) for part in parts) > max_tokens:
            count["too_long"] += 1
            continue
        ids = tuple(token for part in parts for token in part.ids)
        labels = tuple(label for part in parts for label in part.labels)
        sample = Sample(example.id, ids, labels, starts=(len(written.ids),) if example.rejected else ())
        if not sample.counted:
            count["empty"] += 1
            continue
        count["unknown"] += tokenizer.unk_token_id in ids[1:]
        samples.append(sample)
    if not samples and count["empty"]:
        raise BadSpec(f"No training row is left: of {len(examples)}, {count['empty']} have no output to learn.")
    if not samples:
        raise BadSpec(f"All {len(examples)} training rows are longer than data.max_tokens = {max_tokens}. Raise it.")
    kept = {sample.id for sample in samples}
    read_as = "allowed" if form.control_tokens == "allow" else "control"
    count[read_as] = count_control_rows(tokenizer, [row for row in examples if row.id in kept], form)
    return samples, LeftOut(len(examples), **count)


def encode_text(
    tokenizer: Any, examples: Sequence[Example], max_tokens: int, validation: int = 0, control: bool = False
) -> tuple[list[Sample], LeftOut]:
    """Tokenise documents for continued pre-training: begin token, text, end token, all of them learnt.

    Longer documents are split, so that no piece has more than `max_tokens` tokens; no token sees those of another
    piece. The pieces are packed into samples of at most that length, the longest first, each where it fits best. A
    document that is held out for validation is a sample of its own.

    Args:
        tokenizer: of the base.
        examples: the documents.
        max_tokens: of a piece and of a sample.
        validation: number of first documents that are held out.
        control: read control tokens that are written out as tokens.

    Raises:
        BadSpec: no document is left.
    """
    said = [example for example in examples if example.output.strip()]
    count = Counter(empty=len(examples) - len(said))
    pieces: list[tuple[str, list[tuple[int, ...]]]] = []
    ids_of = text_ids(tokenizer, [example.output for example in said], begin=True, control=control)
    for example, found in zip(said, ids_of, strict=True):
        ids = (*found, tokenizer.eos_token_id)
        count["split"] += len(ids) > max_tokens
        count["unknown"] += tokenizer.unk_token_id in ids[1:]
        pieces.append((example.id, [ids[at : at + max_tokens] for at in range(0, len(ids), max_tokens)]))
    held_out, learnt = pieces[:validation], pieces[validation:]
    bins: list[tuple[str, list[tuple[int, ...]]]] = []
    room: list[tuple[int, int]] = []  # free tokens and number of every sample, ascending
    for name, piece in sorted(((n, p) for n, parts in learnt for p in parts), key=lambda pair: -len(pair[1])):
        at = bisect_left(room, (len(piece), 0))
        free, number = room.pop(at) if at < len(room) else (max_tokens, len(bins))
        if number == len(bins):
            bins.append((name, []))
        bins[number][1].append(piece)
        insort(room, (free - len(piece), number))
    samples = [_of_pieces(name, parts) for name, parts in (*held_out, *bins)]
    if not samples:
        raise BadSpec(f"No document is left: of {len(examples)}, {count['empty']} are empty.")
    controls = control_tokens(tokenizer)
    count["allowed" if control else "control"] = sum(
        any(token in example.output for token in controls) for example in said
    )
    return samples, LeftOut(len(examples), **count)


def _of_pieces(name: str, parts: Sequence[tuple[int, ...]]) -> Sample:
    ids = tuple(token for part in parts for token in part)
    starts = tuple(accumulate(map(len, parts)))[:-1]
    labels = tuple(IGNORED if at in {*starts} else token for at, token in enumerate(ids))
    return Sample(name, ids, labels, starts=starts)


def _rejected(row: Example) -> Example:
    """Return a row with its rejected answer in place of the chosen one."""
    last = {"role": "assistant", "content": row.rejected}
    return replace(row, output=row.rejected, messages=(*row.messages[:-1], last) if row.messages else ())


def count_control_rows(tokenizer: Any, examples: Sequence[Example], template: str | Format) -> int:
    """Return the number of rows in which a control token is written out.

    Raises:
        BadRow: the tokenizer cannot read it as text.
    """
    controls, form = control_tokens(tokenizer), get_format(tokenizer, template)
    written = re.compile("|".join(map(re.escape, controls)) or r"(?!)")
    found = [
        row
        for row in examples
        if any(map(written.search, (row.instruction, row.input, row.output, row.rejected)))
        or (row.messages and written.search(json.dumps([row.messages, row.tools], ensure_ascii=False)))
    ]
    if form.chat or form.control_tokens == "allow":
        return len(found)
    heads, answers = form.prompts(found), text_ids(tokenizer, [form.target(row) for row in found])
    for row, (_, head), answer in zip(found, heads, answers, strict=True):
        if ids := {*head[1:], *answer} & {*controls.values()} - {tokenizer.unk_token_id}:
            names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(ids))))
            raise BadRow(f"{row.id}: the tokenizer reads {names} in its text as a control token. Remove it.")
    return len(found)
