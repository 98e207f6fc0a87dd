"""Wrappers: what stands between an adapter's tensors and their use, whatever the adapter.

A wrapper is chosen in the spec beside the adapter, e.g. `adapter: {type: series, sparse: {score: snip}}`. It is a
parametrisation of torch on each of the adapter's matrices: the adapter reads the masked or quantised matrix where it
reads its own, the optimiser sees the plain one. Vectors and scalars stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from llm_adapters_lab.errors import BadSpec, CannotInject
from llm_adapters_lab.wrappers import quantize, sparse, split
from llm_adapters_lab.wrappers.quantize import QuantizeConfig as QuantizeConfig
from llm_adapters_lab.wrappers.sparse import SparseConfig as SparseConfig
from llm_adapters_lab.wrappers.split import SplitConfig as SplitConfig

if TYPE_CHECKING:
    from llm_adapters_lab.inject import Injection

KINDS: dict[str, Callable[[list[torch.Tensor], Any], list[nn.Module]]] = {
    "sparse": sparse.masks,
    "split": split.parts,
    "quantize": quantize.quantisers,
}
"""By field of the adapter's config: what makes a wrapper for each of the adapter's matrices."""


def wrap(injection: Injection, trains_base: bool) -> None:
    """Put the wrapper that the config asks for, if any, on every matrix of the adapters.

    Args:
        injection: built, not yet hung into its model.
        trains_base: the adapter's tensors are copies of the base's own.

    Raises:
        BadSpec: there is more than one.
        CannotInject: the adapter has no matrices, or none that can be wrapped.
    """
    asked = {kind: part for kind in KINDS if (part := getattr(injection.config, kind)) is not None}
    if not asked:
        return
    if len(asked) > 1:
        raise BadSpec(f"adapter.{' and adapter.'.join(asked)} exclude one another. Choose one.")
    ((kind, part),) = asked.items()
    places = list(_matrices(injection, last=getattr(part, "of", "all") == "last"))
    if trains_base or not places:
        what = "trains the base's own parameters" if trains_base else "has no matrices"
        raise CannotInject(f"{injection.config.type!r} {what}, so there is nothing for adapter.{kind} to act on.")
    if any(isinstance(module, nn.RNNBase) for module, _ in places):
        raise CannotInject(f"adapter.{kind} cannot act on recurrent weights. Choose encoder: mlp or none.")
    made = KINDS[kind]([getattr(module, name).detach() for module, name in places], part)
    for (module, name), wrapper in zip(places, made, strict=True):
        parametrize.register_parametrization(module, name, wrapper, unsafe=True)


def wrapped(injection: Injection) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """Yield the matrices that carry a wrapper: name as in `Injection.state_dict`, plain matrix, wrapper."""
    for key, adapter in injection.adapters.items():
        for path, module in adapter.named_modules():
            if isinstance(module, parametrize.ParametrizationList):
                original = module.original
                assert isinstance(original, nn.Parameter)
                yield f"{key}/{path}.original", original, module[0]


def idle(injection: Injection) -> int:
    """Return how many of the trainable numbers a wrapper keeps at zero for good."""
    return sum(wrapper.dropped for _, _, wrapper in wrapped(injection) if isinstance(wrapper, sparse.Mask))


def _matrices(injection: Injection, last: bool) -> Iterator[tuple[nn.Module, str]]:
    for adapter in injection.adapters.values():
        named = [(module, *named) for module in adapter.modules() for named in module.named_parameters(recurse=False)]
        places = [(module, name) for module, name, parameter in named if parameter.ndim > 1]
        yield from places[-1:] if last else places
