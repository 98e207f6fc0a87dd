"""What the units of an adapter read: the tokens whose embeddings excite or inhibit each row of its down projection."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.sites import WHOLE, Site
from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.core.weights import evaluating
from llm_adapters_lab.errors import NoView

_LINEAR = {functional.linear, torch._C._nn.linear}
_PRODUCT = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
_NORM = {functional.layer_norm, torch.layer_norm, functional.rms_norm, torch.rms_norm}
_FIRST = ("q", "k", "v", "qkv", "kv", "q_a", "kv_a", "gate", "up", "gate_up", "in_proj", "router")
"""Roles of the projections that a sublayer starts with."""
AT_ONCE = 8192
"""Rows of the embedding that are projected at a time."""


@dataclass(frozen=True)
class Reader:
    """A matrix with which an adapter reads what passes its site.

    Attributes:
        weight: one row for each unit, (units, d).
        of: whether it reads the site's input "x" or its output "y".
    """

    weight: torch.Tensor
    of: str


@dataclass(frozen=True)
class UnitTokens:
    """The tokens that the units of a bottleneck read, the units that tell tokens apart best first.

    Attributes:
        units: numbers of the units, (n,).
        high: ids of the k tokens with the highest scores, (n, k), the highest first.
        low: ids of the k tokens with the lowest scores, (n, k), the lowest first.
        high_scores: their scores, (n, k).
        low_scores: (n, k).
        spread: standard deviation of the projection of each unit over the vocabulary, (n,).
        norm: path of the norm that the embeddings pass through; "" for none.
    """

    units: torch.Tensor
    high: torch.Tensor
    low: torch.Tensor
    high_scores: torch.Tensor
    low_scores: torch.Tensor
    spread: torch.Tensor
    norm: str


@torch.no_grad()
def readers(injection: Injection, key: str) -> list[Reader]:
    """Return the down projections of the adapter at a site: A of a low-rank update, W_down of a bottleneck.

    They are found by probing: the adapter runs on random numbers, and every matrix that its input or output is
    multiplied with first, directly or after a norm of the adapter's own, is one. Matrices are those in effect, after
    masks and low bits.

    Args:
        injection: the adapters.
        key: of the site.

    Returns:
        The matrices in order of use; none for an adapter that multiplies its input with no matrix.
    """
    site, adapter = injection.sites[key], injection.adapters[key]
    tensors = [*adapter.parameters()]
    if site.side == "parameters" or site.role == "embed" or not site.d_in or not tensors:
        return []
    place = tensors[0]
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 2, d, generator=random).to(place.device, place.dtype) for d in (site.d_in, site.d_out))
    y = x if site.side == "in" else y
    try:
        with evaluating(adapter), _Watch({"y": y, "x": x}) as seen:
            adapter(x, y)
    except Exception:  # it needs more than x and y
        return []
    return [Reader(weight.detach().float(), of) for weight, of in seen.found]


class _Watch(TorchFunctionMode):
    """Collects the matrices that some tensors are multiplied with."""

    def __init__(self, streams: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.streams = list(streams.items())
        self.found: list[tuple[torch.Tensor, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        first = args[0] if args else None
        of = next((name for name, stream in reversed(self.streams) if stream is first), None)
        if of is not None and func in _NORM:
            self.streams.append((of, out))
        elif of is not None and func in (_LINEAR | _PRODUCT) and args[1].ndim == 2:
            self.found.append((args[1] if func in _LINEAR else args[1].T, of))
        return out


@torch.no_grad()
def unit_tokens(
    injection: Injection, key: str, *, k: int = 5, limit: int = 12, vocabulary: int | None = None
) -> list[UnitTokens]:
    """Return the tokens that the units of the adapter at a site read most strongly, with either sign.

        s_ut = <w_u, norm(e_t)>,   z_ut = (s_ut - mean_t s_ut) / std_t s_ut

    with w_u: (d,) the row of the down projection of unit u and e_t: (d,) the embedding of token t. A site that reads
    the residual stream through a norm of its layer gets the embeddings through that same norm, so that in layer 0, z is
    what the unit sees at a token without its context. Where there is no such norm, as for a bottleneck behind a
    sublayer, e_t is divided by its root mean square instead. In later layers the stream has moved away from the
    embeddings: tokens tell less the later the layer.

    Args:
        injection: the adapters.
        key: of the site.
        k: number of tokens at either end.
        limit: number of units, those with the largest std_t s_ut.
        vocabulary: number of tokens to look at; default: all rows of the embedding.

    Returns:
        One for each down projection, see `readers`.

    Raises:
        NoView: the adapter has no down projection there, or reads something else than the residual stream.

    Source: projections to the vocabulary as in Geva et al. 2021, arXiv:2012.14913, section 4, here for what is read;
    Dar et al. 2023, arXiv:2209.02535, section 3.
    """
    found = readers(injection, key)
    site, kind = injection.sites[key], injection.config.type
    if not found:
        raise NoView(f"{kind!r} at {site.role} has no down projection, so there are no units whose input can be named.")
    kept = [(reader, norm) for reader in found if (norm := stream_norm(injection, site, reader.of)) is not None]
    if not kept:
        raise NoView(
            f"{kind!r} at {site.role} reads values inside a sublayer, not the residual stream, so its units cannot be "
            "compared with the embeddings of tokens."
        )
    embed: Any = injection.model.get_input_embeddings()  # type: ignore[operator]
    table = embed.weight[:vocabulary].detach()
    if table.shape[1] != injection.anatomy.hidden:
        raise NoView(f"The embeddings have {table.shape[1]} dimensions, the stream {injection.anatomy.hidden}.")
    return [_tokens(injection.model, reader.weight, table, norm, k, limit) for reader, norm in kept]


def _tokens(model: nn.Module, weight: torch.Tensor, table: torch.Tensor, norm: str, k: int, limit: int) -> UnitTokens:
    module = model.get_submodule(norm) if norm else None
    scores = torch.cat([_through(module, part) @ weight.T.to(part.device) for part in torch.split(table, AT_ONCE)])
    spread, mean = scores.std(0), scores.mean(0)
    units = spread.argsort(descending=True)[:limit]
    scores = ((scores[:, units] - mean[units]) / spread[units].clamp(min=1e-12)).T
    high, low = (scores.topk(min(k, scores.shape[1]), largest=largest) for largest in (True, False))
    z = [part.cpu() for part in (units, high.indices, low.indices, high.values, low.values, spread[units])]
    return UnitTokens(z[0], z[1], z[2], z[3], z[4], z[5], norm)


def _through(norm: nn.Module | None, rows: torch.Tensor) -> torch.Tensor:
    if norm is not None:
        through: torch.Tensor = norm(rows)
        return through.float()
    rows = rows.float()
    return rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)


def stream_norm(injection: Injection, site: Site, of: str) -> str | None:
    """Return the path of the norm through which a site reads the residual stream.

    Args:
        injection: the adapters.
        site: one of them.
        of: whether its input "x" or its output "y" is read.

    Returns:
        "" if it reads the stream itself, or what a sublayer adds to it; None if it reads something else.
    """
    if of == "y" and site.side != "in":
        exits = {whole.path for whole in injection.anatomy.sublayers}
        return "" if site.path in exits and site.d_out == injection.anatomy.hidden else None
    if site.d_in != injection.anatomy.hidden or site.routed:
        return None
    model, reader = injection.model, (site.path if site.side == "in" else site.reader or site.path)
    seen: dict[tuple[int, int], str] = {}
    alive: list[torch.Tensor] = []
    result: list[str | None] = []

    def note(path: str, z: Any) -> None:
        if isinstance(z, torch.Tensor) and z.is_floating_point():
            seen[z.data_ptr(), z.numel()] = path
            alive.append(z)  # so that its memory is not given to another

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        z = args[0] if args else kwargs.get("hidden_states")
        result.append(seen.get((z.data_ptr(), z.numel())) if isinstance(z, torch.Tensor) else None)

    with ExitStack() as hooks, injection.disabled():
        for path, module in model.named_modules():
            if _is_norm(module, injection.anatomy.hidden):
                hooks.enter_context(module.register_forward_hook(lambda m, a, out, path=path: note(path, out)))
        for path in injection.anatomy.layers:
            layer = model.get_submodule(path)
            entry: Any = lambda m, a, kw: note("", a[0] if a else kw.get("hidden_states"))  # noqa: E731
            hooks.enter_context(layer.register_forward_pre_hook(entry, with_kwargs=True))
        hooks.enter_context(model.get_submodule(reader).register_forward_pre_hook(look, prepend=True, with_kwargs=True))
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device_of(model)), use_cache=False)
    if result and result[0] is None and (site.role in WHOLE or site.role.rpartition(".")[2] in _FIRST):
        return ""  # norms follow the sublayers of such a model
    return result[0] if result else None


def _is_norm(module: nn.Module, width: int) -> bool:
    own = [*module._parameters.values()]
    return bool(own) and not list(module.children()) and all(p is None or p.shape == (width,) for p in own)


def reading_sites(injection: Injection) -> list[str]:
    """Return the keys of the sites whose units `unit_tokens` can name, in order of layers.

    Of sites with one role and adapters of the same shapes, only the first is probed.
    """
    verdict: dict[Any, bool] = {}
    able = []
    for key, site in injection.sites.items():
        shapes = tuple((name, p.shape) for name, p in injection.adapters[key].named_parameters())
        like = (site.role, site.side, shapes)
        if like not in verdict:
            found = readers(injection, key)
            verdict[like] = any(stream_norm(injection, site, reader.of) is not None for reader in found)
        able += [key] * verdict[like]
    return able
