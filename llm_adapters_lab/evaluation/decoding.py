"""Answers and likelihoods in batches: what prompts begin with alike is computed once, and finished rows leave.

Prompts stand padded on the left, so that every row ends in the last column:

    . . . T T T q q        T: the beginning that all prompts share (template, examples)
    . T T T q q q q        q: the rest of the question
    T T T q q q q q        .: padding, masked

The leftmost columns hold padding and T alone. T runs through the model once; its keys and values are copied into those
columns of every row, and only the columns after them run for the whole batch. Nothing moves, so that rotary, learned
and linear-bias positions and sliding windows see what they would see without the short cut.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from llm_adapters_lab.core.call_context import looks_back
from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.tokens import pad

PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)


@dataclass
class Prompts:
    """A batch of prompts that a model has read.

    Attributes:
        cache: keys and values, one batch row for each prompt.
        mask: 1 for tokens, 0 for padding, (rows, columns).
        logits: of the last column, (rows, vocabulary).
    """

    cache: DynamicCache
    mask: torch.Tensor
    logits: torch.Tensor

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may come several times."""
        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        self.cache.batch_select_indices(index)


class Ended:
    """Say of an answer whether it is complete: an end token, or a header of the prompt that the model repeats."""

    def __init__(self, model: Any, tokenizer: Any, template: str | None) -> None:
        """Collect the end tokens of model and tokenizer and the stop strings of a template; None has none."""
        stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        given = {tokenizer.eos_token_id} | set(stated if isinstance(stated, list) else [stated])
        self.tokens = sorted(token for token in given if token is not None)
        self.tokenizer, self.stops = tokenizer, prompts.get_template(template).stop if template else ()
        # A header is at most so many tokens, whatever the vocabulary: every token is at least one character.
        self.window = max(map(len, self.stops), default=0) + 1

    def __call__(self, answer: list[int]) -> bool:
        """Return whether this answer has ended with its last token."""
        if answer[-1] in self.tokens:
            return True
        tail = self.tokenizer.decode(answer[-self.window :], skip_special_tokens=True)
        return any(stop in tail for stop in self.stops)


def context(model: Any) -> int | None:
    """Return how many real tokens fit the model; None where it states no limit.

    What an adapter puts in front of every prompt takes its place.
    """
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is None or not can_batch(model):
        return limit
    front = read(model, [[0]], 0).cache.get_seq_length() - 1
    return int(limit) - front


def can_batch(model: Any) -> bool:
    """Say whether this loop knows the model's cache: nothing but keys and values, full or in a sliding window.

    Others (state-space and hybrid models, quantised caches) are left to `generate` of transformers.
    """
    supported = getattr(model, "_supports_default_dynamic_cache", None)
    if supported is None or not supported() or model.config.is_encoder_decoder:
        return False
    return all(type(layer) in PLAIN for layer in _empty(model).layers)


