"""Where a `Recorder` looks: sites, layers, modules, attention, and the stream that enters or leaves them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import placement
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.hooks import Chain
from llm_adapters_lab.core.injection import injections
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotRecord

LAYERS, EMBED = "layers", "embed"


@dataclass(frozen=True)
class Place:
    """A site, or any module, to watch.

    Attributes:
        path: of the module.
        inside: its input is watched, not its output.
        reader: path of the module whose input is x.
        layer: index of the decoder layer, -1 outside them.
    """

    path: str
    inside: bool
    reader: str
    layer: int

    @classmethod
    def of(cls, site: Site) -> Place:
        """Return the place of a site."""
        return cls(site.path, site.side == "in", site.reader or site.path, site.layer)

    def chains(self, model: nn.Module) -> list[Chain]:
        """Return the adapters that change what is watched here."""
        host = model.get_submodule(self.path)
        names = ("input_adapters",) if self.inside else ("adapters", "sublayer_adapters")
        return [chain for name in names if isinstance(chain := getattr(host, name, None), Chain)]


def places(model: nn.Module, anatomy: Anatomy, at: str | Sequence[str] | None) -> dict[str, Place]:
    """Return what a recorder's `at` means, by key, in order of layers.

    Raises:
        CannotRecord: nothing was named and no adapter sits at a site.
        BadSpec, EmptyPlacement: see `placement.sites`.
    """
    found: dict[str, Place] = {}
    if at is None:
        sites = {key: site for injection in injections(model).values() for key, site in injection.sites.items()}
        if not sites:
            raise CannotRecord(f"Say with `at` where to look. {carried(model)}")
        found = {key: Place.of(site) for key, site in sites.items()}
    modules = dict(model.named_modules())
    for term in [at] if isinstance(at, str) else at or ():
        if term == LAYERS:
            found[EMBED] = Place(anatomy.layers[0], True, anatomy.layers[0], -1)
            found |= {path: Place(path, False, path, i) for i, path in enumerate(anatomy.layers)}
        elif term in modules:
            layer = next((i for i, path in enumerate(anatomy.layers) if f"{term}.".startswith(f"{path}.")), -1)
            found[term] = Place(term, False, term, layer)
        else:
            found |= {site.key: Place.of(site) for site in placement.sites(anatomy, term, "sublayer")}
    return dict(sorted(found.items(), key=lambda pair: pair[1].layer))


def attentions(anatomy: Anatomy, found: dict[str, Place]) -> dict[str, str]:
    """Return, by the key of the attention sublayer, the path of the attention of every layer that is watched."""
    layers = {place.layer for place in found.values()}
    exits = [site for site in anatomy.sublayers if site.role == "attn" and site.layer in layers]
    return {site.key: site.path.rpartition(".")[0] for site in exits}


def carried(model: nn.Module) -> str:
    """Return a sentence on the adapters that are in a model and where they sit."""
    present = [
        f"{name!r} ({one.config.type}) at {one.config.at or 'the whole model'}"
        for name, one in injections(model).items()
    ]
    return f"The model carries {'; '.join(present) or 'no adapters'}."


def refuse_compiled(model: nn.Module) -> None:
    """Refuse a model of which any part is compiled.

    Raises:
        CannotRecord: it is.
    """
    if isinstance(model, torch._dynamo.OptimizedModule) or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()
    ):
        raise CannotRecord("The model is compiled, and what is compiled ignores new hooks. Record first, compile last.")


def check_adapters(
    model: nn.Module, found: Mapping[str, Place], what: Collection[str], scaled: Mapping[str, str], *, everywhere: bool
) -> None:
    """Refuse what adapters do not have at these places: an output before them, or a contribution.

    Args:
        model: with its adapters.
        found: the places by key.
        what: is to be recorded.
        scaled: by key, the name of the adapter whose contribution is to be scaled.
        everywhere: it must be at each of these keys, not only at one of them.

    Raises:
        CannotRecord: it has none; the message says where the model's adapters sit.
    """
    if not scaled and not {"base", "contributions"} & set(what):
        return
    here: set[str] = set()
    for key, place in found.items():
        own = getattr(model.get_submodule(place.path), "parameter_adapters", None)
        if isinstance(own, Chain) and own.active():
            raise CannotRecord(
                f"{' and '.join(own)} trains the own parameters of {place.path}, so there is no output before it and "
                "no contribution to it. Record y, and again within `injection.disabled()`."
            )
        names = {name for chain in place.chains(model) for name in chain}
        if everywhere and key in scaled and scaled[key] not in names:
            raise CannotRecord(f"The adapter {scaled[key]!r} does not sit at {key}. {carried(model)}")
        here |= names
    if missing := sorted(set(scaled.values()) - here):
        raise CannotRecord(f"The adapter {missing[0]!r} sits at none of the chosen sites. {carried(model)}")
    if "contributions" in what and not here:
        raise CannotRecord(f"No adapter sits at the chosen sites. {carried(model)}")


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Let attention compute its weights one by one, the only form in which it gives them back; undone exactly.

    Raises:
        CannotRecord: the model chose its attention for good when it was made.
    """
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    for config in list(configs.values()):
        below = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
        configs |= {id(sub): sub for sub in below if sub is not None}
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    try:
        if model.config._attn_implementation != "eager":
            able = getattr(model, "_can_set_attn_implementation", None)
            if able is None or not able():
                raise CannotRecord(
                    f"{type(model).__name__} cannot change its attention, which is now "
                    f"{model.config._attn_implementation!r} and keeps no pattern. "
                    "Load it with attn_implementation='eager'."
                )
            model.set_attn_implementation("eager")
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the stream among the arguments of a module."""
    found: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def with_entering(args: tuple[Any, ...], kwargs: dict[str, Any], new: torch.Tensor) -> tuple[Any, Any]:
    """Return the arguments with another stream."""
    return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})


def leaving(output: Any) -> torch.Tensor:
    """Return the stream in the output of a module."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def with_leaving(output: Any, new: torch.Tensor) -> Any:
    """Return the output with another stream."""
    if isinstance(output, torch.Tensor):
        return new
    if new is output[0]:
        return output
    if not isinstance(output, tuple):
        raise CannotRecord(f"An output of the form {type(output).__name__} can be recorded, but not edited.")
    return (new, *output[1:])
