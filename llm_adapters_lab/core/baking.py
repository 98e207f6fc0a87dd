"""Bake an adapter whose tensors are generated for a group into an ordinary one, which merges and needs no groups."""

from __future__ import annotations

import torch

from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.errors import CannotConvert


@torch.no_grad()
def bake(injection: Injection, group: str = "mean") -> Injection:
    """Replace an adapter by the ordinary one that it generates for a group, in its model and under its name.

    Args:
        injection: the adapter.
        group: name of a group, or "mean" for what a call without groups has.

    Raises:
        CannotConvert: its tensors are not generated. As after other errors, nothing has changed.
        BadSpec: it has no part for the group.
    """
    made = {}
    for key, adapter in injection.adapters.items():
        if adapter.for_tokens:
            raise CannotConvert(f"{injection.name!r} trains rows of new tokens too, which cannot be baked.")
        if adapter.baked is None:
            raise CannotConvert(f"{injection.config.type!r} has no tensors that are generated for groups.")
        config, tensors = adapter.baked(injection.config, group)
        made[key] = {f"{key}/{name}": tensor.clone() for name, tensor in tensors.items()}
    kept = injection.name, injection.prompt, injection.other_base
    model = injection.eject()
    plain = inject(model, config, name=kept[0])
    plain.load_state_dict({name: tensor for own in made.values() for name, tensor in own.items()})
    plain.prompt, plain.other_base = kept[1:]
    return plain
