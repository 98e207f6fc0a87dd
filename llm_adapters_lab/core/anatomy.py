"""Find the parts of any decoder: its layers, its projections and what each of them is for.

No table of architectures. The decoder layers are the largest list of equal modules; attention is the child whose class
says so; within attention a projection's name gives its role and the remaining one is the exit; outside attention shapes
decide: hidden to wide goes up, wide to hidden goes down.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.sites import Role, Site
from llm_adapters_lab.errors import RoutedExperts, UnknownAnatomy

CHAINS = frozenset({"adapters", "sublayer_adapters", "input_adapters", "parameter_adapters", "model_adapters"})
"""Names under which adapters hang at the modules of a base."""

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
    """What the lab knows of a model.

    Attributes:
        decoder: path of the module that owns the decoder layers ("" for the model itself).
        layers: path of every decoder layer, in order.
        projections: the linear projections in all layers, in order of execution within a sublayer.
        sublayers: attention and MLP of each layer as sites of their own, output side.
        entries: the same sublayers, input side, where one module receives their input.
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
        """Examine a decoder; works on the meta device, so before any weight is loaded.

        Raises:
            UnknownAnatomy: layers or projections cannot be told apart; the message shows the module tree.
            RoutedExperts: the layers route tokens to experts; the message names the modules.
        """
        path, stack = _decoder_layers(model)
        hidden = _hidden_size(model)
        projections: list[Site] = []
        sublayers: list[Site] = []
        entries: list[Site] = []
        for index, layer in enumerate(stack):
            place = f"{path}.{index}"
            _refuse_experts(place, layer)
            for role, (*readers, leaver) in _sublayers(place, index, layer, hidden).items():
                projections += [*readers, leaver]
                first = readers[0]
                sublayers.append(Site(leaver.path, role, index, first.d_in, leaver.d_out, "out", first.path))
                door = _common_parent([s.path for s in readers])
                if len(door) > len(place):
                    entries.append(Site(door, role, index, first.d_in, first.d_in, "in", door))
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
        """The roles this model has, projections first."""
        return tuple(dict.fromkeys(s.role for s in (*self.projections, *self.sublayers)))

    def cache_shapes(self, model: nn.Module) -> list[tuple[int, int, int]]:
        """Return (key/value heads, key width, value width) of each layer.

        Asked of the model itself with one token, so that grouped, shared and fused projections need no rules.
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
            raise UnknownAnatomy(f"{type(model).__name__} keeps no key/value cache, so nothing can be prepended to it.")
        return [(layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1]) for layer in layers]


def modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the base's own modules by path, without those of adapters that hang in it."""
    return [(name, module) for name, module in model.named_modules() if CHAINS.isdisjoint(name.split("."))]


def parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the base's own parameters by path, without those of adapters that hang in it."""
    return [(name, p) for name, p in model.named_parameters() if CHAINS.isdisjoint(name.split("."))]


def _decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    lists = [
        (name, module)
        for name, module in modules(model)
        if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1 and _linears(module)
    ]
    if not lists:
        raise UnknownAnatomy(f"{type(model).__name__} has no list of equal decoder layers.\n{tree(model)}")
    # Experts are lists too: the decoder layers are the list that holds most of the parameters.
    return max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def _hidden_size(model: nn.Module) -> int:
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    if not isinstance(width, int):
        raise UnknownAnatomy(f"{type(model).__name__} does not tell its hidden size.\n{tree(model)}")
    return width


def _linears(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in modules(module) if weights.dims(m) is not None]


def _refuse_experts(path: str, layer: nn.Module) -> None:
    guilty = [
        f"{path}.{name}"
        for name, module in modules(layer)
        if re.search(r"experts?$|moe|router", type(module).__name__, re.IGNORECASE)
        or any(p.ndim == 3 and not isinstance(module, nn.Conv1d) for p in module.parameters(recurse=False))
    ]
    if guilty:
        raise RoutedExperts(
            "This model routes tokens to experts, whose weights are not projections of their own. "
            f"These modules cannot be adapted: {', '.join(guilty)}. Choose a dense model."
        )


def _sublayers(path: str, index: int, layer: nn.Module, hidden: int) -> dict[Role, list[Site]]:
    """Return the sites of attention and MLP: those that read its input first, the exit last."""
    attention = [
        (name, m)
        for name, m in modules(layer)
        if re.search("attention|attn", type(m).__name__, re.IGNORECASE) and _linears(m)
    ]
    if not attention:
        raise UnknownAnatomy(f"No attention with projections in {path}.\n{tree(layer)}")
    inside = {f"{attention[0][0]}.{name}" for name, _ in _linears(attention[0][1])}
    result: dict[Role, list[Site]] = {"attn": [], "mlp": []}
    for name, module in _linears(layer):
        d_in, d_out = weights.dims(module) or (0, 0)
        if d_out == 1:  # a router or a gate scalar is no projection
            continue
        part: Role = "attn" if name in inside else "mlp"
        leaf = name.rpartition(".")[2].lower()
        role = _attention_role(leaf) if part == "attn" else _mlp_role(leaf, d_in, d_out, hidden)
        result[part].append(Site(f"{path}.{name}", role, index, d_in, d_out, "out", f"{path}.{name}"))
    for part, sites in result.items():
        sites.sort(key=lambda s: _ORDER.get(s.role, 0))
        exits = [s for s in sites if s.role in ("o", "down")]
        if len(exits) != 1 or len(sites) < 2 or exits[0].d_out != hidden:
            raise UnknownAnatomy(
                f"The {part} of {path} has not one exit projection to width {hidden}; its projections: "
                f"{', '.join(s.path for s in sites) or 'none'}.\n{tree(layer)}"
            )
    return result


def _attention_role(leaf: str) -> Role:
    return next((role for pattern, role in _ATTENTION_NAMES if re.search(pattern, leaf)), "o")


def _mlp_role(leaf: str, d_in: int, d_out: int, hidden: int) -> Role:
    # Shapes decide; only where hidden and wide are the same width must the name.
    if d_in == d_out == hidden and re.search(r"down|fc2|fc_out|4h_to_h|c_proj", leaf):
        return "down"
    if d_in != hidden:
        return "down"
    return "gate_up" if "gate" in leaf and "up" in leaf else "gate" if "gate" in leaf else "up"


def _common_parent(paths: list[str]) -> str:
    parts = [p.split(".") for p in paths]
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) != 1:
            break
        common.append(names[0])
    return ".".join(common)


def tree(model: nn.Module, depth: int = 4) -> str:
    """Return the module tree as indented text: name, class and, for projections, (d_in, d_out)."""
    lines = []
    for name, module in modules(model):
        level = name.count(".") + 1 if name else 0
        if level <= depth:
            size = weights.dims(module)
            lines.append(f"{'  ' * level}{name.rpartition('.')[2] or '.'}: {type(module).__name__}{size or ''}")
    return "\n".join(lines[:60])
