"""Which tokens run through the parts of a model that an adapter runs for some of them only."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import NoView


@torch.no_grad()
def tokens_run(injection: Injection, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return which tokens of a text run at each site, by site key: (B T,), true for those that do.

    Args:
        injection: of an adapter that chooses tokens.
        ids: token ids, (B, T); the rows of the result are laid end to end.

    Raises:
        NoView: the adapter runs all tokens.
    """
    found: dict[str, torch.Tensor] = {}
    choosing = {key: adapter for key, adapter in injection.adapters.items() if hasattr(adapter, "tokens_run")}
    if not choosing:
        raise NoView(f"{injection.config.type!r} runs all tokens, and chooses none.")
    with ExitStack() as hooks:
        for key, adapter in choosing.items():
            hooks.enter_context(adapter.register_forward_pre_hook(partial(_keep, found, key)))
        injection.model(input_ids=ids)
    return found


def _keep(found: dict[str, torch.Tensor], key: str, adapter: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    choosing: Any = adapter
    found[key] = choosing.tokens_run(args[0]).flatten().cpu()
