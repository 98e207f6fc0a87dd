"""Batched decoding with a key/value cache: a common prefix is computed once, and new rows replace finished ones.

Prompts are padded on the left, so every row ends in the last column:

    . . . T T T q q        T: the prefix that all prompts share (template, examples)
    . T T T q q q q        q: the rest of the question
    T T T q q q q q        .: padding, masked

The leftmost columns hold only padding and T. T runs through the model once, its keys and values are copied into those
columns of every row, and only the remaining columns run for the whole batch. No token changes its column, so rotary,
learned and linear-bias positions and sliding windows behave as without this shortcut.

Rows that are still being answered are joined by new ones whose prompts ran on their own: the narrower of both is padded
on the left, so that the distances between the columns of a row stay the same.

Where it is known how an answer is likely to start ("the correct answer is"), those tokens run in one pass. They count
if each of them is what the model chooses there; otherwise the answer starts again from its prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad as widen
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from llm_adapters_lab.adapters.shared.virtual_tokens import VirtualEmbeddings
from llm_adapters_lab.core.call_context import context_of, looks_back, reads_inputs
from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.errors import BadSpec, NotFinite
from llm_adapters_lab.tasks.formats import Format, get_format
from llm_adapters_lab.tasks.tokens import pad

SPARE = 64
"""Columns by which keys and values are extended at a time."""
AT_ONCE = 16
"""Maximum number of prompts that continue from copies of the cache at a time: more need more memory and padding."""
TOGETHER = 1024
"""Number of tokens of the prompts that run together, at most, where they are joined afterwards."""
PADDING = 64
"""Number of tokens of padding among them, at most: more cost more time than another pass."""
LOGITS = 256
"""Number of tokens of the answers whose logits are there at a time, at most, unless a single answer has more."""
ENOUGH = 64
"""Number of tokens of the answers that are worth a pass of their own."""
COLUMNS = 4096
"""Number of columns of the cache, over all answers, of which copies can be made."""
Rows = Sequence[Sequence[int]]
Sampler = Callable[[torch.Tensor], int]
"""Chooses a token from logits (vocabulary,)."""
Choice = Callable[[torch.Tensor, Sequence[int], Sequence[int]], torch.Tensor]
"""Takes logits (rows, vocabulary), row numbers and the index of each one's token, from 0; returns token ids (rows,)."""
Reader = Callable[["PromptBatch", Sequence[int]], None]
"""Takes a batch, which it leaves unchanged, and the row number of each of its prompts."""


class RoomyLayer(DynamicLayer):
    """A layer of a cache with spare columns, so that keys and values are not copied for every token."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append columns, and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self._held: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.keys, self.values = self._append("keys", key_states), self._append("values", value_states)
        return self.keys, self.values

    def _append(self, name: str, new: torch.Tensor) -> torch.Tensor:
        old: torch.Tensor = getattr(self, name)
        (room, view), size = self._held.get(name, (old, None)), old.shape[-2] + new.shape[-2]
        if view is not old or size > room.shape[-2]:  # the first time, and after a change of the rows
            room = new.new_empty(*new.shape[:2], size + SPARE, new.shape[-1])
            room[:, :, : old.shape[-2]] = old
        room[:, :, old.shape[-2] : size] = new
        self._held = {**self._held, name: (room, room[:, :, :size])}  # a copy of this layer keeps its own
        return self._held[name][1]


PLAIN = (DynamicLayer, RoomyLayer, DynamicSlidingWindowLayer)


@dataclass
class PromptBatch:
    """A batch of prompts, with the answers so far, that a model has read.

    Attributes:
        cache: keys and values, and what adapters remember, one batch row for each prompt.
        mask: 1 for tokens, 0 for padding, (rows, columns).
        logits: of the last column, (rows, vocabulary).
    """

    cache: DynamicCache
    mask: torch.Tensor
    logits: torch.Tensor

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be repeated."""
        index = torch.tensor(rows, device=self.mask.device)
        self.mask, self.logits = self.mask[index], self.logits[index]
        self.cache.batch_select_indices(index)

    def taken(self, rows: Sequence[int]) -> PromptBatch:
        """Return a batch of these rows, which may be repeated; this one stays as it is."""
        cache: Any = copy(self.cache)
        cache.layers = [copy(layer) for layer in self.cache.layers]
        if hasattr(cache, "memory"):
            cache.memory = dict(cache.memory)
        batch = PromptBatch(cache, self.mask, self.logits)
        batch.select(rows)
        return batch

    @property
    def joinable(self) -> bool:
        """Whether the cache has nothing but a column for each of the mask, so that other rows can be put beside."""
        size, layers = self.mask.shape, _filled(self.cache)
        return all((len(each.keys), each.get_seq_length()) == size and each.keys.ndim == 4 for each in layers)


