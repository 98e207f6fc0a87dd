"""The place where adapters hang in a model, and the hooks that run them.

An adapter becomes a child of the module it sits at, in an ordered `Chain`; one forward hook per chain folds the output
through it. The hooks are plain functions that read from the module they fire on, so that a copied model keeps working.
"""

from __future__ import annotations

import inspect
from itertools import chain as both
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core.call_context import ATTRIBUTE
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject

MARKS = ("read_by", "injections", ATTRIBUTE)
"""The attributes that the modules of a model have only while adapters are in it."""


class Chain(nn.ModuleDict):
    """The adapters at one place by name, applied in the order in which they were added.

    Attributes:
        off: names of those that are switched off.
        muted: names that are off for the duration of a `with`; a name may stand in it several times.
        mix: weights by name. Where it is not empty, the adapters do not follow one another: each sees the output of the
            bare base, and their changes are added with these weights.
        slices: names of adapters among which the rows are shared out: the first has the first of so many equal slices,
            and so on, and each acts on its own slice only. Empty: all act on everything.
    """

    def __init__(self) -> None:
        """Make an empty chain."""
        super().__init__()
        self.off: set[str] = set()
        self.muted: list[str] = []
        self.mix: dict[str, float] = {}
        self.slices: list[str] = []
        self.x: torch.Tensor | None = None
        self.own: dict[str, Any] | None = None
        self.finish: Any = None
        self.handles: list[Any] = []

    def active(self) -> dict[str, Any]:
        """Return the adapters that are switched on, by name."""
        return {name: a for name, a in self.items() if name not in self.off and name not in self.muted}

    def fold(self, x: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
        """Return y after every active adapter, in the dtype of y; adapters work in their own.

        Args:
            x: input of the site; None where the site is an input, which is then y.
            y: output of the base at the site.
        """
        if self.slices:
            return self._fold_slices(x, y)
        return self._through(self.active(), x, y)

    def _fold_slices(self, x: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
        # Packed rows are one sequence, and a slice of it is so many tokens.
        dim, active = 0 if len(y) > 1 else 1, self.active()
        own = [{name: active[name]} if name in active else {} for name in self.slices]
        ys = torch.split(y, y.shape[dim] // len(own), dim)
        xs = [None] * len(own) if x is None else torch.split(x, x.shape[dim] // len(own), dim)
        return torch.cat([self._through(*slice_) for slice_ in zip(own, xs, ys, strict=True)], dim)

    def _through(self, active: dict[str, Any], x: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
        out, x = y, y if x is None else x
        for name, adapter in active.items():
            held = both(adapter.parameters(), adapter.buffers())
            dtype = next((t.dtype for t in held if t.is_floating_point()), y.dtype)
            # Autocast decides where it is on; a cast here would only be a copy of x that is kept for backward.
            dtype = y.dtype if torch.is_autocast_enabled(y.device.type) else dtype
            before = (y if self.mix else out).to(dtype)
            after = adapter(before if x is out else x.to(dtype), before)
            out = out.to(dtype) + self.mix[name] * (after - before) if self.mix else after
        return out.to(y.dtype)


def _fold_output(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    chain: Chain = module.adapters  # type: ignore[assignment]
    return chain.fold(args[0], output)


def _fold_sublayer(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    chain: Chain = module.sublayer_adapters  # type: ignore[assignment]
    x, chain.x = chain.x, None
    return chain.fold(x, output)


def _keep_input(module: nn.Module, args: tuple[Any, ...]) -> None:
    (chain,) = module.read_by  # type: ignore[misc]
    chain.x = args[0]


def _fold_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    chain: Chain = module.input_adapters  # type: ignore[assignment]
    if args:
        return (chain.fold(None, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": chain.fold(None, kwargs["hidden_states"])}


def _stand_in(module: nn.Module, args: tuple[Any, ...]) -> None:
    chain: Chain = module.parameter_adapters  # type: ignore[assignment]
    stand_back(module)
    if active := list(chain.active().values()):
        chain.own = dict(module._parameters)
        for name, value in active[-1].named_parameters():
            module._parameters[name] = value.to(chain.own[name].dtype)


def _stand_back(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    stand_back(module)


def stand_back(module: nn.Module) -> None:
    """Give a module its own parameters back, which an interrupt (unlike an error) in its forward leaves replaced."""
    chain = getattr(module, "parameter_adapters", None)
    if isinstance(chain, Chain) and chain.own is not None:
        module._parameters.update(chain.own)
        chain.own = None


def _prepare_decoder(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    chain: Chain = module.model_adapters  # type: ignore[assignment]
    chain.finish = None
    if not (adapter := _only(module)):
        return args, kwargs
    takes = inspect.signature(module.forward).parameters
    kwargs, chain.finish = adapter.prepare(module, {**dict(zip(takes, args, strict=False)), **kwargs})
    return (), {key: value for key, value in kwargs.items() if key in takes or "kwargs" in takes}


def _finish_decoder(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    chain: Chain = module.model_adapters  # type: ignore[assignment]
    finish, chain.finish = chain.finish, None
    return finish(output) if finish else output


def _only(module: nn.Module) -> Any:
    active = module.model_adapters.active()  # type: ignore[operator, union-attr]
    if len(active) > 1:
        raise CannotInject(
            f"{', '.join(active)} act on the whole model, and only one such adapter can be on. "
            "Choose it with `stack(model, name)`."
        )
    return next(iter(active.values()), None)


def attribute_of(site: Site | None) -> str:
    """Return the name under which the chain of a site hangs at its module; None stands for the whole model."""
    if site is None:
        return "model_adapters"
    if site.side == "parameters":
        return "parameter_adapters"
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
        chain.handles = [
            host.register_forward_pre_hook(_prepare_decoder, with_kwargs=True),
            host.register_forward_hook(_finish_decoder, always_call=True),
        ]
    elif attribute == "parameter_adapters":
        # Also when the module fails must the base get its own parameters back.
        back = host.register_forward_hook(_stand_back, always_call=True)
        chain.handles = [host.register_forward_pre_hook(_stand_in), back]
    elif attribute == "input_adapters":
        chain.handles = [host.register_forward_pre_hook(_fold_input, with_kwargs=True)]
    elif attribute == "sublayer_adapters" and site is not None:
        reader = model.get_submodule(site.reader)
        # A tuple hides the chain from torch, which would else count it as a second child.
        reader.read_by = (chain,)  # type: ignore[assignment]
        chain.handles = [reader.register_forward_pre_hook(_keep_input), host.register_forward_hook(_fold_sublayer)]
    else:
        chain.handles = [host.register_forward_hook(_fold_output)]
    return chain


def detach(model: nn.Module, host: nn.Module, site: Site | None, name: str) -> None:
    """Take one adapter out of the chain at a site; with the last one go the hooks and the chain."""
    attribute = attribute_of(site)
    chain = getattr(host, attribute)
    stand_back(host)
    del chain[name]
    chain.off.discard(name)
    chain.mix.pop(name, None)
    if len(chain) == 0:
        for handle in chain.handles:
            handle.remove()
        delattr(host, attribute)
        if attribute == "sublayer_adapters" and site is not None:
            del model.get_submodule(site.reader).read_by
