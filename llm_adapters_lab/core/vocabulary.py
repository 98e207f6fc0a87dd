"""New tokens: extend the tokenizer and the embedding of a base, before an adapter trains their rows.

The extended model is the base from then on: its fingerprint has the new rows as they start, and so has the model while
its adapters are off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AddedToken

from llm_adapters_lab.core import weights
from llm_adapters_lab.errors import BadSpec, WrongBase

NEW_TOKENS = "new_tokens"
"""Attribute of a model that holds the tokens added to it: id and start words by text."""
_CHUNK = 8192


def new_tokens(model: nn.Module) -> dict[str, str]:
    """Return the text of each token that was added to a model, and the words it started from."""
    return {text: start for text, (_, start) in model.__dict__.get(NEW_TOKENS, {}).items()}


def new_ids(model: nn.Module) -> tuple[int, ...]:
    """Return the ids of the tokens that were added to a model."""
    return tuple(number for number, _ in model.__dict__.get(NEW_TOKENS, {}).values())


def add_tokens(model: nn.Module, tokenizer: Any, tokens: Mapping[str, str]) -> None:
    """Add tokens to a model without adapters and to its tokenizer.

    Args:
        model: a causal language model; every adapter that is put into it from now on trains the new rows too.
        tokenizer: of the model.
        tokens: for each text the words whose tokens' mean its rows start from; with "" they start from the mean of the
            embedding, and of the output head if that is a matrix of its own.

    Raises:
        BadSpec: a token exists, is blank, or has start words without tokens; or the model has adapters, other new
            tokens, or an embedding that is packed or offloaded.
    """
    with extended(model, tokenizer, tokens):
        pass


@contextmanager
def extended(model: nn.Module, tokenizer: Any, tokens: Mapping[str, str], again: bool = False) -> Iterator[Any]:
    """Add tokens as in `add_tokens`, and yield the tokenizer with them; after an error within, take all back.

    A model that has these tokens is left as it is. With `again`, tokens that were added to the tokenizer before, with
    another model, are left as they are.

    Raises:
        BadSpec: see `add_tokens`.
        WrongBase: the model has other new tokens.
    """
    present = new_tokens(model)
    if not tokens or present == tokens:
        yield tokenizer
        return
    if present:
        raise WrongBase(f"The model has the new tokens {_named(present)}, asked for are {_named(tokens)}. Reload it.")
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()} if again else {}
    missing = {text: start for text, start in tokens.items() if text not in added}
    larger = copy.deepcopy(tokenizer)
    if missing:
        extend_tokenizer(larger, missing)
    undo = extend_model(model, larger, tokens)
    try:
        yield larger
    except BaseException:
        undo()
        raise
    if missing:
        extend_tokenizer(tokenizer, missing)


def extend_tokenizer(tokenizer: Any, tokens: Mapping[str, str]) -> None:
    """Add tokens to a tokenizer; they are found anywhere in a text, as they are written.

    Raises:
        BadSpec: see `add_tokens`; the tokenizer is then unchanged.
    """
    if tokenizer is None:
        raise BadSpec(f"The new tokens {_named(tokens)} need the tokenizer of the base. Pass tokenizer=.")
    known = tokenizer.get_vocab()
    inside = {start: next((text for text in tokens if text in start), None) for start in {*tokens.values()} - {""}}
    for text, start in tokens.items():
        if not text.strip():
            raise BadSpec(f"tokens: {text!r} is blank. Name a text that is to be one token.")
        present = [known[text]] if text in known else tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(present) == 1 and (text in known or present[0] != tokenizer.unk_token_id):
            raise BadSpec(f"tokens: {text!r} is a token of this base already (id {present[0]}). Leave it out.")
        if new := inside.get(start):
            raise BadSpec(f"tokens: {text!r} cannot start from {start!r}, which has the new token {new!r} in it.")
        if start and not _start_ids(tokenizer, start):
            raise BadSpec(f"tokens: {text!r} starts from {start!r}, in which there is no known token. Use other words.")
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in tokens])


def _start_ids(tokenizer: Any, start: str) -> list[int]:
    ids = tokenizer(start, add_special_tokens=False)["input_ids"] if start.strip() else []
    return [number for number in ids if number != tokenizer.unk_token_id]


def _named(tokens: Iterable[str]) -> str:
    return ", ".join(map(repr, tokens))


@torch.no_grad()
def extend_model(model: Any, tokenizer: Any, tokens: Mapping[str, str]) -> Callable[[], None]:
    """Give a model the rows of tokens that its tokenizer has by now; the function that is returned undoes it.

    Raises:
        BadSpec: see `add_tokens`; the model is then unchanged.
    """
    if model.__dict__.get("injections"):
        raise BadSpec(f"The model has adapters. Eject them before the tokens {_named(tokens)} are added.")
    hosts = _hosts(model)
    if any(weights.is_offloaded(host) or weights.is_quantized(host) for host in hosts):
        raise BadSpec(f"The embedding of {type(model).__name__} is packed or offloaded, so that it cannot grow.")
    if len({len(host.weight) for host in hosts}) > 1:
        raise BadSpec(f"Embedding and output head of {type(model).__name__} have unequal numbers of rows.")
    ids = {text: int(tokenizer.convert_tokens_to_ids(text)) for text in tokens}
    rows, first = len(hosts[0].weight), min(ids.values())
    spare = [number for number in ids.values() if number < rows]  # many bases have rows that no token uses
    before = [{name: p[spare].clone() for name, p in host.named_parameters(recurse=False)} for host in hosts]
    if max(ids.values()) >= rows:
        _resize(model, 1 + max(ids.values()))
    for host in _hosts(model):
        mean = None if all(tokens.values()) else _mean(host.weight, range(first))
        for text, number in ids.items():
            start = tokens[text]
            host.weight[number] = _mean(host.weight, _start_ids(tokenizer, start)) if start else mean
            if getattr(host, "bias", None) is not None:
                host.bias[number] = 0.0
    model.__dict__[NEW_TOKENS] = {text: (number, tokens[text]) for text, number in ids.items()}
    return partial(_undo, model, rows, spare, before)


@torch.no_grad()
def _undo(model: Any, rows: int, spare: list[int], before: list[dict[str, torch.Tensor]]) -> None:
    if len(_hosts(model)[0].weight) != rows:
        _resize(model, rows)
    for host, values in zip(_hosts(model), before, strict=True):
        for name, value in values.items():
            host.get_parameter(name)[spare] = value
    model.__dict__.pop(NEW_TOKENS, None)


def _hosts(model: Any) -> list[Any]:
    """Return the embedding, and the output head if its weight is another one."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [table] if head is None or head.weight is table.weight else [table, head]


def _resize(model: Any, rows: int) -> None:
    with torch.random.fork_rng(devices=[]):  # transformers draws the new rows at random
        model.resize_token_embeddings(rows, mean_resizing=False)


def _mean(weight: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Return the mean of some rows, summed in fp64, so that it is the same on every device."""
    parts = (weight[list(rows[i : i + _CHUNK])].double().sum(0) for i in range(0, len(rows), _CHUNK))
    return sum(parts, torch.zeros((), device=weight.device)) / len(rows)
