"""Inventories of skills: the shares that a router gives them, and their conversion to and from peft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

PEFT = ("poly_lora_A", "poly_lora_B", "poly_router.module_logits")
"""Names in peft of A^T, of B^T times α, and of Z as (T, S K)."""
MOST_TASKS = 10_000


def mixtures(router: torch.Tensor, groups: Sequence[int]) -> torch.Tensor:
    """Return w, the share of each skill in every block of G groups: σ(Z) / Σ_k σ(Z), (G, S, K).

    Args:
        router: Z, (T, S, K).
        groups: their numbers; for none, the mean of all shares is returned, with G = 1.
    """
    opened = router.sigmoid()
    shares = opened / opened.sum(-1, keepdim=True)
    return shares[list(groups)] if groups else shares.mean(0, keepdim=True)


def to_peft(adapter: Any, config: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return peft's config fields and tensors; its scale is 1 / r, so that α is multiplied into B.

    In peft, tasks are numbers: those of the groups in their order.
    """
    tasks = len(adapter.Z)
    fields = {"r": config.rank, "n_skills": config.skills, "n_splits": config.blocks, "n_tasks": tasks}
    fields |= {"fan_in_fan_out": False}  # peft has no such field here
    own = adapter.A.mT, adapter.B.mT * config.alpha, adapter.Z.flatten(1)
    return fields, dict(zip(PEFT, own, strict=True))


def from_peft(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the lab's fields for a peft config; the converted fields are removed from `fields`.

    The groups are called "0", "1", …
    """
    rank, skills, blocks, tasks = (fields.pop(name) for name in ("r", "n_skills", "n_splits", "n_tasks"))
    for name in ("init_weights", "poly_type"):
        fields.pop(name, None)
    known = isinstance(tasks, int) and tasks <= MOST_TASKS
    groups = tuple(map(str, range(tasks))) if known else ()
    return {"rank": rank, "skills": skills, "blocks": blocks, "alpha": 1.0, "groups": groups}
