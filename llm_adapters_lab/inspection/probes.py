"""Probes: views for which a model has to run.

The model runs as it is, in its mode and with the adapters that are on. Ids are those of one text, (tokens,) or
(1, tokens). To compare a view without and with an adapter:

    plain, adapted = both(injection, lambda: logit_lens(model, ids))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn.functional import cross_entropy

from llm_adapters_lab.adapters.shared.bottleneck import Bottleneck
from llm_adapters_lab.adapters.shared.virtual_tokens import VirtualCache, VirtualEmbeddings
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.errors import NoView
from llm_adapters_lab.inspection.activation_metrics import cka, cosine, virtual_attention
from llm_adapters_lab.inspection.recorder import Recorder
from llm_adapters_lab.inspection.targets import on_stream

T = TypeVar("T")
LAYERS_AT_ONCE = 8


@dataclass(frozen=True)
class Lens:
    """What the model would predict if it ended after each layer.

    Attributes:
        top: ids of the k likeliest tokens, (layers + 1, tokens, k); row 0 is the embedding, row i + 1 layer i.
        probability: of those tokens, (layers + 1, tokens, k).
        target: target ids, (tokens,).
        target_probability: (layers + 1, tokens).
        target_rank: rank of the target among all tokens, 1 for the likeliest, (layers + 1, tokens).
    """

    top: torch.Tensor
    probability: torch.Tensor
    target: torch.Tensor
    target_probability: torch.Tensor
    target_rank: torch.Tensor


def both(injection: Injection, view: Callable[[], T]) -> tuple[T, T]:
    """Return what a view shows without the adapter and with it."""
    with injection.disabled():
        before = view()
    return before, view()


@torch.no_grad()
def streams(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the residual stream before the first layer and after each, (layers + 1, tokens, d)."""
    with Recorder(model, "layers") as seen:
        model(input_ids=_row(model, ids), use_cache=False)
    return torch.stack([recording.y[0] for recording in seen.values()])


def layer_similarity(model: Any, ids: torch.Tensor, injection: Injection) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare the residual stream with and without the adapter, before the first layer and after each.

    Returns:
        The cosine at each token, (layers + 1, tokens), and linear CKA over the tokens, (layers + 1,).
    """
    plain, adapted = both(injection, lambda: streams(model, ids))
    return cosine(plain, adapted), torch.tensor([cka(x, y) for x, y in zip(plain, adapted, strict=True)])


@torch.no_grad()
def logit_lens(model: Any, ids: torch.Tensor, *, target: torch.Tensor | None = None, k: int = 5) -> Lens:
    """Decode the residual stream after every layer with the model's own head.

    p_l = softmax(head(norm(h_l))). The stream h_l replaces the output of the last layer and passes through all that
    follows there, so scaled or capped logits (Cohere, Granite, Gemma 2) are so here too, and neither norm nor head has
    to be known by name. The last row is the model's own prediction.

    Args:
        model: base or adapted model.
        ids: token ids of the text.
        target: a token to rank at each position, (tokens,); default: the next token of the text and, at the last
            position, the model's own prediction.
        k: number of tokens to keep at each position.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    ids = _row(model, ids)
    stream = streams(model, ids)
    last = model.get_submodule(Anatomy.of(model).layers[-1])
    rows: list[tuple[torch.Tensor, ...]] = []
    for start in reversed(range(0, len(stream), LAYERS_AT_ONCE)):  # the last rows first: they predict the target
        part = stream[start : start + LAYERS_AT_ONCE]

        def substitute(y: torch.Tensor, part: torch.Tensor = part) -> torch.Tensor:
            virtual = y[:, : -part.shape[1]]  # tokens that an adapter prepends and takes away again
            return torch.cat([virtual.expand(len(part), -1, -1), part], dim=1)

        with on_stream(last, substitute, inside=False, first=False):
            logits = model(input_ids=ids, use_cache=False).logits.float()
        if target is None:
            target = torch.cat([ids[0, 1:], logits[-1, -1].argmax()[None]])
        probabilities, wanted = logits.softmax(-1), target.to(logits.device).expand(len(part), -1)[..., None]
        top = probabilities.topk(min(k, logits.shape[-1]), dim=-1)
        rank = 1 + (logits > logits.gather(-1, wanted)).sum(-1)
        rows.insert(0, (top.indices, top.values, probabilities.gather(-1, wanted)[..., 0], rank))
    indices, values, probability, rank = (torch.cat(parts) for parts in zip(*rows, strict=True))
    assert target is not None
    return Lens(indices, values, target, probability, rank)


