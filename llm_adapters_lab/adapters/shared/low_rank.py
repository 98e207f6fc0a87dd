"""Initialisation of low-rank adapters, and their conversion to and from peft."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.functional import embedding, linear, pad

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.adapter import Units
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotConvert, CannotInject, CannotMerge, StateMismatch


class HeadedConfig(AdapterConfig):
    """Fields of every low-rank adapter that several heads can train together."""

    has_factors = True

    def headed(self, heads: int, dense: bool) -> AdapterConfig:
        """Return the config of a full update, or of the heads' factors one below the other."""
        if dense:
            full = next(entry for entry in all_adapters().values() if entry.config.full_rank)
            return full.config(type=full.name, at=self.at)
        return self.model_copy(update={"rank": heads * self.rank})  # type: ignore[attr-defined]


MOVED = ("pissa", "olora")
"""Initialisations from the weight: what is learnt is the change of B A."""
T = TypeVar("T")
# Initialisations of peft that change neither the base nor the meaning of the saved tensors.
_NEUTRAL = (True, False, "gaussian", "orthogonal", "eva", "mica")


def base_weight(site: Site, base: nn.Module) -> torch.Tensor:
    """Return the weight W (d_out, d_in) of the host, in fp32.

    Raises:
        CannotInject: the site is an input, or its weight cannot be read.
    """
    if site.side == "out":
        try:
            return weights.read(base).detach().float()
        except CannotMerge as error:
            raise CannotInject(f"This adapter needs the weight of {site.path}. {error}") from None
    raise CannotInject(f"This adapter needs the weight of a projection; {site.key} is an input and has none.")


