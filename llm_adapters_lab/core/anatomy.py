"""Find the layers and projections of any decoder, and the role of each projection.

There is no table of architectures. The decoder layers are the largest list of modules of one class. Attention is the
child whose class name contains "attention". The name of a projection inside attention gives its role, and the one whose
name gives none is the output projection. The others belong to the MLP, where shapes decide: hidden to wide is `up`,
wide to hidden is `down`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from posixpath import commonpath

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.sites import Role, Site
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
    """

    decoder: str
    layers: tuple[str, ...]
    projections: tuple[Site, ...]
    sublayers: tuple[Site, ...]
    entries: tuple[Site, ...]
    hidden: int

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Analyse a decoder, on any device, including meta.

        Raises:
            UnknownAnatomy: layers or projections cannot be identified, or the layers route tokens to experts; the
                message shows the modules.
        """
        path, stack = _decoder_layers(model)
        hidden = getattr(getattr(model, "config", None), "hidden_size", None)
        if not isinstance(hidden, int):
            raise UnknownAnatomy(f"{type(model).__name__} has no config.hidden_size.\n{module_tree(model)}")
        projections: list[Site] = []
        sublayers: list[Site] = []
        entries: list[Site] = []
        for index, layer in enumerate(stack):
            here = f"{path}.{index}"
            _refuse_experts(here, layer)
            for role, (*readers, last) in _sublayers(here, index, layer, hidden).items():
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
        )

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of this model, projections first."""
        return tuple(dict.fromkeys(s.role for s in (*self.projections, *self.sublayers)))

    def cache_shapes(self, model: nn.Module) -> list[tuple[int, int, int]]:
        """Return (key/value heads, key width, value width) of each layer.

        Runs the model on one token, which needs no rules for grouped, shared or fused projections.

        Raises:
            UnknownAnatomy: the model keeps no key/value cache.
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
        if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
            raise UnknownAnatomy(f"{type(model).__name__} keeps no key/value cache, so nothing can be prepended.")
        return [(layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1]) for layer in layers]


def base_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of a base by path, without those of its adapters."""
    return [(name, module) for name, module in model.named_modules() if CHAIN_NAMES.isdisjoint(name.split("."))]


def base_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of a base by path, without those of its adapters."""
    return [(name, p) for name, p in model.named_parameters() if CHAIN_NAMES.isdisjoint(name.split("."))]


def _decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    lists = [
        (name, module)
        for name, module in base_modules(model)
        if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1 and _linears(module)
    ]
    if not lists:
        raise UnknownAnatomy(f"{type(model).__name__} has no list of equal decoder layers.\n{module_tree(model)}")
    # Experts are lists too: the decoder layers are the list with the most parameters.
    return max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def _linears(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in base_modules(module) if weights.dims(m) is not None]


def _refuse_experts(path: str, layer: nn.Module) -> None:
    experts = [
        f"{path}.{name}"
        for name, module in base_modules(layer)
        if re.search(r"experts?$|moe|router", type(module).__name__, re.IGNORECASE)
        or any(p.ndim == 3 and not isinstance(module, nn.Conv1d) for p in module.parameters(recurse=False))
    ]
    if experts:
        raise UnknownAnatomy(
            "This model routes tokens to experts, whose weights are not separate projections. "
            f"These modules cannot be adapted: {', '.join(experts)}. Choose a dense model."
        )


def _sublayers(path: str, index: int, layer: nn.Module, hidden: int) -> dict[Role, list[Site]]:
    """Return the projections of attention and MLP, each list ending with the output projection."""
    attention = [
        (name, m)
        for name, m in base_modules(layer)
        if re.search("attention|attn", type(m).__name__, re.IGNORECASE) and _linears(m)
    ]
    if not attention:
        raise UnknownAnatomy(f"No attention with projections in {path}.\n{module_tree(layer)}")
    inside = {f"{attention[0][0]}.{name}" for name, _ in _linears(attention[0][1])}
    result: dict[Role, list[Site]] = {"attn": [], "mlp": []}
    for name, module in _linears(layer):
        d_in, d_out = weights.dims(module) or (0, 0)
        if d_out == 1:  # a router or a scalar gate is not a projection
            continue
        part: Role = "attn" if name in inside else "mlp"
        leaf = name.rpartition(".")[2].lower()
        role: Role = _mlp_role(leaf, d_in, d_out, hidden)
        if part == "attn":
            role = next((role for pattern, role in _ATTENTION_NAMES if re.search(pattern, leaf)), "o")
        result[part].append(Site(f"{path}.{name}", role, index, d_in, d_out, "out", f"{path}.{name}"))
    for part, sites in result.items():
        sites.sort(key=lambda s: _ORDER.get(s.role, 0))
        outputs = [s for s in sites if s.role in ("o", "down")]
        if len(outputs) != 1 or len(sites) < 2 or outputs[0].d_out != hidden:
            raise UnknownAnatomy(
                f"The {part} of {path} does not have exactly one output projection of width {hidden}; its projections: "
                f"{', '.join(s.path for s in sites) or 'none'}.\n{module_tree(layer)}"
            )
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
