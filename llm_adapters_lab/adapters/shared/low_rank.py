"""Initialisation of low-rank adapters, and their conversion to and from peft."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject, CannotMerge

# Initialisations of peft that change neither the base nor the meaning of the saved tensors.
_NEUTRAL = (True, False, "gaussian", "orthogonal", "eva")


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
        init: kaiming (A Kaiming-uniform, B zero), gaussian (A with standard deviation 1 / r, B zero) or pissa
            (factor B A is the best rank-r approximation of W).
        rank: r.
        factor: by which B A is multiplied.
        site: of the adapter.
        base: the host.

    Raises:
        CannotInject: for pissa, the weight cannot be read, or has fewer than r singular values.
    """
    a, b = torch.empty(rank, site.d_in), torch.zeros(site.d_out, rank)
    if init == "gaussian":
        nn.init.normal_(a, std=1 / rank)
    elif init == "kaiming":
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    else:
        weight = base_weight(site, base)
        if rank > min(weight.shape):
            raise CannotInject(f"{site.path} is {tuple(weight.shape)}, so it does not have {rank} singular values.")
        if weight.device.type != "meta":
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            root = (s[:rank] / factor).sqrt()
            a, b = root[:, None] * v[:rank], (u[:, :rank] * root).contiguous()
    return a, b


def to_peft(adapter: Any, config: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return peft's config fields and tensors for a low-rank adapter.

    For PiSSA, peft would change the base. Instead, the update of rank r is saved as one of rank 2 r:
    B A - B_0 A_0 = [B, -B_0] [A; A_0].
    """
    a, b, rank = adapter.A, adapter.B, config.rank
    rooted = config.scale == "rslora"
    alpha: float = config.alpha
    learned = adapter.scale * rank / alpha if config.scale == "learned" else 1.0
    if config.init == "pissa":
        a, b, rank = torch.cat([a, adapter.A0]), torch.cat([b, -adapter.B0], dim=1), 2 * rank
        alpha *= math.sqrt(2) if rooted else 2
    b = b * learned
    fields = {"r": rank, "lora_alpha": alpha, "lora_dropout": config.dropout, "use_rslora": rooted, "bias": "none"}
    return fields, {"lora_A.weight": a, "lora_B.weight": b}


def from_peft(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the lab's fields for a peft config of LoRA; the converted fields are removed from `fields`."""
    init = fields.get("init_lora_weights", True)
    if init == "pissa" or init in _NEUTRAL:
        fields.pop("init_lora_weights", None)
    fields.pop("fan_in_fan_out", None)  # how the base stores its weight
    return {
        "rank": fields.pop("r"),
        "alpha": fields.pop("lora_alpha"),
        "dropout": fields.pop("lora_dropout", 0.0),
        "init": "pissa" if init == "pissa" else "kaiming",
        "scale": "rslora" if fields.pop("use_rslora", False) else "alpha",
    }