def common(rows: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens all rows share, leaving every row at least one token of its own."""
    limit = max(0, min(map(len, rows)) - 1)
    first = rows[0]
    return next((i for i in range(limit) if any(row[i] != first[i] for row in rows)), limit)


@torch.no_grad()
def read(model: Any, rows: Sequence[Sequence[int]], pad_id: int) -> Prompts:
    """Run prompts through a model.

    Args:
        model: one that `can_batch`, in evaluation mode.
        rows: token ids of each prompt; none is empty.
        pad_id: fills the columns on the left.
    """
    ids = pad(rows, pad_id, "left").to(device_of(model))
    mask = pad([[1] * len(row) for row in rows], 0, "left").to(device_of(model))
    # What an adapter remembers of the shared beginning stands elsewhere in every row.
    shares = len(rows) > 1 and not looks_back(model)
    cache, shared = _empty(model), common(rows) if shares else 0
    if shared:
        first = torch.tensor([rows[0][:shared]], device=device_of(model))
        _forward(model, first, torch.ones_like(first), cache)
        if not _spread(cache, ids.shape[1] - mask.sum(-1), shared):
            cache, shared = _empty(model), 0
    return Prompts(cache, mask, _forward(model, ids[:, shared:], mask, cache)[:, -1])


@torch.no_grad()
def advance(model: Any, state: Prompts, tokens: torch.Tensor) -> None:
    """Let every row of a batch read one more token; `tokens` is (rows,)."""
    state.mask = torch.cat([state.mask, state.mask.new_ones(len(tokens), 1)], dim=1)
    state.logits = _forward(model, tokens[:, None], state.mask, state.cache)[:, -1]


@torch.no_grad()
def greedy(
    model: Any, rows: Sequence[Sequence[int]], pad_id: int, limit: int, ended: Callable[[list[int]], bool]
) -> list[list[int]]:
    """Answer prompts with the likeliest token at every step.

    Args:
        model: one that `can_batch`, in evaluation mode.
        rows: token ids of each prompt.
        pad_id: fills the columns on the left.
        limit: most tokens of an answer, 1 or more.
        ended: says of an answer so far whether it is complete.

    Returns:
        The tokens of each answer, the one it ended with included.
    """
    answers: list[list[int]] = [[] for _ in rows]
    running, state = list(range(len(rows))), read(model, rows, pad_id)
    while True:
        chosen = state.logits.argmax(-1)
        for row, token in zip(running, chosen.tolist(), strict=True):
            answers[row].append(token)
        going = [at for at, row in enumerate(running) if len(answers[row]) < limit and not ended(answers[row])]
        if not going:
            return answers
        if len(going) < len(running):
            state.keep(going)
            running, chosen = [running[at] for at in going], chosen[going]
        advance(model, state, chosen)


@torch.no_grad()
def likelihoods(
    model: Any, rows: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], pad_id: int
) -> list[list[float]]:
    """Return the log-likelihood of every answer after its prompt, in nats; each prompt is computed once.

    Args:
        model: one that `can_batch`, in evaluation mode.
        rows: token ids of each prompt.
        answers: for each prompt the token ids of its possible answers, none of them empty.
        pad_id: fills the columns on the left of prompts and on the right of answers.
    """
    state = read(model, rows, pad_id)
    owner = [row for row, group in enumerate(answers) for _ in group]
    flat = [answer for group in answers for answer in group]
    targets = pad(flat, pad_id, "right").to(device_of(model))
    counted = pad([[1] * len(answer) for answer in flat], 0, "right").to(device_of(model))
    logits = state.logits[torch.tensor(owner, device=device_of(model))][:, None]
    if targets.shape[1] > 1:
        state.keep(owner)
        # The last token of an answer is predicted, not read.
        mask = torch.cat([state.mask, counted[:, 1:]], dim=1)
        after = _forward(model, targets[:, :-1], mask, state.cache, keep=targets.shape[1] - 1)
        logits = torch.cat([logits, after], dim=1)
    logits = logits.float()
    each = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
    sums = iter((each * counted).sum(-1).tolist())
    return [[next(sums) for _ in group] for group in answers]


def _empty(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _forward(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, keep: int = 1) -> torch.Tensor:
    """Return the logits of the last `keep` columns, (rows, keep, vocabulary); the cache grows by all of `ids`."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    extra = {"position_ids": positions, "logits_to_keep": keep}
    accepted = inspect.signature(model.forward).parameters
    options = {name: value for name, value in extra.items() if name in accepted}
    out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options)
    logits: torch.Tensor = out.logits[:, -keep:]
    return logits


def _spread(cache: DynamicCache, padding: torch.Tensor, shared: int) -> bool:
    """Copy one row of `shared` columns into the first columns of every row, behind its padding; False where in vain.

    What an adapter has put in front of the real tokens stays in front.
    """
    every: list[Any] = cache.layers
    layers = [layer for layer in every if layer.is_initialized]
    if any(type(layer) not in PLAIN or layer.keys.shape[-2] != layer.get_seq_length() for layer in layers):
        return False  # a sliding window has dropped the first of them
    columns = torch.arange(shared, device=padding.device)[None]
    source = (columns - padding[:, None]).clamp(min=0)  # masked where there is padding
    for layer in layers:
        front = layer.keys.shape[-2] - shared
        kept = torch.arange(front, device=padding.device).expand(len(padding), -1)
        index = torch.cat([kept, source + front], dim=1).to(layer.keys.device)
        layer.keys, layer.values = (t[0][:, index].transpose(0, 1).contiguous() for t in (layer.keys, layer.values))
    return True