class StopRule:
    """Tells whether an answer is complete: it ends with an end token, or repeats a header of the prompt."""

    def __init__(self, model: Any, tokenizer: Any, template: str | Format | None) -> None:
        """Collect the end tokens of model, tokenizer and template, and the stop strings of the template, if any."""
        form = get_format(tokenizer, template) if template else None
        stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        given = {tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])}
        self.tokens = sorted(token for token in {*given, *(form.ends if form else ())} if token is not None)
        self.tokenizer, self.stops = tokenizer, form.stops if form else ()
        # Every token is at least one character, so a header lies within this number of tokens.
        self.window = max(map(len, self.stops), default=0) + 1

    def __call__(self, answer: list[int]) -> bool:
        """Return whether this answer is complete with its last token."""
        if answer[-1] in self.tokens:
            return True
        tail = self.tokenizer.decode(answer[-self.window :], skip_special_tokens=True)
        return any(stop in tail for stop in self.stops)


def inputs_of(model: Any, rows: Sequence[int]) -> AbstractContextManager[None]:
    """Narrow the further inputs that are given to a model by name, if any, to these rows; a row may be repeated."""
    if not reads_inputs(model):
        return nullcontext()
    context = context_of(model)
    return context.given(**{name: value[list(rows)] for name, value in context.inputs.items()})


