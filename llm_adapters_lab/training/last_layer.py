"""The last layer of a model, run only where a label is counted: no other token's output of it has any influence.

Keys and values are those of all tokens; the queries, the output of attention and the MLP are those of a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from posixpath import commonpath
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core.anatomy import Anatomy


def last_parts(anatomy: Anatomy) -> list[str]:
    """Return the paths of the last layer's MLP, or mixture, and its queries and output of attention, if it has such.

    Nothing is returned if the MLP is no module.
    """
    layer = anatomy.layers[-1]
    number = max(site.layer for site in anatomy.projections)
    sites = [site for site in (*anatomy.projections, *anatomy.sublayers) if site.layer == number]
    own = [(site, site.path.removeprefix(f"{layer}.")) for site in sites if site.path.startswith(f"{layer}.")]
    mlp = [path.rpartition(".")[0] or path for site, path in own if (site.sublayer or site.role) in ("mlp", "experts")]
    shared = commonpath([path.replace(".", "/") for path in mlp]).replace("/", ".") if mlp else ""
    attention = [path for site, path in own if site.sublayer == "attn" and site.role in ("q", "o")]
    return [f"{layer}.{path}" for path in (shared, *attention)] if shared else []


@contextmanager
def run_at(module: nn.Module, tokens: torch.Tensor, shape: Sequence[int]) -> Iterator[None]:
    """Run a module for some tokens only; the others get zeros.

    Adapters in the module and at it see those tokens alone.

    Args:
        module: its inputs and output are (B, T, d), and it treats every token by itself.
        tokens: indices among all B times T, each once and in order, (N,).
        shape: (B, T); inputs of another shape are for all tokens.
    """
    shape = torch.Size(shape)

    def gather(x: Any) -> Any:
        whole = isinstance(x, torch.Tensor) and x.ndim == 3 and x.shape[:2] == shape
        return x.flatten(0, 1).index_select(0, tokens)[None] if whole else x

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tuple(map(gather, args)), {name: gather(x) for name, x in kwargs.items()}

    def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        first: torch.Tensor = next(iter((*args, *kwargs.values())))
        if first.shape[:2] != (1, len(tokens)):
            return out
        y: torch.Tensor = out[0] if isinstance(out, tuple) else out
        if y.shape[:-1].numel() != len(tokens):
            raise ValueError(f"{type(module).__name__} returns {tuple(y.shape)} for {len(tokens)} tokens.")
        whole = y.new_zeros(shape.numel(), y.shape[-1]).index_copy(0, tokens, y.flatten(0, -2)).view(*shape, -1)
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    entry = module.register_forward_pre_hook(before, with_kwargs=True)
    with entry, module.register_forward_hook(after, with_kwargs=True):
        yield
