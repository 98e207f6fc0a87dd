"""What low-rank adapters share: how the two factors start, and the form they have in peft."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject, CannotMerge

# What peft may have started from without leaving a trace in base or adapter.
_TRACELESS = (True, False, "gaussian", "orthogonal", "eva")


def base_weight(site: Site, base: nn.Module) -> torch.Tensor:
    """Return the weight W (d_out, d_in) that an adapter works with, in fp32.

    Raises:
        CannotInject: the site has no weight of its own, or it is quantised.
    """
    if site.side == "out":
        try:
            return weights.read(base).detach().float()
        except CannotMerge as error:
            raise CannotInject(f"This adapter works with the weight of {site.path}. {error}") from None
    raise CannotInject(f"This adapter works with a projection's weight; {site.key} is an input and has none.")


def start(init: str, rank: int, factor: float, site: Site, base: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first A (r, d_in) and B (d_out, r).

    Args:
        init: kaiming (A Kaiming-uniform, B zero), gaussian (A with standard deviation 1 / r, B zero) or pissa
            (factor B A is the best approximation of rank r to W).
        rank: r.
        factor: with which B A is multiplied.
        site: where they sit.
        base: the module there.

    Raises:
        CannotInject: pissa needs a weight that cannot be read, or has not so many singular directions.
    """
    a, b = torch.empty(rank, site.d_in), torch.zeros(site.d_out, rank)
    if init == "gaussian":
        nn.init.normal_(a, std=1 / rank)
    elif init == "kaiming":
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    else:
        weight = base_weight(site, base)
        if rank > min(weight.shape):
            raise CannotInject(f"{site.path} is {tuple(weight.shape)}, so it has no {rank} singular directions.")
        if weight.device.type != "meta":
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            root = (s[:rank] / factor).sqrt()
            a, b = root[:, None] * v[:rank], (u[:, :rank] * root).contiguous()
    return a, b


def to_peft(adapter: Any, config: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return peft's config fields and tensors of a low-rank adapter.

    peft changes the base for PiSSA; so that it need not, the change of rank r is written as one of rank 2 r:
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
    """Return the lab's fields for a peft config of the LoRA kind; what is understood is taken out of `fields`."""
    began = fields.get("init_lora_weights", True)
    if began == "pissa" or began in _TRACELESS:
        fields.pop("init_lora_weights", None)
    fields.pop("fan_in_fan_out", None)  # says how the base stores its weight, which the lab sees for itself
    return {
        "rank": fields.pop("r"),
        "alpha": fields.pop("lora_alpha"),
        "dropout": fields.pop("lora_dropout", 0.0),
        "init": "pissa" if began == "pissa" else "kaiming",
        "scale": "rslora" if fields.pop("use_rslora", False) else "alpha",
    }