def context_length(model: Any) -> int | None:
    """Return the number of real tokens that fit the model, without virtual tokens; None where it states no limit."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is None or not can_batch(model):
        return limit
    with inputs_of(model, [0]):
        virtual = prefill(model, [[0]], 0).cache.get_seq_length() - 1
    return int(limit) - virtual


def can_batch(model: Any) -> bool:
    """Return whether this module supports the model's cache: only keys and values, full or in a sliding window.

    Others (state-space and hybrid models, quantised caches) are left to `generate` of transformers.
    """
    supported = getattr(model, "_supports_default_dynamic_cache", None)
    if supported is None or not supported() or model.config.is_encoder_decoder:
        return False
    return all(type(layer) in PLAIN for layer in _new_cache(model).layers)


def common_prefix(rows: Rows) -> int:
    """Return the number of first tokens that all rows share, leaving at least one token of each row."""
    limit = max(0, min(map(len, rows)) - 1)
    return next((i for i in range(limit) if any(row[i] != rows[0][i] for row in rows)), limit)


@torch.no_grad()
def shared_prefix(model: Any, rows: Rows) -> PromptBatch | None:
    """Return a batch of one row, with what all rows begin with, at least one token less than each; None for none.

    Adapters may remember a prefix, or change it by an input of the row; sliding windows may drop some of it.
    """
    embedded = any(isinstance(module, VirtualEmbeddings) for module in model.modules())  # after the padding of each row
    shareable = len(rows) > 1 and not embedded and not looks_back(model) and _same_inputs(model)
    if not (length := common_prefix(rows) if shareable else 0):
        return None
    cache, ids = _new_cache(model), torch.tensor([rows[0][:length]], device=device_of(model))
    with inputs_of(model, [0]):
        logits = _forward(model, ids, torch.ones_like(ids), cache)
    whole = all(type(each) in PLAIN and each.keys.shape[-2] == each.get_seq_length() for each in _filled(cache))
    return PromptBatch(cache, torch.ones_like(ids), logits[:, -1]) if whole else None


@torch.no_grad()
def prefill(model: Any, rows: Rows, pad_id: int, prefix: PromptBatch | None = None) -> PromptBatch:
    """Run prompts through a model.

    Args:
        model: one that `can_batch`, in evaluation mode.
        rows: token ids of each prompt; none is empty.
        pad_id: fills the columns on the left.
        prefix: what all of them begin with; default: it is found, and read for these rows alone.
    """
    ids = pad(rows, pad_id, "left").to(device_of(model))
    mask = pad([[1] * len(row) for row in rows], 0, "left").to(device_of(model))
    prefix = prefix or shared_prefix(model, rows)
    cache = _broadcast(prefix, ids.shape[1] - mask.sum(-1)) if prefix else _new_cache(model)
    rest = ids[:, prefix.mask.shape[1] if prefix else 0 :]
    return PromptBatch(cache, mask, _forward(model, rest, mask, cache)[:, -1])


@torch.no_grad()
def decode_step(
    model: Any, batch: PromptBatch, tokens: torch.Tensor, real: Sequence[bool] = (), keep: int = 1
) -> torch.Tensor:
    """Append tokens to a batch, (rows,) or (rows, columns). Those of rows that are not `real` are masked.

    Returns:
        The logits of the last `keep` columns, (rows, keep, vocabulary).
    """
    tokens = tokens.reshape(len(tokens), -1)
    column = batch.mask.new_tensor(real or [True] * len(tokens))
    batch.mask = torch.cat([batch.mask, column[:, None].expand_as(tokens)], dim=1)
    logits = _forward(model, tokens, batch.mask, batch.cache, keep)
    batch.logits = logits[:, -1]
    return logits


def require_finite(values: torch.Tensor, rows: Sequence[int]) -> None:
    """Refuse what a model says of rows if it is not a number: the likeliest token of nan is as good as any.

    Args:
        values: the largest logit or the likelihood of each row, (rows,).
        rows: numbers of the rows.

    Raises:
        NotFinite: a value is nan or infinite.
    """
    if bad := [row for row, finite in zip(rows, values.isfinite().tolist(), strict=True) if not finite]:
        raise NotFinite(
            f"The logits of {len(bad)} of {len(rows)} rows are nan or infinite. The weights or the adapter are damaged "
            "or half precision overflows: check both, or set dtype to fp32 or bf16.",
            bad,
        )


@torch.no_grad()
def greedy(
    model: Any,
    rows: Rows,
    pad_id: int,
    limit: int,
    is_complete: Callable[[list[int]], bool],
    choose: Choice = lambda logits, rows, columns: logits.argmax(-1),
    at_once: int | None = None,
    prefix: PromptBatch | None = None,
    starts: Rows = (),
    read: Reader | None = None,
) -> list[list[int]]:
    """Answer prompts with the likeliest token at every step, or one that is chosen otherwise.

    With `at_once`, new rows take the place of those that are answered. Where adapters have columns of their own in the
    cache, they wait until all rows of a batch are answered.

    Args:
        model: one that `can_batch`, in evaluation mode.
        rows: token ids of each prompt.
        pad_id: fills the columns on the left.
        limit: maximum number of tokens of an answer, 1 or more.
        is_complete: tells of an answer so far whether it is complete.
        choose: chooses every token; default: the likeliest.
        at_once: maximum number of rows in memory; default: all.
        prefix: what all prompts begin with; default: it is found for every batch.
        starts: token ids with which each answer is likely to start; an empty list where that is not known.
        read: called with every prompt once, followed by its start, before the prompt is answered.

    Returns:
        The tokens of each answer, including the one that completed it.

    Raises:
        NotFinite: the logits are nan or infinite.
    """
    answers, starts = [list[int]() for _ in rows], starts or [[] for _ in rows]
    waiting, running, over = list(range(len(rows))), list[int](), set[int]()
    joins = bool(at_once) and can_join(model)
    usable = [joins and _continues(start, limit, is_complete) for start in starts]
    parts: list[PromptBatch] = []
    while True:
        if waiting and (joins or not running) and (free := (at_once or len(rows)) - len(running)):
            new, waiting = waiting[:free], waiting[free:]
            asked = [_read(model, rows, new, pad_id, prefix, joins)]
            if read or any(starts):
                asked, new, started = _started(model, asked[0], new, starts, usable, choose, read)
                for row in started:
                    answers[row] += starts[row]
            running, parts = running + new, [_joined([*parts, *asked])]
        (batch,) = parts
        chosen = choose(batch.logits, running, [min(len(answers[row]), limit - 1) for row in running])
        live = [i for i, row in enumerate(running) if row not in over]
        require_finite(batch.logits.gather(-1, chosen[:, None])[live, 0], [running[i] for i in live])
        tokens = chosen.tolist()
        for i in live:
            answers[running[i]].append(tokens[i])
        over |= {row for row in running if len(answers[row]) >= limit or is_complete(answers[row])}
        live = [i for i in live if running[i] not in over]
        if not live and not waiting:
            return answers
        if 8 * len(live) <= 7 * len(running):  # leaving means copying all keys and values, so that some leave together
            running, chosen = [running[i] for i in live], chosen[live]
            batch.select(live) if live else parts.clear()
        if live:
            decode_step(model, batch, chosen, [row not in over for row in running])


def _continues(start: Sequence[int], limit: int, is_complete: Callable[[list[int]], bool]) -> bool:
    """Return whether an answer that starts like this has further tokens."""
    return 0 < len(start) < limit and not any(is_complete([*start[:end]]) for end in range(1, len(start) + 1))


def _started(
    model: Any,
    batch: PromptBatch,
    rows: Sequence[int],
    starts: Rows,
    usable: Sequence[bool],
    choose: Choice,
    read: Reader | None,
) -> tuple[list[PromptBatch], list[int], list[int]]:
    """Run the starts of answers.

    Args:
        model: see `greedy`, as for `starts`, `choose` and `read`.
        batch: prompts.
        rows: their numbers.
        starts: of all rows.
        usable: whether the answer to each row may have its start at once.
        choose: chooses every token.
        read: gets all rows after their starts.

    Returns:
        The same prompts in parts, last those whose answers have started, as the model chooses their starts; all row
        numbers in that order; the numbers of the started ones.
    """
    first = choose(batch.logits, rows, [0] * len(rows)).tolist()
    likely = {row for row, token in zip(rows, first, strict=True) if usable[row] and starts[row][0] == token}
    runs, parts, started = [row for row in rows if read or row in likely], list[PromptBatch](), list[int]()
    for length in sorted({len(starts[row]) for row in runs}):  # padding between tokens would count as distance
        alike = [row for row in runs if len(starts[row]) == length]
        size = max(1, min(AT_ONCE, LOGITS // max(length, 1)))
        for part in (alike[begin : begin + size] for begin in range(0, len(alike), size)):
            own = batch.taken([rows.index(row) for row in part])
            chosen = _append_starts(model, own, part, starts, choose, bool(likely & {*part})) if length else {}
            if read:
                read(own, part)
            if follows := [i for i, row in enumerate(part) if row in likely and chosen[row]]:
                own.select(follows)
                parts.append(own)
                started += [part[i] for i in follows]
    others = [row for row in rows if row not in started]
    if others and started:
        batch.select([rows.index(row) for row in others])
    return [batch] * bool(others) + parts, others + started, started


def _append_starts(
    model: Any, batch: PromptBatch, rows: Sequence[int], starts: Rows, choose: Choice, compare: bool
) -> dict[int, bool]:
    """Append starts of one length to a batch, and return whether the model chooses all tokens after the first."""
    tokens = torch.tensor([starts[row] for row in rows], device=batch.mask.device)
    keep = tokens.shape[1] if compare else 1
    logits, same = decode_step(model, batch, tokens, keep=keep), torch.ones_like(tokens[:, 0], dtype=torch.bool)
    for column in range(1, keep):
        there = logits[:, column - 1]
        chosen = choose(there, rows, [column] * len(rows))
        same &= (chosen == tokens[:, column]) & there.gather(-1, chosen[:, None])[:, 0].isfinite()
    return dict(zip(rows, same.tolist(), strict=True))


def can_join(model: Any) -> bool:
    """Return whether batches of this model can be joined; with some adapters they have columns of their own."""
    with inputs_of(model, [0]):
        return prefill(model, [[0]], 0).joinable


def _read(
    model: Any, rows: Rows, numbers: Sequence[int], pad_id: int, prefix: PromptBatch | None, joins: bool
) -> PromptBatch:
    """Run some rows through a model, those of similar length together if their batches can be joined."""
    parts = []
    for group in _groups(numbers, rows, prefix.mask.shape[1] if prefix else 0) if joins else [[*numbers]]:
        with inputs_of(model, group) if len(group) < len(rows) else nullcontext():
            parts.append(prefill(model, [rows[row] for row in group], pad_id, prefix))
    return _joined(parts)


def _groups(numbers: Sequence[int], rows: Rows, shared: int) -> list[list[int]]:
    """Return rows in groups of up to `TOGETHER` tokens, `PADDING` among them, without `shared` ones in front."""
    groups = [[numbers[0]]]
    for number in numbers[1:]:
        lengths = [len(rows[row]) - shared for row in (*groups[-1], number)]
        tokens = len(lengths) * max(lengths)
        if tokens <= TOGETHER and tokens - sum(lengths) <= PADDING:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _joined(parts: Sequence[PromptBatch]) -> PromptBatch:
    """Return the rows of all parts as one batch, in order, without columns that hold padding only."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.mask.shape[1] - int(part.mask.any(0).long().argmax()) for part in parts)
    cache = parts[0].cache
    for layer, *others in zip(*(_filled(part.cache) for part in parts), strict=True):
        columns = width
        if layer.is_sliding:  # of which it keeps the last ones
            columns, layer.cumulative_length = min(width, layer.sliding_window - 1), width
        for name in ("keys", "values"):
            each = [getattr(of, name) for of in (layer, *others)]
            setattr(layer, name, torch.cat([widen(x, (0, 0, columns - x.shape[-2], 0)) for x in each]))
    for name in getattr(cache, "memory", {}):
        cache.memory[name] = torch.cat([part.cache.memory[name] for part in parts])  # type: ignore[attr-defined]
    mask = torch.cat([widen(part.mask, (width - part.mask.shape[1], 0)) for part in parts])
    return PromptBatch(cache, mask, torch.cat([part.logits for part in parts]))


