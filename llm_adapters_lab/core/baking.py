"""What becomes of adapters with a part for each group: ordinary adapters of one group, and parts for new groups."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import CannotConvert


@torch.no_grad()
def bake(injection: Injection, group: str = "mean") -> Injection:
    """Replace an adapter by the ordinary one that it generates for a group, in its model and under its name.

    Args:
        injection: the adapter.
        group: name of a group, or "mean" for what a call without groups has.

    Raises:
        CannotConvert: its tensors are not generated, or it has other parts. As after other errors, nothing has changed.
        BadSpec: it has no part for the group.
    """
    if injection.config.parts != (injection.config,):
        raise CannotConvert(f"{injection.name!r} has several parts. Only an adapter of a single one can be baked.")
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


def for_groups(tensors: Mapping[str, torch.Tensor], old: AdapterConfig, new: AdapterConfig) -> dict[str, torch.Tensor]:
    """Return saved tensors with rows for the groups of another config; a group that is not known has the mean row.

    Args:
        tensors: as `Injection.saved_tensors` returns them.
        old: the config that they were saved with.
        new: another one of the same method.
    """
    found = dict(tensors)
    for number, (before, after) in enumerate(zip(old.parts, new.parts, strict=True)):
        prefix = "" if before is old else f"{number}/"
        known, wanted = (get_adapter(config.type).cls.by_group(config) for config in (before, after))
        for key in tensors:
            rows = known.get(name := key.rpartition("/")[2], ()) if key.startswith(prefix) else ()
            if rows and tensors[key].shape[:1] == (len(rows),) and tensors[key].is_floating_point():
                own, mean = dict(zip(rows, tensors[key], strict=True)), tensors[key].mean(0)
                found[key] = torch.stack([own.get(row, mean) for row in wanted[name]])
    return found
