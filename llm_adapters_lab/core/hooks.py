"""Where adapters are attached to a model, and the hooks that run them.

An adapter becomes a child of its host, in an ordered `AdapterChain`; the forward hooks of the chain pass the output
through all of its adapters. The hooks are plain functions that read from the module they fire on, so that they keep
working in a copied model.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from itertools import chain as concatenated
from itertools import groupby
from threading import get_ident
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.call_context import CONTEXT_ATTRIBUTE
from llm_adapters_lab.core.matrix_hosts import MatrixHost
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.core.skipping import Running, check_chains
from llm_adapters_lab.errors import CannotInject

MARKS = ("read_by", "injections", CONTEXT_ATTRIBUTE)
"""The attributes that the modules of a model have only while adapters are in it."""


class AdapterChain(nn.ModuleDict):
    """The adapters at one site by name.

    Attributes:
        turns: when each is applied, as (position of its injection, position of the site in that injection). All
            adapters at the output of a module run in this order, whichever of its chains they are in.
        off: names of the disabled adapters.
        muted: names that are disabled within a context; a name may occur several times.
        mix: weights by name. If not empty, the adapters are not applied one after the other: each reads the output of
            the base, and their changes are added with these weights.
        rule: how they act together, if neither one after the other nor as a mix; see `rules`.
        call: the context that the rule reads, or None.
        slices: names of adapters that share a batch: the rows are split into as many equal slices, and each adapter is
            applied to its own slice only. If empty, all are applied to all rows.
    """

    def __init__(self) -> None:
        """Create an empty chain."""
        super().__init__()
        self.turns: dict[str, tuple[int, int]] = {}
        self.off: set[str] = set()
        self.muted: list[str] = []
        self.mix: dict[str, float] = {}
        self.rule: Any = None
        self.call: Any = None
        self.slices: list[str] = []
        # Of the running calls, by thread.
        self.x: dict[int, torch.Tensor] = {}
        self.finish: dict[int, Any] = {}
        self.chosen_tokens: dict[int, tuple[Running | None, list[nn.Module]]] = {}
        self.table: tuple[nn.Module, ...] = ()  # the host if it is an embedding; in a tuple it is no second child
        # If an adapter decides for which tokens an MLP runs: the projections that read its input, and the last one.
        self.mlp_projections: tuple[nn.Module, ...] = ()
        self.own: dict[str, Any] | None = None
        self.thread = 0
        self.handles: list[Any] = []

    def active(self) -> dict[str, Any]:
        """Return the enabled adapters by name, in their order."""
        parts = self._modules  # a ModuleDict's own methods take as long as a small adapter
        on = [name for name in parts if name not in self.off and name not in self.muted]
        return {name: parts[name] for name in (sorted(on, key=self.turns.__getitem__) if len(on) > 1 else on)}

    def gates(self) -> list[Any]:
        """Return what decides for which tokens an MLP runs, of the enabled adapters."""
        active: list[Any] = list(self.active().values())
        parts = [part for one in active for part in (one if isinstance(one, Sequence) else [one])]
        return [gate for part in parts if (gate := getattr(part, "token_gate", None)) is not None]

    def choose_tokens(self, x: torch.Tensor) -> Running | None:
        """Return the tokens for which the MLP runs, from its input x; None for all of them.

        Raises:
            CannotInject: several adapters decide it, or one does that acts together with others by a mix or a rule.
        """
        if not (gates := self.gates()):
            return None
        if len(gates) > 1 or self.mix or self.rule is not None or self.slices:
            raise CannotInject(
                f"Among {', '.join(self.active())}, an adapter decides for which tokens an MLP runs, and so for all "
                "adapters there. Only one can, and not within a mix or a rule: use `stack(model, ...)`."
            )
        return Running.of(gates[0](x))

    def fold(self, x: torch.Tensor | None, y: torch.Tensor, names: Collection[str] | None = None) -> torch.Tensor:
        """Return y after all active adapters, in the dtype of y; each adapter computes in its own dtype.

        Args:
            x: input of the site; None if the site is an input, which is then y.
            y: output of the base at the site.
            names: apply only these; by default all.
        """
        active = self.active()
        if names is not None:
            active = {name: adapter for name, adapter in active.items() if name in names}
        if not self.slices:
            return self._run(active, x, y)
        # Packed rows are one sequence, which is split along the tokens.
        dim, count = 0 if len(y) > 1 else 1, len(self.slices)
        ys = torch.split(y, y.shape[dim] // count, dim)
        xs = [None] * count if x is None else torch.split(x, x.shape[dim] // count, dim)
        own = [{name: active[name]} if name in active else {} for name in self.slices]
        return torch.cat([self._run(*part) for part in zip(own, xs, ys, strict=True)], dim)

    def _run(self, active: dict[str, Any], x: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
        out, x = y, y if x is None else x
        if self.rule is not None:

            def apply(name: str, before: torch.Tensor) -> torch.Tensor:
                return self._one(active[name], x, before)[1] if name in active else before

            folded: torch.Tensor = self.rule.fold(apply, y, self.call)
            return folded.to(y.dtype)
        for name, adapter in active.items():
            before, after = self._one(adapter, x, y if self.mix else out)
            out = out.to(before.dtype) + self.mix[name] * (after - before) if self.mix else after
        return out.to(y.dtype)

    def _one(self, adapter: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return y in the dtype of an adapter, and what the adapter makes of it."""
        # Under autocast, a cast here would only be a copy of x that is kept for the backward pass.
        dtype = y.dtype if torch.is_autocast_enabled(y.device.type) else _dtype(adapter, y.dtype)
        before = y.to(dtype)
        if self.table:
            return before, before + weights.row_scale(self.table[0]) * adapter(x, torch.zeros_like(before))
        return before, adapter(before if x is y else x.to(dtype), before)