@torch.no_grad()
def likelihoods(
    model: Any,
    rows: Rows | PromptBatch,
    answers: Sequence[Rows],
    pad_id: int,
    prefix: PromptBatch | None = None,
    joins: bool = False,
) -> list[list[float]]:
    """Return the log-likelihood of every answer after its prompt, in nats; each prompt is computed once.

    Args:
        model: one that `can_batch`, in evaluation mode.
        rows: token ids of each prompt, or a batch of prompts, which stays as it is.
        answers: token ids of the possible answers to each prompt, none of them empty.
        pad_id: fills the columns on the left of prompts and on the right of answers.
        prefix: what all prompts begin with; default: it is found.
        joins: whether the model `can_join`; then prompts of similar length run together.
    """
    batch = rows if isinstance(rows, PromptBatch) else _read(model, rows, range(len(rows)), pad_id, prefix, joins)
    flat = [(row, answer) for row, group in enumerate(answers) for answer in group]
    sums, width = [0.0] * len(flat), batch.mask.shape[1]
    for part in _portions([len(answer) for _, answer in flat], len(answers), width):
        owner, each = [flat[i][0] for i in part], [flat[i][1] for i in part]
        targets = pad(each, pad_id, "right").to(device_of(model))
        counted = pad([[1] * len(answer) for answer in each], 0, "right").to(device_of(model))
        logits = batch.logits[torch.tensor(owner, device=device_of(model))][:, None]
        if targets.shape[1] > 1:
            own = batch.taken(owner)
            # The last token of an answer is predicted, not read.
            mask = torch.cat([own.mask, counted[:, 1:]], dim=1)
            after = _forward(model, targets[:, :-1], mask, own.cache, keep=targets.shape[1] - 1)
            logits = torch.cat([logits, after], dim=1)
        logits = logits.float()
        values = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        for i, value in zip(part, values.masked_fill(counted == 0, 0).sum(-1).tolist(), strict=True):
            sums[i] = value
    found = iter(sums)
    return [[next(found) for _ in group] for group in answers]


