"""Which of several members an adapter listens to, token by token: trained adapters, or parts of a mixture."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import NoView


@torch.no_grad()
def member_weights(injection: Injection, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the weights that an adapter gives its members on a text, by site key: (T, members), each row sums to 1.

    Args:
        injection: of an adapter with members, such as a fusion, of a mixture with a router of its own, or of one that
            weights the streams of a model, whose key is "model".
        ids: token ids of a text, (1, T).

    Raises:
        NoView: the adapter has no members.
    """
    found: dict[str, torch.Tensor] = {}
    adapters = injection.adapters.items()
    weighing = {key: a for key, a in adapters if hasattr(a, "weights") or hasattr(a, "token_weights")}
    if not weighing:
        raise NoView(f"{injection.config.type!r} has no members between which it could choose.")
    with ExitStack() as hooks:
        for key, adapter in weighing.items():
            hooks.enter_context(adapter.register_forward_pre_hook(partial(_keep, found, key)))
        injection.model(input_ids=ids)
    return found


def _keep(found: dict[str, torch.Tensor], key: str, adapter: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    weighing: Any = adapter
    x, y = args
    by_token = hasattr(adapter, "token_weights")  # from x alone; others look at what the members change
    weights = weighing.token_weights(x) if by_token else weighing.weights(x, weighing.changes(x, y))
    found[key] = weights.reshape(-1, weights.shape[-1]).float().cpu()


def member_names(injection: Injection) -> list[str]:
    """Return what the members are called: the run or folder that each was loaded from, or its method and number.

    The list is empty if they have no names, as in a mixture, where member 0 of one site is not that of another.
    """
    of = next((getattr(part, "of", ()) for part in injection.config.parts if getattr(part, "of", ())), ())
    return [own.start if isinstance(own.start, str) and own.start else f"{own.type} {i}" for i, own in enumerate(of)]