def initial_factors(
    init: str, rank: int, factor: float, site: Site, base: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the initial A (r, d_in) and B (d_out, r).

    Args:
        init: kaiming (A Kaiming-uniform, B zero), gaussian (A with standard deviation 1 / r, B zero), pissa
            (factor B A is the best rank-r approximation of W) or olora (the first r columns and rows of W = Q R).
        rank: r.
        factor: by which B A is multiplied.
        site: of the adapter.
        base: the host.

    Raises:
        CannotInject: for pissa and olora, the weight cannot be read, or has a side shorter than r.
    """
    a, b = torch.empty(rank, site.d_in), torch.zeros(site.d_out, rank)
    if init == "gaussian":
        nn.init.normal_(a, std=1 / rank)
    elif init == "kaiming":
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    else:
        weight = base_weight(site, base)
        if rank > min(weight.shape):
            raise CannotInject(f"{site.path} is {tuple(weight.shape)}, too small for {init} of rank {rank}.")
        if init == "olora" and weight.device.type != "meta":
            q, triangle = torch.linalg.qr(weight)
            a, b = triangle[:rank].contiguous(), q[:, :rank].contiguous()
        elif weight.device.type != "meta":
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            root = (s[:rank] / factor).sqrt()
            a, b = (root[:, None] * v[:rank]).contiguous(), (u[:, :rank] * root).contiguous()
    return a, b


def product(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """Return s B A x, (..., d_out); for token ids x (...), the rows x of s B A, (..., d_in).

    peft multiplies what B returns by s. A power of two is multiplied into the r numbers before B instead: short of
    overflow and underflow all bits are the same, and a pass over the output is saved.
    """
    if not x.is_floating_point():
        return embedding(x, b) @ a * scale
    early = isinstance(scale, float) and math.frexp(scale)[0] == 0.5
    return linear(linear(x, a) * scale, b) if early else linear(linear(x, a), b) * scale


def units(config: Any) -> Units | None:
    """Return the r dimensions between A and B, unless these are moved from the base, or scaled by a learned number."""
    return None if config.init in MOVED or config.scale == "learned" else Units({"A": 0, "B": 1}, "linear")


class Remembered:
    """The last result of a function of a base's weight and an adapter's tensors, computed again when they change.

    The tensors are compared by value, since an optimiser may write to them without a trace; the frozen weight by
    identity, version and diagonal: a change through `.data` leaves the version as it is, and one that leaves the
    diagonal too is not noticed.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self.state: tuple[torch.Tensor, tuple[Any, ...]] | None = None
        self.inputs: list[torch.Tensor | float] = []
        self.value: Any = None

    def get(self, compute: Callable[[], T], base: nn.Module, *inputs: torch.Tensor | float) -> T:
        """Return `compute()`, a function of the inputs and of the weight of the host `base`, without a gradient."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.get(compute, base, *inputs)
        state, old = weights.state(base), self.state
        if state is not None and type(state[0]) in _PLAIN and not state[0].is_meta:
            inputs = (*inputs, state[0].diagonal(0, -2, -1))
        known = old is not None and state is not None and old[0] is state[0] and old[1] == state[1]
        if not (known and all(map(_same, self.inputs, inputs))):
            self.value = compute()
            self.state = state
            self.inputs = [given.detach().clone() if isinstance(given, torch.Tensor) else given for given in inputs]
        return self.value  # type: ignore[no-any-return]


_PLAIN = (torch.Tensor, nn.Parameter)


def _same(a: torch.Tensor | float, b: torch.Tensor | float) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        return a is b or (type(a) is type(b) and bool(a == b))
    return a.dtype == b.dtype and a.device == b.device and not a.is_meta and torch.equal(a, b)


def to_peft(adapter: Any, config: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return peft's config fields and tensors for a low-rank adapter.

    For PiSSA and OLoRA, peft would change the base. Instead, the update of rank r is saved as one of rank 2 r:
    B A - B_0 A_0 = [B, -B_0] [A; A_0].
    """
    a, b, rank = adapter.A, adapter.B, config.rank
    rooted = config.scale == "rslora"
    alpha: float = config.alpha
    learned = adapter.scale * rank / alpha if config.scale == "learned" else 1.0
    if config.init in MOVED:
        a, b, rank = torch.cat([a, adapter.A0]), torch.cat([b, -adapter.B0], dim=1), 2 * rank
        alpha *= math.sqrt(2) if rooted else 2
    b = b * learned
    fields = {"r": rank, "lora_alpha": alpha, "lora_dropout": config.dropout, "use_rslora": rooted, "bias": "none"}
    return fields, {"lora_A.weight": a, "lora_B.weight": b}


def from_peft(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the lab's fields for a peft config of LoRA; the converted fields are removed from `fields`.

    The rank is the largest of any module; `read_peft` brings the others to it.

    Raises:
        CannotConvert: peft changed the base when it started the adapter, and the folder does not hold how.
    """
    init = fields.pop("init_lora_weights", True)
    transposed = fields.pop("fan_in_fan_out", False)  # how the base stores its weight
    if init not in (*MOVED, *_NEUTRAL) or (init == "olora" and transposed):
        raise CannotConvert(
            f"init_lora_weights = {init!r} may change the weights of the base in peft, and the folder does not hold "
            "the change. Save that base too (`model.unload().save_pretrained`), set init_lora_weights to true in the "
            "folder, and load it into that base. Nothing was loaded."
        )
    for name in ("eva", "corda", "loftq", "lora_ga"):  # of the initialisation, which is over
        fields.pop(f"{name}_config", None)
    rank, alpha, ranks = fields.pop("r"), fields.pop("lora_alpha"), fields.pop("rank_pattern", None)
    for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", fields.pop("alpha_pattern", None))):
        numbers = [rank, alpha, *pattern.values()] if isinstance(pattern, dict) else [None]
        if pattern and (init in MOVED or not all(isinstance(n, int | float) and 0 < n < 1e6 for n in numbers)):
            raise CannotConvert(
                f"{name} = {pattern!r:.200}, beside r = {rank!r} and lora_alpha = {alpha!r}: the lab reads names with "
                f"positive numbers, and none with {' or '.join(MOVED)}. Nothing was loaded."
            )
    return {
        "rank": max(rank, *ranks.values()) if ranks else rank,
        "alpha": alpha,
        "dropout": fields.pop("lora_dropout", 0.0),
        "init": init if init in MOVED else "kaiming",
        "scale": "rslora" if fields.pop("use_rslora", False) else "alpha",
    }


def read_peft(tensors: dict[str, torch.Tensor], fields: dict[str, Any], path: str) -> dict[str, torch.Tensor]:
    """Bring the tensors of one module to the rank and scale that all have in the lab; B A times the scale is the same.

    Raises:
        CannotConvert: a pattern is no regular expression.
        StateMismatch: the tensors have another rank than the config.
    """
    ranks, alphas = fields.get("rank_pattern") or {}, fields.get("alpha_pattern") or {}
    if not ranks and not alphas:
        return tensors
    try:
        rank, alpha = _by_pattern(ranks, path, fields["r"]), _by_pattern(alphas, path, fields["lora_alpha"])
    except re.error as error:
        raise CannotConvert(f"rank_pattern or alpha_pattern holds an invalid regular expression: {error}.") from None
    a, b = tensors["lora_A.weight"], tensors["lora_B.weight"].float()
    if not a.ndim == b.ndim == 2 or not len(a) == b.shape[1] == rank:
        raise StateMismatch(
            f"{path} has rank {rank} in the config, but lora_A {tuple(a.shape)} and lora_B "
            f"{tuple(b.shape)}. Nothing was loaded."
        )
    more = max(fields["r"], *ranks.values()) - rank if ranks else 0
    ratio = (1 + more / rank) ** (0.5 if fields.get("use_rslora") else 1) * alpha / fields["lora_alpha"]
    return tensors | {"lora_A.weight": pad(a, (0, 0, 0, more)), "lora_B.weight": pad(b, (0, more)) * ratio}


def _by_pattern(patterns: dict[str, Any], path: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of a path, as in peft."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)
