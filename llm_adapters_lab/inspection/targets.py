"""What a `Recorder` hooks: sites, layers and other modules, their adapters, and the streams that pass through them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from llm_adapters_lab.adapters.shared.streams import Streams
from llm_adapters_lab.core import placement
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.hooks import AdapterChain, chain_name
from llm_adapters_lab.core.injection import injections
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import NoView
from llm_adapters_lab.inspection.interventions import AdapterScale

LAYERS, EMBED = "layers", "embed"
Act = Callable[[torch.Tensor], torch.Tensor | None]


_NO_ROWS = (
    " A routed expert sees only the tokens sent to it, in an order of its own, and a router's weight has no output. "
    "Record the whole block: at='mlp'."
)


def _sees_rows(site: Site, modules: Mapping[str, nn.Module]) -> bool:
    return site.path in modules and not site.routed


def find_sites(model: nn.Module, anatomy: Anatomy, at: str | Sequence[str] | None) -> dict[str, Site]:
    """Return what a recorder's `at` refers to, by key, in order of layers; any module can be a site here.

    Raises:
        NoView: the model is compiled, or `at` is None and no adapter sits at a site.
        BadSpec, EmptyPlacement: see `placement.sites`.
    """
    modules = dict(model.named_modules())
    compiled = (getattr(module, "_compiled_call_impl", None) is not None for module in modules.values())
    if isinstance(model, torch._dynamo.OptimizedModule) or any(compiled):
        raise NoView("The model is compiled, and compiled code ignores new hooks. Record first, compile last.")
    found: dict[str, Site] = {}
    if at is None:
        own = {key: site for injection in injections(model).values() for key, site in injection.sites.items()}
        tables = {path for path, module in modules.items() if isinstance(module, nn.Embedding)}  # which read no stream
        found = {key: s for key, s in own.items() if _sees_rows(s, modules) and s.path not in tables}
        if not found:
            raise NoView(f"Say with `at` where to look. {describe_adapters(model)}{_NO_ROWS if own else ''}")
    for term in [at] if isinstance(at, str) else at or ():
        if term == LAYERS:
            found[EMBED] = Site(anatomy.layers[0], "module", -1, 0, 0, "in")
            found |= {path: Site(path, "module", i, 0, 0) for i, path in enumerate(anatomy.layers)}
        elif term in modules:
            layer = next((i for i, path in enumerate(anatomy.layers) if f"{term}.".startswith(f"{path}.")), -1)
            found[term] = Site(term, "module", layer, 0, 0)
        else:
            found |= {site.key: site for site in placement.sites(anatomy, term, "sublayer")}
    if hidden := [key for key, site in found.items() if not _sees_rows(site, modules)]:
        raise NoView(f"{hidden[0]} cannot be recorded.{_NO_ROWS}")
    return dict(sorted(found.items(), key=lambda pair: pair[1].layer))


def chains(model: nn.Module, site: Site) -> list[AdapterChain]:
    """Return the adapters that change what is recorded at a site."""
    host = model.get_submodule(site.path)
    names = ("input_adapters",) if site.side == "in" else ("adapters", "sublayer_adapters")
    return [chain for name in names if isinstance(chain := getattr(host, name, None), AdapterChain)]


def describe_adapters(model: nn.Module) -> str:
    """Return a sentence on the adapters in a model and where they sit."""
    configs = {name: injection.config for name, injection in injections(model).items()}
    present = [f"{name!r} ({config.type}) at {config.at or 'the whole model'}" for name, config in configs.items()]
    return f"The model carries {'; '.join(present) or 'no adapters'}."


def check_rows(decoder: nn.Module) -> None:
    """Refuse to record a model in which an adapter runs every row several times.

    Raises:
        NoView: it does; the message names the adapter.
    """
    chain = getattr(decoder, "model_adapters", None)
    active = chain.active() if isinstance(chain, AdapterChain) else {}
    for name, adapter in active.items():
        if isinstance(adapter, Streams) and adapter.streams > 1:
            raise NoView(
                f"The adapter {name!r} runs every row in {adapter.streams} streams, which a recording would mix up. "
                "Look at their weights with `inspection.member_weights`, or record inside `injection.disabled()`."
            )


def check_adapters(model: nn.Module, sites: Mapping[str, Site], what: Collection[str], edit: Any) -> None:
    """Refuse to record base or contributions, or to scale an adapter, at sites where there are none.

    Raises:
        NoView: they are missing; the message says where the model's adapters sit.
    """
    by_key = edit if isinstance(edit, Mapping) else {}
    scales = [one for one in (edit, *by_key.values()) if isinstance(one, AdapterScale)]
    if not scales and not {"base", "contributions"} & set(what):
        return
    present: set[str] = set()
    for key, site in sites.items():
        own = getattr(model.get_submodule(site.path), "parameter_adapters", None)
        if isinstance(own, AdapterChain) and own.active():
            raise NoView(
                f"{' and '.join(own)} trains the parameters of {site.path} themselves, so there is no output before it "
                "and no contribution to it. Record y, and once more inside `injection.disabled()`."
            )
        if any(chain.gates() for chain in chains(model, site)):
            raise NoView(
                f"{' and '.join(getattr(model.get_submodule(site.path), chain_name(site)))} runs {site.path} for some "
                "tokens only, so there is no output without it. Record y, and once more inside `injection.disabled()`."
            )
        here = {name for chain in chains(model, site) for name in chain}
        if isinstance(one := by_key.get(key), AdapterScale) and one.name not in here:
            raise NoView(f"The adapter {one.name!r} does not sit at {key}. {describe_adapters(model)}")
        present |= here
    if missing := [one.name for one in scales if one.name not in present]:
        raise NoView(f"The adapter {missing[0]!r} sits at none of the chosen sites. {describe_adapters(model)}")
    if "contributions" in what and not present:
        raise NoView(f"No adapter sits at the chosen sites. {describe_adapters(model)}")


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Use the eager form of attention, the only one that returns its weights; undone exactly.

    Raises:
        NoView: the model chose its attention for good when it was built.
    """
    used = [getattr(module, "config", None) for module in model.modules()]
    configs = [config for config in used if isinstance(config, PreTrainedConfig)]
    configs += [sub for config in configs for name in config.sub_configs if (sub := getattr(config, name, None))]
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        if (current := model.config._attn_implementation) != "eager":
            able = getattr(model, "_can_set_attn_implementation", None)
            if able is None or not able():
                raise NoView(
                    f"{type(model).__name__} cannot change its attention, which is {current!r} now and returns no "
                    "pattern. Load it with attn_implementation='eager'."
                )
            model.set_attn_implementation("eager")
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def on_stream(module: nn.Module, act: Act, *, inside: bool, first: bool) -> RemovableHandle:
    """Call `act` with the stream that enters (`inside`) or leaves a module, before all other hooks or after them.

    A tensor that `act` returns takes the place of the stream.
    """

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = act(z := args[0] if args else kwargs["hidden_states"])
        if new is None or new is z:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        new = act(z := output if isinstance(output, torch.Tensor) else output[0])
        if new is None or new is z:
            return None
        if z is output:
            return new
        if not isinstance(output, tuple):
            raise NoView(f"An output of type {type(output).__name__} can be recorded, but not edited.")
        return (new, *output[1:])

    if inside:
        return module.register_forward_pre_hook(enter, prepend=first, with_kwargs=True)
    return module.register_forward_hook(leave, prepend=first)
