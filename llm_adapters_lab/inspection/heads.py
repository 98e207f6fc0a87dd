"""What an adapter changes in each attention head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import NoView, UnknownAnatomy
from llm_adapters_lab.inspection.weight_metrics import weight_change

ROLES = ("q", "k", "v", "o")


@dataclass(frozen=True)
class HeadChange:
    """The change of one attention projection by head.

    Attributes:
        layer: of the projection.
        role: q, k, v or o.
        change: ‖ΔW_h‖_F, (heads,).
        relative: ‖ΔW_h‖_F / ‖W_h‖_F, (heads,); infinite where the base holds only zeros.
    """

    layer: int
    role: str
    change: torch.Tensor
    relative: torch.Tensor


def head_changes(injection: Injection, keys: Sequence[str] | None = None) -> dict[str, HeadChange]:
    """Return how much an adapter changes each head of the projections q, k, v and o.

    ΔW of q, k or v is (heads · d_h, d_in), so head h has the rows h d_h … (h + 1) d_h - 1; ΔW of o is (d_out, heads ·
    d_h), where it has these columns. The squares of a projection's norms sum to ‖ΔW‖². Keys and values of grouped-query
    models have fewer heads than queries. The sizes are those of the model's own cache.

    Args:
        injection: the adapters.
        keys: of the sites to look at; default: all.

    Returns:
        By site key.

    Raises:
        NoView: the adapter changes no weights of these projections, or the heads of the model cannot be told apart.
    """
    able = [key for key, site in injection.sites.items() if site.role in ROLES and site.side == "out"]
    keys = [key for key in able if keys is None or key in keys]
    if not keys:
        raise NoView(f"{injection.config.type!r} is at none of the attention projections q, k, v and o.")
    first = weight_change(injection, keys[0])  # raises for methods without a change
    shapes = _shapes(injection)
    exits = {s.layer: s for s in injection.anatomy.projections if s.role == "o"}
    found = {}
    for key in keys:
        site = injection.sites[key]
        heads = _heads(site, shapes.get(site.layer), exits.get(site.layer))
        if not heads:
            continue
        change = first if key == keys[0] else weight_change(injection, key)
        own = weights.own_tensors(injection.host(key))["weight"].float()
        sizes = [_by_head(z, heads, site.role) for z in (change, own)]
        found[key] = HeadChange(site.layer, site.role, sizes[0], sizes[0] / sizes[1])
    if not found:
        raise NoView("The heads of these projections cannot be told apart by their widths.")
    return found


def _shapes(injection: Injection) -> dict[int, tuple[int, int, int]]:
    model: Any = injection.model
    try:
        return injection.anatomy.cache_shapes(model)
    except UnknownAnatomy as error:
        raise NoView(f"The heads of this model are unknown: {error}") from None


def _heads(site: Site, shape: tuple[int, int, int] | None, out: Site | None) -> int:
    """Return the number of heads in a projection; 0 if it is unknown."""
    if shape is None:
        return 0
    key_heads, _, width = shape
    if site.role in ("k", "v"):
        return key_heads if site.d_out % key_heads == 0 else 0
    heads, rest = divmod(out.d_in, width) if out else (0, 1)
    return 0 if rest or not heads or (site.role == "q" and site.d_out % heads) else heads


def _by_head(z: torch.Tensor, heads: int, role: str) -> torch.Tensor:
    parts = z.T if role == "o" else z
    norms: torch.Tensor = parts.reshape(heads, -1).norm(dim=1)
    return norms.cpu()
