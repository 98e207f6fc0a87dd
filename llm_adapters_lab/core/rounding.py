"""What rounding takes from a merge: W + ΔW is stored in the dtype of the base, which in bf16 has three digits."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.errors import CannotMerge, LabError

KEPT = 0.9
"""Share of ΔW below which a merge must be asked for."""
NOTICED = 0.9999


@dataclass(frozen=True)
class Rounding:
    """What rounding takes from ΔW when it is merged.

    Attributes:
        kept: share of ΔW that survives, 1 - ||ΔW' - ΔW|| / ||ΔW|| over all changed tensors, where ΔW' is the change of
            what is stored; at least 0.
        worst: path of the module that keeps least.
        worst_kept: the same share for that module.
        logits: largest change of a logit on a fixed row of tokens; None if nothing is lost, or the model does not run
            on tokens alone.
    """

    kept: float
    worst: str
    worst_kept: float
    logits: float | None = None

    @property
    def noticeable(self) -> bool:
        """Whether it is worth telling."""
        return self.kept < NOTICED

    def told(self, model: nn.Module, before: torch.Tensor | None) -> Rounding:
        """Return this with the change of the logits since `before`, and warn if it is noticeable."""
        after = None if before is None else probe(model)
        found = self if before is None or after is None else replace(self, logits=float((after - before).abs().max()))
        if found.noticeable:
            warnings.warn(str(found), stacklevel=4)
        return found

    def __str__(self) -> str:
        """Return a sentence."""
        logits = "" if self.logits is None else f" The logits of a probe move by at most {self.logits:.2g}."
        worst = f"{self.worst}: {100 * self.worst_kept:.1f} %"
        return (
            f"{100 * self.kept:.1f} % of the adapter's ΔW survives rounding to the dtype of the base (least, "
            f"{worst}).{logits}"
        )


@torch.no_grad()
def measure(
    model: nn.Module, changes: Iterable[tuple[nn.Module, dict[str, torch.Tensor]]], round: bool = False
) -> Rounding:
    """Measure what rounding would take from changes: modules with their new tensors, as in `weights.own_tensors`.

    Raises:
        CannotMerge: less than 90 % would survive, without `round`; or a value is not finite in the dtype of the base.
    """
    paths, shares = {module: path for path, module in model.named_modules()}, {"": 1.0}
    totals = torch.zeros(3, dtype=torch.float64)
    for host, changed in changes:
        own, sums = weights.own_tensors(host), torch.zeros(3, dtype=torch.float64)
        for name, new in changed.items():
            dtype: Any = model.dtype if weights.is_quantized(host) else getattr(host, name).dtype
            wanted, stored = new.float() - own[name], new.to(dtype).float()
            if not bool(stored.isfinite().all()):
                raise CannotMerge(f"{paths[host]}: W + ΔW holds values that are not finite in {dtype}. Do not merge.")
            lost = stored - own[name].to(dtype).float() - wanted
            sums += torch.tensor([float(t.norm()) ** 2 for t in (wanted, lost, own[name])])
        totals += sums
        shares[paths[host]] = _kept(*sums.tolist())
    worst = min(shares, key=shares.__getitem__)
    found = Rounding(_kept(*totals.tolist()), worst, shares[worst])
    if found.kept < KEPT and not round:
        raise CannotMerge(
            f"Only {str(found).partition(' (')[0]}: {worst} keeps {100 * shares[worst]:.1f} %. Do not merge, load the "
            f"base in fp32, or accept the loss: merge(round=True), --round."
        )
    return found


def _kept(wanted: float, lost: float, own: float) -> float:
    # A change below the precision of fp32 is itself a rounding error.
    return max(0.0, 1 - (lost / wanted) ** 0.5) if wanted > 1e-12 * own else 1.0


@torch.no_grad()
def probe(model: Any) -> torch.Tensor | None:
    """Return the logits of a fixed row of 32 tokens, or None if the model does not run on tokens alone."""
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if not isinstance(table, nn.Embedding) or weights.device(model).type == "meta":
        return None
    try:
        with weights.evaluating(model):
            ids = torch.arange(32, device=weights.device(model)) * 7919 % table.num_embeddings
            found: torch.Tensor = model(input_ids=ids[None]).logits.float()
            return found
    except (AttributeError, LabError, TypeError, ValueError):
        return None