@torch.no_grad()
def token_loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return -ln p(token | preceding tokens) of all tokens but the first, in nats, (tokens - 1,)."""
    ids = _row(model, ids)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return cross_entropy(logits, ids[0, 1:], reduction="none")


def mean_loss(model: Any, ids: torch.Tensor) -> float:
    """Return the mean of `token_loss`, the default score of `ablation` and `interpolation`."""
    return float(token_loss(model, ids).mean())


@torch.no_grad()
def bottleneck_units(model: Any, ids: torch.Tensor, injection: Injection) -> dict[str, torch.Tensor]:
    """Return the activations f(x W_down) of every bottleneck of an adapter, (tokens, units), by site.

    Raises:
        NoView: the method has no bottleneck.
    """
    inside = {part: key for key, adapter in injection.adapters.items() for part in adapter.modules()}
    units = {part.nonlinearity: key for part, key in inside.items() if isinstance(part, Bottleneck)}
    if not units:
        raise NoView(f"{injection.config.type!r} has no bottleneck, so there are no units to look at.")
    paths = {path: units[module] for path, module in model.named_modules() if module in units}
    with Recorder(model, list(paths)) as seen:
        model(input_ids=_row(model, ids), use_cache=False)
    return {key: seen[path].y[0] for path, key in paths.items()}


@torch.no_grad()
def virtual_shares(model: Any, ids: torch.Tensor, injection: Injection) -> dict[int, torch.Tensor]:
    """Return the share of its attention that each token of a text gives to the virtual tokens of an adapter.

        share = Σ_{j <= t} a_j   of the attention weights a of a token over t virtual and all real tokens

    Args:
        model: the adapted model.
        ids: token ids of the text.
        injection: an adapter with virtual tokens, in the cache or in front of the input.

    Returns:
        By layer with attention: (heads, tokens). In layers with a window, virtual tokens outside of it have no share.

    Raises:
        NoView: the method has no virtual tokens, or the model cannot show its attention.

    Source: Vig and Belinkov 2019, arXiv:1906.04284, section 4.2: the proportion of attention to tokens of a kind.
    """
    if not has_virtual_tokens(injection):
        raise NoView(f"{injection.config.type!r} has no virtual tokens that could be attended to.")
    ids = _row(model, ids)
    with Recorder(model, "attn?", "pattern", device="cpu") as seen:
        model(input_ids=ids, use_cache=False)
    layers = {site.key: site.layer for site in Anatomy.of(model).sublayers}
    shares = {}
    for key, recording in seen.items():
        pattern = recording.pattern[0].float()
        t = pattern.shape[-1] - ids.shape[1]
        shares[layers[key]] = virtual_attention(pattern, t) if t > 0 else torch.zeros(pattern.shape[:-1])
    return dict(sorted(shares.items()))


def has_virtual_tokens(injection: Injection) -> bool:
    """Return whether an adapter prepends virtual tokens, to the input or to the cache."""
    return any(isinstance(adapter, VirtualCache | VirtualEmbeddings) for adapter in injection.adapters.values())


def _row(model: Any, ids: torch.Tensor) -> torch.Tensor:
    row = ids[None] if ids.ndim == 1 else ids
    if row.shape[0] != 1 or row.shape[1] < 2:
        raise NoView(f"These views look at one text of two tokens or more; the ids given are {tuple(ids.shape)}.")
    if row.is_floating_point() or row.dtype == torch.bool:
        raise NoView(f"Token ids are whole numbers; these are {row.dtype}.")
    return row.to(device_of(model), torch.long)
