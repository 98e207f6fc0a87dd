"""Put the modifiers that a config asks for around an adapter's matrices."""

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
"""By field of the adapter's config: the function that makes a modifier for each of the adapter's matrices."""


def wrap(adapters: Mapping[str, nn.Module], config: Any, *, trains_base: bool) -> None:
    """Put the modifier that a config asks for, if any, on every matrix of some adapters.

    Args:
        adapters: built, not yet attached to a model; by site key.
        config: of the adapters.
        trains_base: the adapter's tensors are copies of the base's own.

    Raises:
        BadSpec: there is more than one.
        CannotInject: the adapter has no matrices, or none that can be wrapped.
    """
    asked = {kind: part for kind in KINDS if (part := getattr(config, kind)) is not None}
    if not asked:
        return
    if len(asked) > 1:
        raise BadSpec(f"adapter.{' and adapter.'.join(asked)} exclude one another. Choose one.")
    ((kind, part),) = asked.items()
    places = list(_matrices(adapters, last=getattr(part, "of", "all") == "last"))
    if trains_base or not places:
        what = "trains the base's own parameters" if trains_base else "has no matrices"
        raise CannotInject(f"{config.type!r} {what}, so there is nothing for adapter.{kind} to act on.")
    if any(isinstance(module, nn.RNNBase) for module, _ in places):
        raise CannotInject(f"adapter.{kind} cannot act on recurrent weights. Choose encoder: mlp or none.")
    matrices = [module.get_parameter(name) for module, name in places]
    distinct = list(dict.fromkeys(matrices))  # adapters may share a matrix, and then share its modifier
    made = dict(zip(distinct, KINDS[kind]([w.detach() for w in distinct], part), strict=True))
    for (module, name), w in zip(places, matrices, strict=True):
        parametrize.register_parametrization(module, name, made[w], unsafe=True)


def _matrices(adapters: Mapping[str, nn.Module], last: bool) -> Iterator[tuple[nn.Module, str]]:
    for adapter in adapters.values():
        named = [(module, *named) for module in adapter.modules() for named in module.named_parameters(recurse=False)]
        places = [(module, name) for module, name, parameter in named if parameter.ndim > 1]
        yield from places[-1:] if last else places
