"""The place where adapters hang in a model, and the hooks that run them.

An adapter becomes a child of the module it sits at, in an ordered `Chain`; one forward hook per chain folds the output
through it. The hooks are plain functions that read from the module they fire on, so that a copied model keeps working.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.anatomy import Site


class Chain(nn.ModuleDict):
    """The adapters at one place by name, applied in the order in which they were added."""

    def __init__(self) -> None:
        """Make an empty chain."""
        super().__init__()
        self.off: set[str] = set()
        self.x: torch.Tensor | None = None
        self.handles: list[Any] = []

    def active(self) -> list[Any]:
        """Return the adapters that are switched on."""
        return [adapter for name, adapter in self.items() if name not in self.off]

    def fold(self, x: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
        """Return y after every active adapter, in the dtype of y; adapters work in their own."""
        active = self.active()
        if not active:
            return y
        dtype = next(active[0].parameters()).dtype
        x = y if x is None else x
        out = y.to(dtype)
        x = out if x is y else x.to(dtype)
        for adapter in active:
            out = adapter(x, out)
        return out.to(y.dtype)


def _fold_output(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    chain: Chain = module.adapters  # type: ignore[assignment]
    return chain.fold(args[0], output)


def _fold_sublayer(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    chain: Chain = module.sublayer_adapters  # type: ignore[assignment]
    x, chain.x = chain.x, None
    return chain.fold(x, output)


def _keep_input(module: nn.Module, args: tuple[Any, ...]) -> None:
    (chain,) = module.__dict__["read_by"]
    chain.x = args[0]


def _fold_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    chain: Chain = module.input_adapters  # type: ignore[assignment]
    if args:
        return (chain.fold(None, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": chain.fold(None, kwargs["hidden_states"])}


def _prepare_decoder(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    if args:
        kwargs = {"input_ids": args[0], **kwargs}
    accepted = module.__dict__["accepts"]
    for adapter in module.model_adapters.active():  # type: ignore[operator, union-attr]
        kwargs = adapter.prepare(module, kwargs)
    return (), {key: value for key, value in kwargs.items() if key in accepted or "kwargs" in accepted}


def attribute_of(site: Site | None) -> str:
    """Return the name under which the chain of a site hangs at its module; None stands for the whole model."""
    if site is None:
        return "model_adapters"
    if site.side == "in":
        return "input_adapters"
    return "adapters" if site.reader == site.path else "sublayer_adapters"


def attach(model: nn.Module, host: nn.Module, site: Site | None) -> Chain:
    """Return the chain at a site, made with its hooks if it is not there yet."""
    attribute = attribute_of(site)
    if (present := getattr(host, attribute, None)) is not None:
        assert isinstance(present, Chain)
        return present
    chain = Chain()
    setattr(host, attribute, chain)
    if attribute == "model_adapters":
        host.__dict__["accepts"] = frozenset(inspect.signature(host.forward).parameters)
        chain.handles = [host.register_forward_pre_hook(_prepare_decoder, with_kwargs=True)]
    elif attribute == "input_adapters":
        chain.handles = [host.register_forward_pre_hook(_fold_input, with_kwargs=True)]
    elif attribute == "sublayer_adapters" and site is not None:
        reader = model.get_submodule(site.reader)
        # A tuple hides the chain from torch, which would else count it as a second child.
        reader.__dict__["read_by"] = (chain,)
        chain.handles = [reader.register_forward_pre_hook(_keep_input), host.register_forward_hook(_fold_sublayer)]
    else:
        chain.handles = [host.register_forward_hook(_fold_output)]
    return chain


def detach(model: nn.Module, host: nn.Module, site: Site | None, name: str) -> None:
    """Take one adapter out of the chain at a site; with the last one go the hooks and the chain."""
    attribute = attribute_of(site)
    chain = getattr(host, attribute)
    del chain[name]
    chain.off.discard(name)
    if len(chain) == 0:
        for handle in chain.handles:
            handle.remove()
        delattr(host, attribute)
        host.__dict__.pop("accepts", None)
        if attribute == "sublayer_adapters" and site is not None:
            model.get_submodule(site.reader).__dict__.pop("read_by", None)
