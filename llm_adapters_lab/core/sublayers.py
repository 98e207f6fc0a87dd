"""Find the sublayers of one layer: token mixers and feed-forward parts, each with its projections and their roles.

Structure and names decide, in this order. What is called attention and has queries, keys or values is attention; the
owner of a causal convolution or of a decay, beside projections, is a state-space or convolution mixer. Lists of equal
networks, and parameters of three dimensions, are routed experts; what stands beside them is router or shared expert.
Of the rest, the part that consists of projections and nothing else is the MLP.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.errors import UnknownAnatomy

CHAIN_NAMES = frozenset(
    {"adapters", "sublayer_adapters", "input_adapters", "parameter_adapters", "model_adapters", "adapted_parameters"}
)
"""Names of the attributes that hold the adapters of a module of the base."""

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_CROSS = re.compile("cross|encoder|enc_?dec", re.IGNORECASE)
"""In name or class of an attention that reads the output of an encoder."""
_ASIDE = re.compile(r"index|compress|norm|embed|adapter", re.IGNORECASE)
"""In the name of what lies in a sublayer but is none of its projections."""
_NORM = re.compile("norm(gated)?$", re.IGNORECASE)
"""In the class of a norm."""
_READERS = (
    ("in_proj", r"^in_proj(_|$)"),
    ("q_a", r"(^|_)w?q_?(a|down)(_|$)"),
    ("q_b", r"(^|_)w?q_?(b|up)(_|$)"),
    ("kv_a", r"(^|_)w?kv_?(a|down)(_|$)"),
    ("kv_b", r"(^|_)w?kv_?(b|up)(_|$)"),
    ("qkv", r"qkv|query_key_value|c_attn"),
    ("kv", r"key_value|kv"),
    ("q", r"(^|_)w?q(_|$)|query"),
    ("k", r"(^|_)w?k(_|$)|key"),
    ("v", r"(^|_)w?v(_|$)|value"),
    ("attn.gate", r"gate|^g_|receptance"),
)
_EXIT = re.compile(r"(^|_)w?o(_|$)|out|dense|c_proj")
_MLP = re.compile(r"mlp|ffn|feed_?forward|(^|\.)ff$|dense", re.IGNORECASE)
_STATE = re.compile("A_log|dt_bias|decay|recurrent|log_A")
_ROUTER = re.compile("gate|router|classifier|wg", re.IGNORECASE)
EXECUTION = {"in_proj": 0, "q": 0, "q_a": 0, "q_b": 1, "kv_a": 2, "kv_b": 3, "k": 1, "v": 2}
EXECUTION |= {"gate": 0, "gate_up": 0, "up": 1}
EXECUTION |= {"attn.gate": 8, "o": 9, "out_proj": 9, "down": 9}
"""Position of a role within its sublayer."""


@dataclass(frozen=True)
class Projection:
    """A linear projection of a layer.

    Attributes:
        path: of the module from the layer; of a matrix of a parameter, that of the parameter and its index.
        role: what it computes.
        d_in: width of its input.
        d_out: width of its output.
    """

    path: str
    role: str
    d_in: int
    d_out: int


@dataclass(frozen=True)
class Sublayer:
    """A token mixer or a feed-forward part of a layer.

    Attributes:
        kind: attn, cross, ssm or conv; mlp, shared, experts or router.
        block: path from the layer of the module that is the sublayer, "" if it lies open in the layer.
        projections: in order of execution.
        exit: the projection whose output is that of the sublayer; None if none of them is.
    """

    kind: str
    block: str
    projections: tuple[Projection, ...]
    exit: Projection | None = None


def base_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of a base by path, without those of its adapters."""
    return [(name, module) for name, module in model.named_modules() if CHAIN_NAMES.isdisjoint(name.split("."))]


