"""Find the layers and projections of any decoder, and the role of each projection.

There is no table of architectures. The decoder layers are the largest list of modules of one class. Attention is the
part of a layer whose class name contains "attention", unless it attends to an encoder. The name of a projection inside
attention gives its role, and the one whose name gives none is the output projection. The MLP is the part that consists
of projections and nothing else; shapes decide about its roles: hidden to wide is `up`, wide to hidden is `down`. Other
parts have no roles: state-space mixers, cross-attention, routed experts with what is shared beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from posixpath import commonpath
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.sites import Role, Site, ranges
from llm_adapters_lab.errors import UnknownAnatomy

CHAIN_NAMES = frozenset({"adapters", "sublayer_adapters", "input_adapters", "parameter_adapters", "model_adapters"})
"""Names of the attributes that hold the adapters of a module of the base."""

_ATTENTION_NAMES: tuple[tuple[str, Role], ...] = (
    (r"qkv|query_key_value|c_attn", "qkv"),
    (r"key_value|kv", "kv"),
    (r"^w?q(_|$)|query", "q"),
    (r"^w?k(_|$)|key", "k"),
    (r"^w?v(_|$)|value", "v"),
)
_CROSS = "cross|encoder|enc_?dec"
"""In name or class of an attention that reads the output of an encoder."""
_ORDER = {"q": 0, "k": 1, "v": 2, "gate": 0, "up": 1, "o": 9, "down": 9}


@dataclass(frozen=True)
class Anatomy:
    """Layers, projections and roles of a model.

    Attributes:
        decoder: path of the module that has the decoder layers ("" for the model itself).
        layers: path of each decoder layer, in order.
        projections: the linear projections of all layers, in order of execution within a sublayer.
        sublayers: attention and MLP of each layer as sites at their output.
        entries: the same sublayers as sites at their input, if a single module receives it.
        hidden: width of the residual stream.
        left_out: path and class of what has weights but no role: parts of the layers, and other lists of layers.
    """

    decoder: str
    layers: tuple[str, ...]
    projections: tuple[Site, ...]
    sublayers: tuple[Site, ...]
    entries: tuple[Site, ...]
    hidden: int
    left_out: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Analyse a decoder, on any device, including meta.

        Raises:
            UnknownAnatomy: layers or projections cannot be identified; the message shows the modules.
        """
        path, stack, left_out = _decoder_layers(model)
        hidden = getattr(getattr(model, "config", None), "hidden_size", None)
        if not isinstance(hidden, int):
            raise UnknownAnatomy(f"{type(model).__name__} has no config.hidden_size.\n{module_tree(model)}")
        projections: list[Site] = []
        sublayers: list[Site] = []
        entries: list[Site] = []
        for index, layer in enumerate(stack):
            here = f"{path}.{index}"
            names, others = _parts(here, layer)
            left_out += [(f"{here}.{name}", type(layer.get_submodule(name)).__name__) for name in others]
            for role, (*readers, last) in _sublayers(here, index, layer, hidden, names).items():
                projections += [*readers, last]
                first = readers[0]
                sublayers.append(Site(last.path, role, index, first.d_in, last.d_out, "out", first.path))
                entry = commonpath([s.path.replace(".", "/") for s in readers]).replace("/", ".")
                if len(entry) > len(here):
                    entries.append(Site(entry, role, index, first.d_in, first.d_in, "in", entry))
        return cls(
            decoder=path.rpartition(".")[0],
            layers=tuple(f"{path}.{i}" for i in range(len(stack))),
            projections=tuple(projections),
            sublayers=tuple(sublayers),
            entries=tuple(entries),
            hidden=hidden,
            left_out=tuple(left_out),
        )

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of this model, projections first."""
        return tuple(dict.fromkeys(s.role for s in (*self.projections, *self.sublayers)))

    @property
    def remark(self) -> str:
        """A sentence on what has weights but no role, or ""."""
        found: dict[str, list[int]] = {}
        for path, kind in self.left_out:
            layers = [i for i, at in enumerate(self.layers) if path.startswith(f"{at}.")]
            inner = path.removeprefix(f"{self.layers[layers[0]]}.") if layers else path
            found.setdefault(f"{inner} ({kind})", []).extend(layers)
        parts = [f"{name} in layers {ranges(layers)}" if layers else name for name, layers in found.items()]
        return f"Without a role, so that no placement selects it: {'; '.join(parts)}." if parts else ""

    def cache_shapes(self, model: nn.Module) -> list[tuple[int, int, int]]:
        """Return (key/value heads, key width, value width) of each layer.

        Runs the model on one token, which needs no rules for grouped, shared or fused projections.

        Raises:
            UnknownAnatomy: the model keeps no key/value cache, or other states beside it.
        """
        device = weights.device(model)
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                cache = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=True)
        finally:
            for module, mode in modes.items():
                module.training = mode
        layers = getattr(cache.past_key_values, "layers", None)
        # A state-space mixer beside the attention keeps states that cannot be prepended.
        if not layers or any(getattr(layer, "keys", None) is None or hasattr(layer, "conv_states") for layer in layers):
            raise UnknownAnatomy(f"{type(model).__name__} keeps no plain key/value cache; nothing can be prepended.")
        return [(layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1]) for layer in layers]


def base_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of a base by path, without those of its adapters."""
    return [(name, module) for name, module in model.named_modules() if CHAIN_NAMES.isdisjoint(name.split("."))]