def _portions(lengths: Sequence[int], rows: int, width: int) -> list[list[int]]:
    """Return the numbers of the answers that run together, those of similar length.

    Not more have a copy of the cache, `width` columns, than there are `rows`, unless it is small.
    """
    found: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        part, most = found[-1], min(max(rows, COLUMNS // (width + lengths[i])), LOGITS // lengths[i])
        before = lengths[part[-1]] if part else lengths[i]
        # Tokens of padding cost time; so do passes of few tokens. An answer of one token needs no pass.
        apart = before < lengths[i] and (before == 1 or len(part) * (before - 1) >= ENOUGH)
        if part and (apart or len(part) >= most):
            found.append([])
        found[-1].append(i)
    return found if lengths else []


def drawn(uniforms: torch.Tensor, temperature: float) -> Choice:
    """Return a choice that draws tokens from softmax(logits / temperature).

    Args:
        uniforms: numbers in [0, 1) that decide, (rows, tokens); each row's own, whatever company it is answered in.
        temperature: above 0.
    """

    def choose(logits: torch.Tensor, rows: Sequence[int], columns: int | Sequence[int]) -> torch.Tensor:
        # Sums on a GPU have no fixed order, and other devices no double precision.
        there = logits.is_cuda and not torch.are_deterministic_algorithms_enabled()
        sums = ((logits if there else logits.cpu()).double() / temperature).softmax(-1).cumsum(-1)
        points = uniforms[list(rows), columns, None].to(sums) * sums[:, -1:]
        found = torch.searchsorted(sums, points, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
        return found.to(logits.device)

    return choose


def make_sampler(temperature: float = 0.0, seed: int = 0, top_p: float = 1.0) -> Sampler:
    """Return a sampler.

    Args:
        temperature: T of softmax(logits / T), from which a token is drawn; 0 for the likeliest one.
        seed: of the draws.
        top_p: tokens are drawn from the likeliest ones, which together have at least this probability.
    """
    if temperature <= 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: torch.Tensor) -> int:
        probabilities = (logits.float().cpu() / temperature).softmax(-1)
        if top_p < 1:
            sizes, order = probabilities.sort(descending=True)
            probabilities[order[sizes.cumsum(-1) - sizes >= top_p]] = 0
        return int(torch.multinomial(probabilities, 1, generator=generator))

    return draw


class Watched:
    """A sampler that also keeps what each token was chosen from.

    Attributes:
        probability: of the last token, softmax of its logits, at temperature 1.
        candidates: the likeliest tokens in its place with their probabilities, most likely first.
    """

    def __init__(self, sample: Sampler, count: int = 5) -> None:
        """Watch a sampler, and keep `count` candidates."""
        self.sample, self.count = sample, count
        self.probability, self.candidates = 0.0, list[tuple[int, float]]()

    def __call__(self, logits: torch.Tensor) -> int:
        """Choose a token."""
        token = self.sample(logits)
        found = logits.float().softmax(-1)
        best = found.topk(min(self.count, len(found)))
        self.probability = float(found[token])
        self.candidates = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return token


def check_fits(model: Any, ids: list[int], limit: int) -> None:
    """Refuse a prompt that is empty, or does not fit the model together with its answer.

    Raises:
        BadSpec: it is refused.
    """
    if not ids:
        raise BadSpec("The prompt is empty. Write something, or take an example.")
    if (fits := context_length(model)) is not None and len(ids) + limit > fits:
        raise BadSpec(
            f"The prompt has {len(ids)} tokens; with up to {limit} for the answer that is more than the {fits} that "
            "fit the model. Shorten it, or ask for fewer new tokens."
        )


@torch.no_grad()
def stream(
    model: Any, ids: list[int], limit: int, is_complete: Callable[[list[int]], bool], sample: Sampler
) -> Iterator[int]:
    """Yield the tokens of the answer to one prompt, including the one that completes it.

    With `make_sampler()` they are those of `greedy`. The model runs only inside `next`, so answers with and without an
    adapter can be generated alternately on one model, each `next` of the latter inside `injection.disabled()`.

    Args:
        model: in evaluation mode, with the adapters that are on at each step.
        ids: token ids of the prompt.
        limit: maximum number of tokens of the answer, 1 or more.
        is_complete: tells of the answer so far whether it is complete.
        sample: chooses each token.

    Raises:
        NotFinite: the logits are nan or infinite.
    """
    answer: list[int] = []
    batch = prefill(model, [ids], 0) if can_batch(model) else None
    while True:
        if batch is None:  # all of it again
            rows = torch.tensor([ids + answer], device=device_of(model))
            logits = model(input_ids=rows, use_cache=False).logits[0, -1]
        logits = logits if batch is None else batch.logits[0]
        require_finite(logits.max()[None], [0])
        answer.append(sample(logits))
        yield answer[-1]
        if len(answer) >= limit or is_complete(answer):
            return
        if batch is not None:
            decode_step(model, batch, torch.tensor(answer[-1:], device=device_of(model)))


def _new_cache(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = RoomyLayer
    return cache


def _filled(cache: DynamicCache) -> list[Any]:
    """Return the layers that have keys and values; others use those of another layer."""
    every: list[Any] = cache.layers
    return [layer for layer in every if layer.is_initialized]


def _forward(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, keep: int = 1) -> torch.Tensor:
    """Return the logits of the last `keep` columns, (rows, keep, vocabulary); the cache grows by all of `ids`."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    accepted = inspect.signature(model.forward).parameters
    # A mixture would compute the loss of its routers, and fails where there is a cache.
    extra = {"position_ids": positions, "logits_to_keep": keep, "output_router_logits": False}
    options = {name: value for name, value in extra.items() if name in accepted}
    out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options)
    logits: torch.Tensor = out.logits[:, -keep:]
    return logits


def _same_inputs(model: Any) -> bool:
    """Return whether all rows have the same further inputs, such as their group; also if there are none."""
    return not reads_inputs(model) or all(bool((v == v[0]).all()) for v in context_of(model).inputs.values())


def _broadcast(prefix: PromptBatch, padding: torch.Tensor) -> DynamicCache:
    """Return a cache with a prefix in every row, after its padding; virtual tokens stay in front."""
    cache, length = deepcopy(prefix.cache), prefix.mask.shape[1]
    columns = torch.arange(length, device=padding.device)[None]
    source = (columns - padding[:, None]).clamp(min=0)  # masked where there is padding
    for layer in _filled(cache):
        virtual = layer.keys.shape[-2] - length
        kept = torch.arange(virtual, device=padding.device).expand(len(padding), -1)
        index = torch.cat([kept, source + virtual], dim=1).to(layer.keys.device)
        layer.keys, layer.values = (t[0][:, index].transpose(0, 1).contiguous() for t in (layer.keys, layer.values))
    for name, value in getattr(cache, "memory", {}).items():
        cache.memory[name] = value.repeat_interleave(len(padding), dim=0)  # type: ignore[attr-defined]
    return cache