def _dtype(adapter: nn.Module, default: torch.dtype) -> torch.dtype:
    """Return the dtype of an adapter's first tensor of numbers, or the default."""
    own = (t for t in adapter._parameters.values() if t is not None)  # all that most have, and quick to read
    for tensor in concatenated(own, adapter.parameters(), adapter.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return default


class Sequence(nn.ModuleList):
    """Parts of one adapter that are in the same chain, applied one after the other."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y after all parts; each reads the same x."""
        for adapter in self:
            y = adapter(x, y)
        return y


def _fold_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple) and weights.dims(module) is None:  # experts, with what their router computed
        return (_fold_output(module, args, output[0]), *output[1:])
    chain: AdapterChain = module.adapters  # type: ignore[assignment]
    sublayer: AdapterChain | None = getattr(module, "sublayer_adapters", None)
    if sublayer is None:
        if output.ndim < args[0].ndim:  # experts may return their tokens in one row
            return chain.fold(args[0], output.view(*args[0].shape[:-1], -1)).view(output.shape)
        return chain.fold(args[0], output)
    if (running := sublayer.chosen_tokens.pop(get_ident(), (None,))[0]) is not None:
        output = running.scatter(chain.fold(args[0], output))
        return sublayer.fold(sublayer.x.pop(get_ident(), None), output)
    inputs = {chain: args[0], sublayer: sublayer.x.pop(get_ident(), None)}
    turns = sorted((c.turns[name], name, c) for c in inputs for name in c.active())
    for one, group in groupby(turns, key=lambda turn: turn[2]):
        output = one.fold(inputs[one], output, [name for _, name, _ in group])
    return output


