"""Run an MLP for some tokens only: those tokens are gathered before its projections, and its output is put in place.

An adapter that decides which tokens run (`Adapter.token_gate`) sits at an MLP. Hooks on the projections that read the
input of the MLP hand them (1, tokens that run, d) in place of (..., d), and all that follows is computed for these
tokens only. At the exit of the MLP, their rows are multiplied by the gate and the other tokens get zeros. All adapters
at the MLP then see an output of the usual shape. This is exact as long as an MLP treats each token by itself, and does
not depend on whether it is a module or lies open in the layer.

Adapters at the projections of the MLP, such as LoRA at `down`, are part of what runs, and see the gathered tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject

if TYPE_CHECKING:
    from llm_adapters_lab.core.anatomy import Anatomy

READERS = {"gate", "up", "gate_up"}
"""The roles of the projections that read the input of an MLP."""


@dataclass(frozen=True)
class Running:
    """The tokens for which an MLP runs in a call.

    Attributes:
        shape: of the tokens in that call, such as (B, T).
        index: of the tokens that run, within all of them laid end to end, (K,).
        gate: the factor of their output, (K,).
    """

    shape: torch.Size
    index: torch.Tensor
    gate: torch.Tensor

    @classmethod
    def of(cls, gate: torch.Tensor) -> Running:
        """Return the tokens whose gate (...) is not zero."""
        flat = gate.flatten()
        index = flat.nonzero()[:, 0]
        return cls(gate.shape, index, flat[index])

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens of x (..., d) that run, (1, K, d), or (K, d) if x has no rows."""
        found = x.flatten(0, -2).index_select(0, self.index)
        return found[None] if x.ndim > 2 else found

    def scatter(self, y: torch.Tensor) -> torch.Tensor:
        """Return what the MLP made of them, times their gates, in the place of each token, and zeros elsewhere."""
        rows = (y.flatten(0, -2) * self.gate[:, None]).to(y.dtype)
        whole = rows.new_zeros(self.shape.numel(), y.shape[-1]).index_copy(0, self.index, rows)
        return whole.view(*self.shape, -1)


def readers_of(kind: str, site: Site, anatomy: Anatomy) -> tuple[str, ...]:
    """Return the paths of the projections that read the input of the MLP at a site, in order of execution.

    Args:
        kind: type of the adapter, for messages.
        site: of the adapter.
        anatomy: of the model.

    Raises:
        CannotInject: the site is not a whole MLP whose projections can run for some tokens only.
    """
    what = f"{kind!r} runs the MLP of a layer for some tokens only"
    if site.role != "mlp" or site.side != "out":
        raise CannotInject(f"{what}, and {site.path} is no MLP (it is {site.role!r}). Place it at `mlp`.")
    own = [p for p in anatomy.projections if (p.layer, p.sublayer) == (site.layer, site.sublayer)]
    whole = [s for s in anatomy.sublayers if (s.layer, s.role) == (site.layer, site.role)]
    readers = [p for p in own if p.path != site.path]
    if site.reader == site.path or len(whole) > 1:
        raise CannotInject(
            f"{what}, and {site.path} is a mixture, or one of several in its layer. Place it at the layers with one "
            "plain MLP, as in `mlp@0`, or choose another adapter."
        )
    if any(p.role not in READERS or p.d_in != site.d_in or "receptance" in p.path for p in readers):
        raise CannotInject(
            f"{what}, and in {site.path.rpartition('.')[0]} not all projections but the last read the input of the "
            "MLP. Choose another adapter."
        )
    return tuple(p.path for p in readers)


def check_chains(modules: Iterable[nn.Module]) -> None:
    """Check that no adapter at the projections of an MLP reads the call, whose tokens are not those that run.

    Raises:
        CannotInject: one does.
    """
    chains: list[Any] = [getattr(module, name, None) for module in modules for name in ("adapters", "input_adapters")]
    for name, adapter in ((name, a) for chain in chains if chain is not None for name, a in chain.active().items()):
        if any(getattr(a, "needs_context", False) or getattr(a, "looks_back", False) for a in adapter.modules()):
            raise CannotInject(
                f"The adapter {name!r} at a projection of an MLP reads the whole call, and another adapter runs this "
                "MLP for some tokens only. Place it elsewhere, or remove one of them."
            )