def base_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of a base by path, without those of its adapters."""
    return [(name, p) for name, p in model.named_parameters() if CHAIN_NAMES.isdisjoint(name.split("."))]


def _decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList, list[tuple[str, str]]]:
    """Return path and list of the decoder layers, and path and class of the other lists of layers."""
    lists = {name: m for name, m in base_modules(model) if isinstance(m, nn.ModuleList) and _equal(m) and _linears(m)}
    part: Any = model
    decoder = part.get_decoder() if getattr(getattr(model, "config", None), "is_encoder_decoder", False) else model
    inside = {module for _, module in base_modules(decoder)}
    if not any(module in inside for module in lists.values()):
        raise UnknownAnatomy(f"{type(model).__name__} has no list of equal decoder layers.\n{module_tree(model)}")
    # Experts are lists too: the decoder layers are the list with the most parameters.
    path = max((n for n in lists if lists[n] in inside), key=lambda n: sum(p.numel() for p in lists[n].parameters()))
    others = [name for name in lists if name != path and not _within(name, lists.keys() - {name})]
    return path, lists[path], [(name, type(lists[name][0]).__name__) for name in others]


def _equal(modules: nn.Module) -> bool:
    return len({type(module) for module in modules.children()}) == 1


def _within(name: str, others: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{other}.") for other in others)


def _linears(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in base_modules(module) if weights.dims(m) is not None]


def _parts(path: str, layer: nn.Module) -> tuple[dict[Role, list[str]], list[str]]:
    """Return the names of the projections of self-attention and MLP in a layer, and of its parts without a role."""
    attention: dict[str, str] = {}
    for name, module in base_modules(layer):
        kind = type(module).__name__
        if name and re.search("attention|attn", kind, re.IGNORECASE) and _linears(module):
            attention |= {} if _within(name, attention) else {name: f"{name} {kind}"}
    own = [name for name, words in attention.items() if not re.search(_CROSS, words, re.IGNORECASE)]
    if len(own) != 1:
        problem = f"Several self-attentions ({', '.join(own)})" if own else "No attention with projections"
        raise UnknownAnatomy(f"{problem} in {path}.\n{module_tree(layer)}")
    blocks: dict[str, list[str]] = {}
    for name, module in base_modules(layer):
        matrices = any(p.ndim > 1 for p in module.parameters(recurse=False))
        size = weights.dims(module) or (0, 2 * matrices)
        if name and size[1] > 1 and not _within(name, attention):  # width 1: a router or a scalar gate
            blocks.setdefault(_block(layer, name), []).append(name)
    plain = [name for name in blocks if _is_plain(layer.get_submodule(name))]
    # An MLP may also lie open in the layer, or in a module for each projection.
    mlps = [name for name in plain if len(blocks[name]) > 1] or plain * (len(plain) > 1)
    if len(mlps) > 1 and len(blocks[mlps[0]]) > 1:
        raise UnknownAnatomy(f"Several MLPs ({', '.join(mlps)}) in {path}.\n{module_tree(layer)}")
    inside = [name for name, m in _linears(layer) if _within(name, own) and (weights.dims(m) or (0, 0))[1] > 1]
    projections: dict[Role, list[str]] = {"attn": inside, "mlp": [name for block in mlps for name in blocks[block]]}
    return projections, [name for name in (*attention, *blocks) if name not in (*own, *mlps)]


def _block(layer: nn.Module, name: str) -> str:
    """Return the part of a layer that a module belongs to; a list of different modules is no part but holds parts."""
    names = name.split(".")
    prefixes = (".".join(names[:end]) for end in range(1, len(names) + 1))
    return next(p for p in prefixes if not isinstance(m := layer.get_submodule(p), nn.ModuleList) or _equal(m))


def _is_plain(block: nn.Module) -> bool:
    """Return whether all matrices are those of projections, and none of them are alternatives to each other."""
    for _, module in base_modules(block):
        own = list(module.parameters(recurse=False))
        if weights.dims(module) is None and (any(p.ndim > 1 for p in own) or (own and _linears(module))):
            return False
        several = isinstance(module, nn.ModuleList | nn.ModuleDict) and _equal(module) and _linears(module)
        if several and weights.dims(next(module.children())) is None:
            return False
    return True


def _sublayers(
    path: str, index: int, layer: nn.Module, hidden: int, names: dict[Role, list[str]]
) -> dict[Role, list[Site]]:
    """Return the projections of attention and MLP, each list ending with the output projection."""
    result: dict[Role, list[Site]] = {}
    for part, inside in names.items():
        sites: list[Site] = []
        for name in inside:
            d_in, d_out = weights.dims(layer.get_submodule(name)) or (0, 0)
            leaf = name.rpartition(".")[2].lower()
            role: Role = _mlp_role(leaf, d_in, d_out, hidden)
            if part == "attn":
                role = next((role for pattern, role in _ATTENTION_NAMES if re.search(pattern, leaf)), "o")
            sites.append(Site(f"{path}.{name}", role, index, d_in, d_out, "out", f"{path}.{name}"))
        sites.sort(key=lambda s: _ORDER.get(s.role, 0))
        outputs = [s for s in sites if s.role in ("o", "down")]
        if sites and (len(outputs) != 1 or len(sites) < 2 or outputs[0].d_out != hidden):
            raise UnknownAnatomy(
                f"The {part} of {path} does not have exactly one output projection of width {hidden}; its projections: "
                f"{', '.join(s.path for s in sites)}.\n{module_tree(layer)}"
            )
        if [s.role for s in sites] == ["up", "down"] and sites[0].d_out == 2 * sites[1].d_in:
            sites[0] = replace(sites[0], role="gate_up")
        if sites:
            result[part] = sites
    return result


def _mlp_role(leaf: str, d_in: int, d_out: int, hidden: int) -> Role:
    # Shapes decide, unless hidden and wide are the same width; then the name does.
    if d_in == d_out == hidden and re.search(r"down|fc2|fc_out|4h_to_h|c_proj", leaf):
        return "down"
    if d_in != hidden:
        return "down"
    return "gate_up" if "gate" in leaf and "up" in leaf else "gate" if "gate" in leaf else "up"


def module_tree(model: nn.Module, depth: int = 4) -> str:
    """Return the module tree as indented text: name, class and, for projections, (d_in, d_out); at most 60 lines."""
    lines = []
    for name, module in base_modules(model):
        level = name.count(".") + 1 if name else 0
        if level <= depth:
            size = weights.dims(module)
            lines.append(f"{'  ' * level}{name.rpartition('.')[2] or '.'}: {type(module).__name__}{size or ''}")
    return "\n".join(lines[:60])
