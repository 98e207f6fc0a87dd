"""Probes: views for which a model has to run. `ablations` has those that switch parts of an adapter off.

The model is used as it stands, in its mode and with the adapters that are on, and is afterwards as it was. Ids are
those of one text, (tokens,) or (1, tokens). To see what an adapter does, ask without it and with it:

    plain, adapted = both(injection, lambda: logit_lens(model, ids))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from llm_adapters_lab.adapters.shared.bottleneck import Bottleneck
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.errors import NoView
from llm_adapters_lab.inspection.activation_metrics import cka, cosine

T = TypeVar("T")
LAYERS_AT_ONCE = 8


@dataclass(frozen=True)
class Lens:
    """What the model would say if it ended after each layer.

    Attributes:
        top: ids of the k likeliest tokens, (layers + 1, tokens, k); row 0 is the embedding, row i + 1 layer i.
        probability: of those tokens, (layers + 1, tokens, k).
        target: ids asked about, (tokens,).
        target_probability: (layers + 1, tokens).
        target_rank: place of the target among all tokens, 1 for the likeliest, (layers + 1, tokens).
    """

    top: torch.Tensor
    probability: torch.Tensor
    target: torch.Tensor
    target_probability: torch.Tensor
    target_rank: torch.Tensor


def both(injection: Injection, look: Callable[[], T]) -> tuple[T, T]:
    """Return what a view shows without the adapter and with it."""
    with injection.disabled():
        before = look()
    return before, look()


@torch.no_grad()
def streams(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the residual stream before the first layer and after each, (layers + 1, tokens, d).

    Virtual tokens that an adapter puts in front come first.
    """
    found: list[torch.Tensor] = []

    def keep_first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args[0] if args else kwargs["hidden_states"])[0])

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output)[0])

    layers = [model.get_submodule(path) for path in Anatomy.of(model).layers]
    first = layers[0].register_forward_pre_hook(keep_first, with_kwargs=True)
    with _hooks([first, *(layer.register_forward_hook(keep) for layer in layers)]):
        model(input_ids=_row(model, ids), use_cache=False)
    return torch.stack(found)


def layer_similarity(model: Any, ids: torch.Tensor, injection: Injection) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare the stream with the adapter to that without it, before the first layer and after each.

    Returns:
        The cosine at each token, (layers + 1, tokens), and linear CKA over the tokens, (layers + 1,).
    """
    plain, adapted = both(injection, lambda: streams(model, ids))
    tokens = min(plain.shape[1], adapted.shape[1])  # virtual tokens, which only one of them has, come first
    plain, adapted = plain[:, -tokens:], adapted[:, -tokens:]
    return cosine(plain, adapted), torch.tensor([cka(x, y) for x, y in zip(plain, adapted, strict=True)])


@torch.no_grad()
def logit_lens(model: Any, ids: torch.Tensor, *, target: torch.Tensor | None = None, k: int = 5) -> Lens:
    """Read the stream after every layer with the model's own ending.

    p_l = softmax(head(norm(h_l))). In place of the last layer's output h_L the stream h_l goes through all that the
    model does from there on, so that scaled or capped logits (Cohere, Granite, Gemma 2) are scaled and capped here too,
    and no norm or head has to be known by name. The last row is what the model says.

    Args:
        model: base or adapted model.
        ids: of the text.
        target: a token to ask about at each place, (tokens,); default: the next token of the text, and at the last
            place the model's own choice.
        k: how many tokens to keep at each place.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    ids = _row(model, ids)
    stream = streams(model, ids)
    last = model.get_submodule(Anatomy.of(model).layers[-1])
    rows: list[tuple[torch.Tensor, ...]] = []
    for start in reversed(range(0, len(stream), LAYERS_AT_ONCE)):  # the last rows first: they hold the model's choice
        part = stream[start : start + LAYERS_AT_ONCE]

        def replace(module: nn.Module, args: tuple[Any, ...], output: Any, part: torch.Tensor = part) -> Any:
            return (part, *output[1:]) if isinstance(output, tuple) else part

        with _hooks([last.register_forward_hook(replace)]):
            logits = model(input_ids=ids, use_cache=False).logits.float()
        if target is None:
            target = torch.cat([ids[0, 1:], logits[-1, -1].argmax()[None]])
        chances, asked = logits.softmax(-1), target.to(logits.device).expand(len(part), -1)[..., None]
        top = chances.topk(min(k, logits.shape[-1]), dim=-1)
        at = chances.gather(-1, asked)
        rank = 1 + (logits > logits.gather(-1, asked)).sum(-1)
        rows.insert(0, (top.indices, top.values, at[..., 0], rank))
    top_ids, values, chance, rank = (torch.cat(parts) for parts in zip(*rows, strict=True))
    assert target is not None
    return Lens(top_ids, values, target, chance, rank)


@torch.no_grad()
def token_loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return -ln p(token | those before it) for all tokens but the first, in nats, (tokens - 1,)."""
    ids = _row(model, ids)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return cross_entropy(logits, ids[0, 1:], reduction="none")


def mean_loss(model: Any, ids: torch.Tensor) -> float:
    """Return the mean of `token_loss`: what ablation and interpolation score by unless told otherwise."""
    return float(token_loss(model, ids).mean())


@torch.no_grad()
def bottleneck_units(model: Any, ids: torch.Tensor, injection: Injection) -> dict[str, torch.Tensor]:
    """Return the activations f(x W_down) of every bottleneck of an adapter, (tokens, units), by site.

    Raises:
        NoView: the method has no bottleneck with units.
    """
    found: dict[str, torch.Tensor] = {}

    def keeper(key: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            found[key] = output.detach().flatten(0, -2)

        return keep

    inside = [(key, part) for key, adapter in injection.adapters.items() for part in adapter.modules()]
    places = [(key, part.nonlinearity) for key, part in inside if isinstance(part, Bottleneck)]
    if not places:
        raise NoView(f"{injection.config.type!r} has no bottleneck, so there are no units to look at.")
    with _hooks([place.register_forward_hook(keeper(key)) for key, place in places]):
        model(input_ids=_row(model, ids), use_cache=False)
    return found


@contextmanager
def _hooks(handles: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _row(model: Any, ids: torch.Tensor) -> torch.Tensor:
    row = ids[None] if ids.ndim == 1 else ids
    if row.shape[0] != 1 or row.shape[1] < 2:
        raise NoView(f"These views look at one text of two tokens or more; the ids given are {tuple(ids.shape)}.")
    return row.to(device_of(model))