def _fold_sublayer(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    if hasattr(module, "adapters"):
        return output  # `_fold_output` passes it through both chains
    chain: AdapterChain = module.sublayer_adapters  # type: ignore[assignment]
    if (running := chain.chosen_tokens.pop(get_ident(), (None,))[0]) is not None:
        output = running.scatter(output)
    return chain.fold(chain.x.pop(get_ident(), None), output)


def _keep_input(module: nn.Module, args: tuple[Any, ...]) -> None:
    (chain,) = module.read_by  # type: ignore[misc]
    chain.x[get_ident()] = args[0]


def _gather(module: nn.Module, args: tuple[Any, ...]) -> Any:
    (chain,) = module.read_by  # type: ignore[misc]
    thread = get_ident()
    running, entered = chain.chosen_tokens.get(thread, (None, [module]))
    if module in entered:  # a new call, whichever projection comes first
        running = chain.choose_tokens(chain.x[thread] if module is chain.mlp_projections[0] else args[0])
        if running is not None:
            check_chains(chain.mlp_projections)
        chain.chosen_tokens[thread] = running, (entered := [])
    entered.append(module)
    return args if running is None else (running.gather(args[0]), *args[1:])


def _fold_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    chain: AdapterChain = module.input_adapters  # type: ignore[assignment]
    if args:
        return (chain.fold(None, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": chain.fold(None, kwargs["hidden_states"])}


def _replace_parameters(module: nn.Module, args: tuple[Any, ...]) -> None:
    chain: AdapterChain = module.parameter_adapters  # type: ignore[assignment]
    if chain.own is not None and chain.thread != get_ident():
        raise CannotInject(
            f"Another thread is running this {type(module).__name__} with the parameters of an adapter in place of its "
            "own. Let the threads take turns, or give each a copy of the model."
        )
    restore_parameters(module)
    if active := list(chain.active().values()):
        chain.own, chain.thread = dict(module._parameters), get_ident()
        for name, value in active[-1].named_parameters():
            module._parameters[name] = value.to(chain.own[name].dtype)


def restore_parameters(module: nn.Module, *hook_args: Any) -> None:
    """Restore a module's own parameters; a forward hook, which a KeyboardInterrupt in `forward` skips."""
    chain = getattr(module, "parameter_adapters", None)
    if not isinstance(chain, AdapterChain) or chain.own is None:
        return
    if not hook_args or chain.thread == get_ident():  # otherwise the call was refused
        module._parameters.update(chain.own)
        chain.own = None


def _replace_in_parts(module: nn.Module, args: tuple[Any, ...]) -> None:
    for part in module.children():
        if hasattr(part, "parameter_adapters"):
            _replace_parameters(part, args)


def _restore_in_parts(module: nn.Module, *hook_args: Any) -> None:
    for part in module.children():
        restore_parameters(part)


def _prepare_decoder(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    chain: AdapterChain = module.model_adapters  # type: ignore[assignment]
    chain.finish.pop(get_ident(), None)
    active = chain.active()
    if len(active) > 1:
        raise CannotInject(
            f"{', '.join(active)} act on the whole model, and only one such adapter can be on. "
            "Choose it with `stack(model, name)`."
        )
    if not active:
        return args, kwargs
    (adapter,) = active.values()
    accepted = inspect.signature(module.forward).parameters
    kwargs, chain.finish[get_ident()] = adapter.prepare(module, {**dict(zip(accepted, args, strict=False)), **kwargs})
    return (), {key: value for key, value in kwargs.items() if key in accepted or "kwargs" in accepted}


def _finish_decoder(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    chain: AdapterChain = module.model_adapters  # type: ignore[assignment]
    finish = chain.finish.pop(get_ident(), None)
    return finish(output) if finish else output


def chain_name(site: Site | None) -> str:
    """Return the attribute of the host that holds the chain of a site; None stands for the whole model."""
    if site is None:
        return "model_adapters"
    if site.side == "parameters":
        return "parameter_adapters"
    if site.side == "in":
        return "input_adapters"
    return "adapters" if site.reader == site.path else "sublayer_adapters"


def attach(model: nn.Module, host: nn.Module, site: Site | None) -> AdapterChain:
    """Return the chain at a site, which is created with its hooks if necessary."""
    attribute = chain_name(site)
    if (present := getattr(host, attribute, None)) is not None:
        assert isinstance(present, AdapterChain)
        return present
    chain = AdapterChain()
    chain.table = (host,) if isinstance(host, nn.Embedding) else ()
    setattr(host, attribute, chain)
    before, after = host.register_forward_pre_hook, host.register_forward_hook
    if isinstance(host, MatrixHost):
        host.mount()
    elif attribute == "model_adapters":
        chain.handles = [before(_prepare_decoder, with_kwargs=True), after(_finish_decoder, always_call=True)]
    elif attribute == "parameter_adapters" and site is not None:
        parent = model.get_submodule(site.path.rpartition(".")[0])
        # always_call: the base must get its parameters back even if the module fails.
        routes = "router" in type(parent).__name__.lower()
        if routes or any(isinstance(child, nn.Conv1d) for child in parent.children()):
            # Mixers that convolve, and routers, use parameters of their parts without calling these.
            before, after = parent.register_forward_pre_hook, parent.register_forward_hook
            chain.handles = [before(_replace_in_parts), after(_restore_in_parts, always_call=True)]
        else:
            chain.handles = [before(_replace_parameters), after(restore_parameters, always_call=True)]
    elif attribute == "input_adapters":
        chain.handles = [before(_fold_input, with_kwargs=True)]
    elif attribute == "sublayer_adapters" and site is not None:
        reader = model.get_submodule(site.reader)
        # In a tuple, torch does not register the chain as a second child.
        reader.read_by = (chain,)  # type: ignore[assignment]
        # The input of the sublayer, before an adapter at the input of this one projection changes it.
        chain.handles = [reader.register_forward_pre_hook(_keep_input, prepend=True)]
        chain.handles += [after(_fold_sublayer, prepend=hasattr(host, "parameter_adapters"))]
    else:  # before the parameters that made the output are restored
        chain.handles = [after(_fold_output, prepend=hasattr(host, "parameter_adapters"))]
    return chain


def follow(model: nn.Module, host: nn.Module, readers: Collection[str]) -> None:
    """Let the adapters of the sublayer that ends in a host decide for which tokens it runs.

    Args:
        model: the model.
        host: the last projection of the MLP, whose chain is attached.
        readers: paths of the projections that read its input, in order of execution.
    """
    chain: AdapterChain = host.sublayer_adapters  # type: ignore[assignment]
    assert readers, "an adapter with a token_gate needs `readers`, see `skipping.readers_of`"
    if not chain.mlp_projections:
        chain.mlp_projections = (*map(model.get_submodule, readers), host)
        for reader in chain.mlp_projections[:-1]:
            reader.read_by = (chain,)  # type: ignore[assignment]
            # Before adapters at its input; at the first one, x has been kept.
            later = reader is not chain.mlp_projections[0]
            chain.handles.append(reader.register_forward_pre_hook(_gather, prepend=later))


def detach(model: nn.Module, host: nn.Module, site: Site | None, name: str) -> None:
    """Remove an adapter from the chain at a site; the hooks and the chain are removed with the last one."""
    attribute = chain_name(site)
    if (chain := getattr(host, attribute, None)) is None:
        return  # removed with another part of the adapter
    restore_parameters(host)
    if name in chain:  # parts of one adapter are removed together
        del chain[name], chain.turns[name]
    chain.off.discard(name)
    chain.mix.pop(name, None)
    if len(chain) == 0:
        for handle in chain.handles:
            handle.remove()
        delattr(host, attribute)
        if isinstance(host, MatrixHost) and not list(host.children()):
            host.unmount()
        if attribute == "sublayer_adapters" and site is not None:
            for reader in chain.mlp_projections[:-1] or (model.get_submodule(site.reader),):
                del reader.read_by
