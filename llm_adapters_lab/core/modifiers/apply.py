"""Apply the modifier that a config asks for to the matrices of adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from llm_adapters_lab.core.modifiers import low_bit, masks, partition
from llm_adapters_lab.core.modifiers.base import Modifier
from llm_adapters_lab.errors import BadSpec, CannotInject

KINDS: dict[str, Callable[[list[torch.Tensor], Any], list[Modifier]]] = {
    "sparse": masks.masks,
    "split": partition.parts,
    "quantize": low_bit.quantisers,
}
"""By field of the adapter's config: the function that creates a modifier for each matrix."""


def apply_modifiers(adapters: Mapping[str, nn.Module], config: Any, *, trains_base: bool, group: str = "") -> None:
    """Parametrise the matrices of adapters, which are not attached yet, by the modifier of their config, if any.

    Args:
        adapters: by site key.
        config: of the adapters.
        trains_base: whether they train the base's own parameters.
        group: name of the part that they are, which the modifiers get.

    Raises:
        BadSpec: the config asks for more than one.
        CannotInject: the adapters have no matrices, or some that cannot be parametrised.
    """
    wanted = {kind: part for kind in KINDS if (part := getattr(config, kind)) is not None}
    if not wanted:
        return
    if len(wanted) > 1:
        raise BadSpec(f"adapter.{' and adapter.'.join(wanted)} exclude one another. Choose one.")
    ((kind, part),) = wanted.items()
    places = list(dict.fromkeys(_matrices(adapters, last=getattr(part, "of", "all") == "last")))
    if trains_base or not places:
        what = "trains the base's own parameters" if trains_base else "has no matrices"
        raise CannotInject(f"{config.type!r} {what}, so there is nothing for adapter.{kind} to act on.")
    if any(isinstance(module, nn.RNNBase) for module, _ in places):
        raise CannotInject(f"adapter.{kind} cannot act on recurrent weights. Choose encoder: mlp or none.")
    matrices = [module.get_parameter(name) for module, name in places]
    distinct = list(dict.fromkeys(matrices))  # adapters that share a matrix also share its modifier
    made = dict(zip(distinct, KINDS[kind]([w.detach() for w in distinct], part), strict=True))
    for (module, name), w in zip(places, matrices, strict=True):
        made[w].group = group
        parametrize.register_parametrization(module, name, made[w], unsafe=True)


def _matrices(adapters: Mapping[str, nn.Module], last: bool) -> Iterator[tuple[nn.Module, str]]:
    for adapter in adapters.values():
        modules = [(module, dict(module.named_parameters(recurse=False))) for module in adapter.modules()]
        places = [(module, name) for module, own in modules for name, p in own.items() if p.ndim > 1]
        yield from places[-1:] if last else places
