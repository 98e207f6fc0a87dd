"""Find the layers of any language model, and the sublayers and projections of each.

There is no table of architectures. The decoder layers are the largest list of modules that hold projections; the
encoder of an encoder-decoder has such a list too. `sublayers` reads each layer for itself, so that layers may differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from posixpath import commonpath
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.call_context import AdapterCache
from llm_adapters_lab.core.sites import ENCODER, OUTER, ROLES_OF, Site, ranges
from llm_adapters_lab.core.sublayers import (
    CHAIN_NAMES,
    EXECUTION,
    Projection,
    Sublayer,
    base_modules,
    linears,
    module_tree,
    read_layer,
    within,
)
from llm_adapters_lab.errors import BadSpec, UnknownAnatomy, choices

DESCRIBED = "anatomy_by_hand"
"""Attribute of a model that holds patterns of module paths by role."""


@dataclass(frozen=True)
class Anatomy:
    """Layers, projections and roles of a model.

    Attributes:
        decoder: path of the module that has the decoder layers ("" for the model itself).
        layers: path of each decoder layer, in order.
        projections: the linear projections of all layers, in order of execution within a sublayer.
        sublayers: token mixers and feed-forward parts of each layer as sites at their output.
        entries: the same sublayers as sites at their input, if a single module receives it.
        hidden: width of the residual stream.
        left_out: path and class of what has weights but no role: parts of the layers, and other lists of layers.
        embeddings: token embedding and output head, "embed" and "head", where they are plain matrices of their own.
    """

    decoder: str
    layers: tuple[str, ...]
    projections: tuple[Site, ...]
    sublayers: tuple[Site, ...]
    entries: tuple[Site, ...]
    hidden: int
    left_out: tuple[tuple[str, str], ...] = ()
    embeddings: tuple[Site, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Analyse a language model, or the encoder or decoder of another kind, on any device, including meta.

        Raises:
            UnknownAnatomy: layers or projections cannot be identified; the message shows the modules.
        """
        if roles := model.__dict__.get(DESCRIBED):
            return _described(cls, model, roles)
        path, encoder, left_out = _layer_lists(model)
        hidden = _width(model)
        found: tuple[list[Site], list[Site], list[Site]] = ([], [], [])
        for stack, prefix in ((encoder, ENCODER), (path, "")):
            for index, layer in enumerate(model.get_submodule(stack).children() if stack else ()):
                here = f"{stack}.{index}"
                parts, others = read_layer(here, layer, hidden)
                left_out += [(f"{here}.{name}", type(layer.get_submodule(name)).__name__) for name in others]
                for part in parts:
                    _add_sites(found, part, here, index, prefix, hidden)
        projections, sublayers, entries = map(tuple, found)
        if not projections:
            raise UnknownAnatomy(f"{type(model).__name__} has layers without projections.\n{module_tree(model)}")
        count = len(list(model.get_submodule(path).children()))
        layers = tuple(f"{path}.{i}" for i in range(count))
        outer = _embeddings(model)
        return cls(path.rpartition(".")[0], layers, projections, sublayers, entries, hidden, tuple(left_out), outer)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of this model, projections first."""
        return tuple(dict.fromkeys(s.role for s in (*self.projections, *self.sublayers)))

    def depth(self, role: str) -> int:
        """Return the number of layers of the decoder or, for roles that start with `encoder.`, of the encoder."""
        own = {s.layer for s in self.projections if role.startswith(ENCODER) and s.role.startswith(ENCODER)}
        return 1 + max(own) if own else len(self.layers)

    def parts(self, layer: int, stack: str = "") -> list[tuple[Site | None, list[Site]]]:
        """Return the sublayers of a layer: each as a site, if its output is that of a module, and its projections.

        Args:
            layer: index in the stack.
            stack: "" for the decoder, `encoder.` for the encoder.
        """
        at = (layer, bool(stack))
        wholes, own = (
            [s for s in sites if (s.layer, s.sublayer.startswith(ENCODER)) == at]
            for sites in (self.sublayers, self.projections)
        )
        order = {site.path: i for i, site in enumerate(own)}
        found: dict[Any, tuple[Site | None, list[Site]]] = {}
        for i, site in enumerate(own):
            exits = (w for w in wholes if w.role == site.sublayer and order.get(w.path, -1) >= i)
            blocks = (w for w in wholes if site.path.startswith(f"{w.path}."))
            whole = next(exits, None) or next(blocks, None)
            found.setdefault(whole or site.sublayer, (whole, []))[1].append(site)
        return list(found.values())

    @property
    def remark(self) -> str:
        """A sentence on what has weights but no role, and on layers without keys or values of their own, or ""."""
        found: dict[str, list[int]] = {}
        for path, kind in self.left_out:
            layers = [i for i, at in enumerate(self.layers) if path.startswith(f"{at}.")]
            inner = path.removeprefix(f"{self.layers[layers[0]]}.") if layers else path
            found.setdefault(f"{inner} ({kind})", []).extend(layers)
        parts = [f"{name} in layers {ranges(layers)}" if layers else name for name, layers in found.items()]
        text = f"Without a role, so that no placement selects it: {'; '.join(parts)}." if parts else ""
        roles: dict[int, set[str]] = {}
        for site in self.projections:
            roles.setdefault(site.layer, set()).update({site.role} if site.sublayer == "attn" else ())
        split = {i: own & {"k", "v"} for i, own in roles.items() if "q" in own and not own & {"kv", "kv_a"}}
        for own, words in ((set(), "without k and v use those of others"), ({"k"}, "without v use k for both")):
            if layers := [i for i, found in split.items() if found == own]:
                text += f" Layers {ranges(layers)} {words}."
        return text.strip()

    def cache_shapes(self, model: nn.Module) -> dict[int, tuple[int, int, int]]:
        """Return (key/value heads, key width, value width) of each layer that keeps keys and values.

        Runs the model on one token, which needs no rules for grouped, shared, fused or latent projections.

        Raises:
            UnknownAnatomy: the model keeps no key/value cache, one of its own kind, or one that layers share.
        """
        none = f"{type(model).__name__} keeps no plain key/value cache; nothing can be prepended."
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise UnknownAnatomy(none)
        device = weights.device(model)
        chain: Any = getattr(model.get_submodule(self.decoder), "model_adapters", {})
        whole = [*chain]  # adapters of the whole model, which may change the shapes
        muted = chain.muted if whole else []
        muted += whole
        try:
            with weights.evaluating(model), torch.no_grad():
                output = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=True)
        finally:
            for name in whole:
                muted.remove(name)
        cache: Any = getattr(output, "past_key_values", None)
        layers: Any = cache.layers if type(cache) in (DynamicCache, AdapterCache) else ()
        found = {
            index: (layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1])
            for index, layer in enumerate(layers)
            if getattr(layer, "keys", None) is not None and layer.keys.ndim == 4
        }
        if not found:
            raise UnknownAnatomy(none)
        return found


def describe_anatomy(model: nn.Module, roles: Mapping[str, str]) -> None:
    """Say which modules of a model have which roles, where they cannot be told apart otherwise.

    Args:
        model: the model; `Anatomy.of` follows the description from now on.
        roles: pattern of module paths by role of a projection, as in ``{"q": "*.attn.query", "down": "*.fc2"}``.

    Raises:
        BadSpec: a role is none of a projection.
        UnknownAnatomy: a pattern matches no projection, or one whose shape does not fit the role.
    """
    if unknown := [role for role in roles if role not in ROLES_OF]:
        raise BadSpec(f"anatomy names {unknown[0]!r}, which is no role. {choices(unknown[0], ROLES_OF)}")
    if roles:
        _described(Anatomy, model, roles)
        model.__dict__[DESCRIBED] = dict(roles)


def _described(kind: type[Anatomy], model: nn.Module, roles: Mapping[str, str]) -> Anatomy:
    hidden = _width(model)
    layers: dict[str, dict[str, list[Projection]]] = {}
    for role, pattern in roles.items():
        matched = [(path, m) for path, m in linears(model) if fnmatchcase(path, pattern)]
        if not matched:
            raise UnknownAnatomy(f"anatomy: {pattern!r} ({role}) matches no projection.\n{module_tree(model)}")
        for path, module in matched:
            d_in, d_out = weights.dims(module) or (0, 0)
            side = {"o": d_out, "down": d_out, "out_proj": d_out}.get(role.rpartition(".")[2], d_in)
            if side != hidden and role not in ("q_b", "kv_b"):
                raise UnknownAnatomy(f"anatomy: {path} is {d_in} -> {d_out}; {role} is to have {hidden} on one side.")
            where = re.match(r"(.*?\.\d+)\.(.*)", path)
            if where is None:
                raise UnknownAnatomy(f"anatomy: {path} ({role}) is in no numbered layer.\n{module_tree(model)}")
            own = layers.setdefault(where[1], {}).setdefault(ROLES_OF[role], [])
            own.append(Projection(where[2], role, d_in, d_out))
    paths = sorted(layers, key=lambda path: int(path.rpartition(".")[2]))
    stack = paths[0].rpartition(".")[0]
    if paths != [f"{stack}.{index}" for index in range(len(paths))]:
        raise UnknownAnatomy(f"anatomy: the patterns match modules of {', '.join(paths)}, not of layers 0, 1, ...")
    found: tuple[list[Site], list[Site], list[Site]] = ([], [], [])
    for index, path in enumerate(paths):
        for sublayer, projections in layers[path].items():
            ordered = tuple(sorted(projections, key=lambda p: EXECUTION.get(p.role.rpartition(".")[2], 0)))
            ends = ordered[-1].role.rpartition(".")[2] in ("o", "down", "out_proj") and sublayer != "experts"
            _add_sites(found, Sublayer(sublayer, "", ordered, ordered[-1] if ends else None), path, index, "", hidden)
    sites, sublayers, entries = map(tuple, found)
    return kind(stack.rpartition(".")[0], tuple(paths), sites, sublayers, entries, hidden, (), _embeddings(model))


def base_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of a base by path, without those of its adapters."""
    return [(name, p) for name, p in model.named_parameters() if CHAIN_NAMES.isdisjoint(name.split("."))]