def linears(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the linear projections inside a module, or the module itself if it is one."""
    return [(name, m) for name, m in base_modules(module) if weights.dims(m) is not None]


def module_tree(model: nn.Module, depth: int = 4) -> str:
    """Return the module tree as indented text: name, class and, for projections, (d_in, d_out); at most 60 lines."""
    lines = []
    for name, module in base_modules(model):
        level = name.count(".") + 1 if name else 0
        if level <= depth:
            size = weights.dims(module)
            lines.append(f"{'  ' * level}{name.rpartition('.')[2] or '.'}: {type(module).__name__}{size or ''}")
    return "\n".join(lines[:60])


def within(name: str, others: Iterable[str]) -> bool:
    """Return whether a path is one of others or inside one of them."""
    return any(f"{name}.".startswith(f"{other}.") for other in others)


def read_layer(where: str, layer: nn.Module, hidden: int) -> tuple[list[Sublayer], list[str]]:
    """Return the sublayers of a layer, in order, and the paths of what has weights but no role.

    Args:
        where: path of the layer, for messages.
        layer: the layer.
        hidden: width of the residual stream.

    Raises:
        UnknownAnatomy: an MLP does not have exactly one output projection.
    """
    mixers = _mixers(layer, hidden)
    banks = _banks(layer, hidden, mixers)
    routed = [part for bank in banks for part in bank]
    blocks = {bank[0].block for bank in banks}
    dense = _mlps(where, layer, hidden, [*mixers, *blocks], beside=bool(routed))
    parts = [_gated(part) for part in (*mixers.values(), *dense, *routed)]
    found = {p.path for part in parts for p in part.projections}
    return parts, _left_out(layer, found)


def _gated(part: Sublayer) -> Sublayer:
    """Return the sublayer with w1 as its gate if it has a w3, as in Llama's own names; their shapes are the same."""
    paths = {p.path for p in part.projections}
    gates = {p for p in part.projections if re.search(r"\bw1$", p.path) and p.path[:-1] + "3" in paths}
    roles = {p: p.role[: -len("up")] + "gate" if p in gates else p.role for p in part.projections}
    return replace(part, projections=tuple(replace(p, role=role) for p, role in roles.items())) if gates else part


def _mixers(layer: nn.Module, hidden: int) -> dict[str, Sublayer]:
    found: dict[str, Sublayer] = {}
    for name, module in base_modules(layer):
        if not name or within(name, found):
            continue
        kind = type(module).__name__
        words = f"{[word for word in name.split('.') if not word.isdigit()][-1]} {kind}"
        if isinstance(module, nn.ModuleList):
            part = None
        elif _ATTENTION.search(words) and not _NORM.search(kind) and not re.search("(De|En)coderLayer", kind):
            part = _mixer("cross" if _CROSS.search(f"{name} {kind}") else "attn", name, module, hidden)
        else:
            part = _recurrent(name, module, hidden)
        if part:
            found[name] = part
    return found


def _recurrent(name: str, module: nn.Module, hidden: int) -> Sublayer | None:
    """Return a state-space or convolution mixer, if a module is one."""
    own = dict(module.named_children())
    convolves = any(isinstance(child, nn.Conv1d) for child in own.values())
    decays = any(_STATE.search(key) for key, _ in module.named_parameters())
    separate = all(any(re.fullmatch(f"{role}(_proj)?", key) for key in own) for role in "qkv")
    if not (convolves or separate or any(_STATE.search(key) for key in module._parameters)):
        return None
    return _mixer("conv" if convolves and not decays else "ssm", name, module, hidden)


def _mixer(kind: str, block: str, module: nn.Module, hidden: int) -> Sublayer | None:
    """Return a token mixer by the names of its projections, or None if they do not belong to one."""
    roles: dict[str, str] = {}
    for name, projection in linears(module):
        words = name.split(".")
        if name and not any(map(_ASIDE.search, words[:-1])) and "Group" not in type(projection).__name__:
            roles[name] = next(filter(None, map(_reader, reversed(words))), "")
    size = {name: weights.dims(module.get_submodule(name)) or (0, 0) for name in roles}
    unnamed = [name for name, role in roles.items() if not role and size[name][1] == hidden]
    exits = [name for name in unnamed if any(map(_EXIT.search, name.split(".")))] or unnamed
    if kind in ("ssm", "conv"):
        readers = {name: "in_proj" for name, role in roles.items() if not role and size[name][0] == hidden}
        roles |= {name: role for name, role in readers.items() if name not in exits[-1:]}
    if exits:
        roles[exits[-1]] = "out_proj" if "in_proj" in roles.values() else "o"
    if not {"q", "k", "v", "kv", "qkv", "q_a", "kv_a", "in_proj"} & set(roles.values()):
        return None
    prefix = "cross." if kind == "cross" else ""
    chosen = [(name, role) for name, role in roles.items() if role]
    chosen.sort(key=lambda pair: EXECUTION.get(pair[1], 0))
    projections = tuple(Projection(f"{block}.{name}", f"{prefix}{role}", *size[name]) for name, role in chosen)
    return Sublayer(kind, block, projections, projections[-1] if exits else None)


def _reader(word: str) -> str:
    return next((role for role, pattern in _READERS if re.search(pattern, word, re.IGNORECASE)), "")


def _banks(layer: nn.Module, hidden: int, taken: Collection[str]) -> list[list[Sublayer]]:
    """Return the mixtures of a layer, each as experts, shared experts and router."""
    experts: dict[str, list[Projection]] = {}
    inside: list[str] = []
    for name, module in base_modules(layer):
        if not name or within(name, (*taken, *inside)):
            continue
        if projections := _stacked(name, module, hidden) or _listed(name, module, hidden):
            inside.append(name)
            parent = name.rpartition(".")[0]
            experts.setdefault(parent or name, []).extend(projections)
    return [_bank(layer, block, projections, inside, hidden) for block, projections in experts.items()]


def _bank(
    layer: nn.Module, block: str, experts: list[Projection], inside: Collection[str], hidden: int
) -> list[Sublayer]:
    parts = {"experts": experts, "shared": [], "router": []}
    for name, module in base_modules(layer):
        own = name.removeprefix(f"{block}.")
        if own == name or within(name, inside):
            continue
        size = weights.dims(module) or _matrix(module)
        if size is None or size[1] == 1:  # a scalar gate
            continue
        if "shared" in own:
            parts["shared"].append(Projection(name, f"shared.{mlp_role(name, *size, hidden)}", *size))
        elif _ROUTER.search(own):  # a class of its own may return more than the product, or read the weight of a part
            path = name if type(module) is nn.Linear and "." not in own else f"{name}.weight"
            parts["router"].append(Projection(path, "router", *size))
    shared = [p for p in parts["experts"] if p.role.startswith("shared.")]  # several, in one parameter
    parts["experts"] = [p for p in parts["experts"] if p not in shared]
    parts["shared"] = sorted([*shared, *parts["shared"]], key=lambda p: EXECUTION.get(p.role.partition(".")[2], 0))
    exits = [p for p in parts["shared"] if p.role == "shared.down" and not shared]
    return [
        Sublayer(kind, block, tuple(projections), exits[0] if kind == "shared" and len(exits) == 1 else None)
        for kind, projections in parts.items()
        if projections
    ]


def _matrix(module: nn.Module) -> tuple[int, int] | None:
    """Return (d_in, d_out) of a module whose weight is a plain matrix (d_out, d_in), as in routers."""
    weight = module._parameters.get("weight")
    return None if weight is None or weight.ndim != 2 else (weight.shape[1], weight.shape[0])


def _stacked(name: str, module: nn.Module, hidden: int) -> list[Projection]:
    """Return the projections of experts that are stacked in parameters of three dimensions."""
    stacks = {
        key: p
        for key, p in module.named_parameters(recurse=False)
        if p.ndim == 3 and hidden in p.shape[1:] and 1 not in p.shape[1:]
    }
    if not stacks or isinstance(module, nn.Conv1d):
        return []
    roles: dict[str, str] = {}
    for key in stacks:
        word = f"{name.rpartition('.')[2]} {key}" if key == "weight" else key
        role = "down" if re.search("down|output|w2|wo", word) else "gate" if "gate" in word else "up"
        roles[key] = "gate_up" if role == "gate" and "up" in word else role
    transposed = getattr(module, "is_transposed", None)  # (experts, d_in, d_out)
    for key, stack in stacks.items():
        if transposed is None and stack.shape[1] != stack.shape[2]:
            transposed = (stack.shape[1] == hidden) != (roles[key] == "down")
    if transposed is None:
        raise UnknownAnatomy(f"The experts of {name} are {hidden} x {hidden}: which side is their input is unknown.")
    kind = "shared" if "shared" in name else "experts"
    found = []
    count = min(map(len, stacks.values()))  # one may have room for experts that compute nothing
    for key, stack in stacks.items():
        size = tuple(stack.shape[1:]) if transposed else (stack.shape[2], stack.shape[1])
        found += [Projection(f"{name}.{key}.{e}", f"{kind}.{roles[key]}", *size) for e in range(count)]
    return sorted(found, key=lambda p: EXECUTION[p.role.partition(".")[2]])


def _listed(name: str, module: nn.Module, hidden: int) -> list[Projection]:
    """Return the projections of experts that are modules of a list."""
    children = list(module.children())
    if not isinstance(module, nn.ModuleList | nn.ModuleDict) or len(children) < 2 or len({*map(type, children)}) > 1:
        return []
    if weights.dims(children[0]) is not None or len(linears(children[0])) < 2:
        return []
    if not re.search("expert", f"{name} {type(children[0]).__name__}", re.IGNORECASE):
        return []
    sizes = [(f"{name}.{key}", weights.dims(m) or (0, 0)) for key, m in linears(module)]
    found = [Projection(path, f"experts.{mlp_role(path, *size, hidden)}", *size) for path, size in sizes]
    return sorted(found, key=lambda p: EXECUTION.get(p.role.partition(".")[2], 0))


def _mlps(where: str, layer: nn.Module, hidden: int, taken: Collection[str], *, beside: bool) -> list[Sublayer]:
    """Return the dense feed-forward parts of a layer; `beside`: it also has experts."""
    blocks: dict[str, list[str]] = {}
    for name, module in base_modules(layer):
        own = [p for p in module.parameters(recurse=False) if p.numel() > max(p.shape, default=1)]
        size = weights.dims(module) or (0, 2 * bool(own))
        if name and size[1] > 1 and not within(name, taken) and not _ASIDE.search(name):
            blocks.setdefault(_block(layer, name, taken), []).append(name)
    plain = {name: names for name, names in blocks.items() if _is_plain(layer.get_submodule(name), names, name)}
    # An MLP may also lie open in the layer, or in a module for each projection.
    mlps = {name: names for name, names in plain.items() if len(names) > 1}
    if not mlps:
        mlps = {"": [name for names in plain.values() for name in names]} if len(plain) > 1 and not beside else {}
    elif len(mlps) > 1:
        mlps = {name: names for name, names in mlps.items() if _MLP.search(_words(layer, name))} or mlps
    parts: list[Sublayer] = []
    faults: list[str] = []
    for block, names in mlps.items():
        sizes = {name: weights.dims(layer.get_submodule(name)) or (0, 0) for name in names}
        roles = {name: mlp_role(name.removeprefix(block), *sizes[name], hidden) for name in names}
        exits = [name for name in names if roles[name] == "down"]
        if len(exits) != 1 or len(names) < 2 or sizes[exits[0]][1] != hidden:
            faults += [f"{where}.{name}" for name in names]
            continue
        ups = [name for name in names if roles[name] == "up"]
        for name in names:
            if roles[name] == "gate_up" and ups and sizes[name] == sizes[ups[0]]:
                roles[name] = "gate"
        if len(names) == 2 and ups and sizes[ups[0]][1] == 2 * sizes[exits[0]][0]:
            roles[ups[0]] = "gate_up"
        kind = "shared" if beside and "shared" in block else "mlp"  # in one of Granite's without experts, the MLP
        prefix = "shared." if kind == "shared" else ""
        # The first one reads the input of the sublayer; a receptance is computed last.
        names.sort(key=lambda name: EXECUTION.get(roles[name], 0) + 2 * ("receptance" in name))
        projections = tuple(Projection(name, prefix + roles[name], *sizes[name]) for name in names)
        parts.append(Sublayer(kind, block, projections, projections[-1]))
    if faults and not parts and not beside:
        raise UnknownAnatomy(
            f"The mlp of {where} does not have exactly one output projection of width {hidden}; its projections: "
            f"{', '.join(faults)}.\n{module_tree(layer)}"
        )
    return parts


def _words(layer: nn.Module, name: str) -> str:
    return f"{name} {type(layer.get_submodule(name)).__name__}"


def _block(layer: nn.Module, name: str, taken: Collection[str]) -> str:
    """Return the part of a layer that a module belongs to: the largest that is no list and has nothing else in it."""
    names = name.split(".")
    for end in range(1, len(names)):
        prefix = ".".join(names[:end])
        module = layer.get_submodule(prefix)
        if not isinstance(module, nn.ModuleList) and not any(within(other, [prefix]) for other in taken):
            return prefix
    return name


def _is_plain(block: nn.Module, names: Collection[str], path: str) -> bool:
    """Return whether a block is no norm, and all its matrices are those of projections."""
    if _NORM.search(type(block).__name__):
        return False
    projections = {name for name, _ in linears(block)}
    return all(name.removeprefix(path).removeprefix(".") in projections for name in names)


def mlp_role(name: str, d_in: int, d_out: int, hidden: int) -> str:
    """Return the role of a projection of an MLP: shapes decide, unless hidden and wide are the same width."""
    leaf = name.rpartition(".")[2].lower()
    if d_in == d_out == hidden and re.search(r"down|fc2|fc_out|4h_to_h|c_proj|w2", leaf):
        return "down"
    if d_in != hidden:
        return "down"
    if d_in == d_out and "receptance" in leaf:
        return "gate"
    return "gate_up" if "gate" in leaf and "up" in leaf else "gate" if "gate" in leaf else "up"


def _left_out(layer: nn.Module, found: Collection[str]) -> list[str]:
    """Return the paths of the parts of a layer with matrices but without a role, the largest of each."""
    rest: dict[str, None] = {}
    modules = {name for name, _ in base_modules(layer)}
    roots = {path if path in modules else path.rpartition(".")[0] for path in found}
    for name, module in base_modules(layer):
        own = [key for key, p in module.named_parameters(recurse=False) if p.ndim > 1 and p.numel() > max(p.shape)]
        size: Any = weights.dims(module) or (0, 2 * bool(own))
        if not name or size[1] <= 1 or name in roots or any(f"{name}.{key}" in roots for key in own):
            continue
        words = name.split(".")
        prefixes = (".".join(words[:end]) for end in range(1, len(words) + 1))
        # A matrix of its own beside projections with roles, such as the decay of a mixer, is no part.
        rest[next((p for p in prefixes if not any(within(path, [p]) for path in found)), "")] = None
    return [name for name in rest if name]