def _embeddings(model: Any) -> tuple[Site, ...]:
    """Return the token embedding and the output head as sites; none if other modules share their weight."""
    found: dict[str, Any] = {}
    for role, getter in zip(OUTER, ("get_input_embeddings", "get_output_embeddings"), strict=True):
        try:
            host = getattr(model, getter)()
        except (AttributeError, NotImplementedError):
            host = None
        if isinstance(host, nn.Embedding) if role == "embed" else isinstance(host, nn.Linear):
            found[role] = host
    paths = {module: path for path, module in base_modules(model)}
    table = getattr(found.get("embed"), "weight", None)
    users = {m for m in paths if table is not None and any(p is table for p in m._parameters.values())}
    if not users <= set(found.values()):
        return ()
    tied = "tied" if len(users) > 1 else ""
    sites = []
    for role, host in found.items():
        d_in, d_out = weights.dims(host) or (host.embedding_dim, host.num_embeddings)
        sites.append(Site(paths[host], role, -1, d_in, d_out, "out", paths[host], tied))
    return tuple(sites)


def _width(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for given in (config, text):
        if isinstance(hidden := getattr(given, "hidden_size", None), int):
            return hidden
    raise UnknownAnatomy(f"{type(model).__name__} has no config.hidden_size.\n{module_tree(model)}")


def _layer_lists(model: nn.Module) -> tuple[str, str, list[tuple[str, str]]]:
    """Return the paths of the lists of decoder layers and of encoder layers, and path and class of the other lists."""
    lists = {
        name: m
        for name, m in base_modules(model)
        if isinstance(m, nn.ModuleList) and len(m) and all(_is_layer(child) for child in m)
    }
    outer = [name for name in lists if not within(name.rpartition(".")[0], lists)]
    part: Any = model
    both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    halves = [part.get_decoder(), *([part.get_encoder()] if both else [])] if hasattr(part, "get_decoder") else [model]
    paths = []
    for half in halves:
        inside = {module for _, module in base_modules(model if half is None else half)}
        own = [name for name in outer if lists[name] in inside] or outer
        # Beside the layers there may be lists of other parts: deeper in the model, or with fewer parameters.
        size = {name: sum(p.numel() for p in lists[name].parameters()) for name in own}
        paths += [max(own, key=lambda name: (-name.count("."), size[name]))] if own else [""]
    if not paths[0]:
        raise UnknownAnatomy(f"{type(model).__name__} has no list of decoder layers.\n{module_tree(model)}")
    others = [name for name in outer if name not in paths]
    encoder = paths[1] if len(paths) > 1 and paths[1] != paths[0] else ""
    return paths[0], encoder, [(name, type(lists[name][0]).__name__) for name in others]


def _is_layer(module: nn.Module) -> bool:
    return weights.dims(module) is None and bool(linears(module))


def _add_sites(
    found: tuple[list[Site], list[Site], list[Site]], part: Sublayer, here: str, index: int, prefix: str, hidden: int
) -> None:
    """Add the sites of one sublayer to those of its model: projections, output and input of the whole."""
    projections, sublayers, entries = found
    kind = prefix + part.kind
    own = [_site(f"{here}.{p.path}", prefix + p.role, index, p.d_in, p.d_out, kind) for p in part.projections]
    projections += own
    if part.kind == "experts" and part.block:  # their sum, and what stands beside them, is the output of the block
        block = f"{here}.{part.block}"
        sublayers.append(Site(block, f"{prefix}mlp", index, hidden, hidden, "out", block, f"{prefix}mlp"))
        entries.append(Site(block, f"{prefix}mlp", index, hidden, hidden, "in", block, f"{prefix}mlp"))
    elif part.exit is not None and len(own) > 1:
        *readers, last = own
        first = readers[0]
        sublayers.append(Site(last.path, kind, index, first.d_in, last.d_out, "out", first.path, kind))
        entry = commonpath([s.path.replace(".", "/") for s in readers]).replace("/", ".")
        if len(entry) > len(here):
            entries.append(Site(entry, kind, index, first.d_in, first.d_in, "in", entry, kind))


def _site(path: str, role: str, layer: int, d_in: int, d_out: int, sublayer: str) -> Site:
    return Site(path, role, layer, d_in, d_out, "out", path, sublayer)
