"""The placement language, which selects the sites of a model.

A placement is a list of terms joined by "," or "+". A term is a role, optionally followed by `.in` for the input of the
sublayer or projection, by `?`, and by `@` and layers: `q,v`, `attn+mlp`, `mlp.in`, `down@0-7`, `q@0,4-7,-1` (negative
layers count from the end). Layers apply to all terms before them that are joined by ",", but not across a "+":
`q,v@0-7` selects both in eight layers, `q+v@0-7` selects q in all layers.

Roles of projections: in attention `q k v o`, fused `qkv kv`, latent `q_a q_b kv_a kv_b`, output gates `attn.gate`; in
cross-attention the same as `cross.q` and so on; in state-space, convolution and linear-attention mixers `in_proj
out_proj`; in feed-forward parts `gate up gate_up down`, of shared experts `shared.up` and so on, of routed ones
`experts.up` and so on; and `router`. Roles of whole sublayers: `attn`, `cross`, `ssm`, `conv`, `mixer` (all of these),
`shared`, `experts`, and `mlp` (dense, shared and routed feed-forward parts, without the router). In a model with
encoder and decoder, `encoder.` before a role selects the encoder. Outside of the layers are the token embedding `embed`
and the output head `head`; where they share one weight, both are named: `embed,head`.

Where projections are fused or split, a role selects what holds it: `q`, `k` and `v` select `qkv`, and in latent
attention `q_a q_b` and `kv_a kv_b`; `gate` and `up` select `gate_up`. A role that is missing in one of the layers asked
for is an error; with `?`, as in `v?`, it is selected where there is one. In models whose MLPs have no gate, `gate` is
ignored beside other terms.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from llm_adapters_lab.core.sites import ENCODER, OUTER, ROLES_OF, Site, ranges
from llm_adapters_lab.errors import BadSpec, EmptyPlacement, choices

if TYPE_CHECKING:
    from llm_adapters_lab.core.anatomy import Anatomy

Level = Literal["projection", "sublayer"]
Term = tuple[str, bool, bool, str | None]
"""Role, whether at the input, whether only where there is one, and layers."""
_MLP = ("gate", "up", "gate_up", "down")
_SUBLAYER = {
    "attn": ("attn",),
    "cross": ("cross",),
    "ssm": ("ssm",),
    "conv": ("conv",),
    "mixer": ("attn", "cross", "ssm", "conv"),
    "mlp": ("mlp", "shared", "experts"),
    "shared": ("shared",),
    "experts": ("experts",),
}
"""Roles that mean all projections of a sublayer, or the sublayer itself."""
ROLES = (*ROLES_OF, *_SUBLAYER, *OUTER)
"""The roles that a placement can name; `encoder.` may stand before each."""
_FUSED = {
    "q": ("q", "q_a", "q_b", "qkv"),
    "kv": ("kv", "kv_a", "kv_b"),
    "k": ("k", "kv", "kv_a", "kv_b", "qkv"),
    "v": ("v", "kv", "kv_a", "kv_b", "qkv"),
    "gate": ("gate", "gate_up"),
    "up": ("up", "gate_up"),
}
_TERM = re.compile(r"([a-z_]+(?:\.(?!in\b)[a-z_]+)*)(\.in)?(\?)?(?:@([-0-9,]+))?")
_EXPERTS = (
    "Projections of routed experts are at `experts` and, with those of all other feed-forward parts, at `mlp`; what "
    "sits beside the whole block is at `mlp`."
)
_RANGE = re.compile(r"(-?\d{1,6})(?:-(\d{1,6}))?")


def parse(at: str) -> list[Term]:
    """Split a placement into terms; needs no model.

    Raises:
        BadSpec: a term is invalid; the message names it, and the known roles.
    """
    terms: list[Term] = []
    for group in at.replace(" ", "").split("+"):
        shared: str | None = None
        members: list[Term] = []
        # A comma before a digit or a sign continues a list of layers.
        for text in reversed(re.split(r",(?![-\d])", group)):
            role, inside, optional, layers = _term(text, at)
            shared = layers or shared
            members.append((role, inside, optional, None if role in OUTER else shared))
        terms += reversed(members)
    return terms


def _term(term: str, at: str) -> Term:
    match = _TERM.fullmatch(term)
    role = match[1].removeprefix("decoder.") if match else ""
    name = role.removeprefix(ENCODER)
    if not match or (name not in ROLES and name.rpartition(".")[0] in ROLES):  # such as q.out
        raise BadSpec(f"The placement {at!r} has a term {term!r} that is not of the form role[.in][?][@layers].")
    _, inside, optional, layers = match.groups()
    if name not in ROLES:
        raise BadSpec(f"The placement {at!r} names {role!r}, which is not a role. {choices(role, ROLES)}")
    if role in OUTER and (inside or layers):
        raise BadSpec(f"The placement {at!r} has {term!r}, but {role} is in no layer and has no `.in`. Write {role}.")
    if layers is not None and not all(map(_is_range, layers.split(","))):
        raise BadSpec(f"The placement {at!r} has layers {layers!r}; write them as 0-7 or 0,4,-1.")
    return role, bool(inside), bool(optional), layers


def _is_range(text: str) -> bool:
    if not (found := _RANGE.fullmatch(text)):
        return False
    return not found[2] or int(found[1]) <= int(found[2])


def sites(anatomy: Anatomy, at: str, level: Level = "projection") -> tuple[Site, ...]:
    """Return the sites of a model that a placement selects, without duplicates, in order of layers.

    Args:
        anatomy: of the model.
        at: the placement.
        level: whether `attn` and `mlp` mean each "projection" in them, or the whole "sublayer".

    Raises:
        BadSpec: the placement is invalid, or names a layer that the model does not have.
        EmptyPlacement: nothing matches, or a role is missing in layers asked for; the message lists the model's roles.
    """
    found: dict[str, Site] = {}
    faults: dict[str, str] = {}
    partly = False
    for role, inside, optional, layers in parse(at):
        if (whole := _whole(role)) and (inside or level == "sublayer"):
            pool = [s for s in (anatomy.entries if inside else anatomy.sublayers) if s.role in whole]
            # A shared expert within a block with experts is part of that block.
            pool = [s for s in pool if not any(s.path.startswith(f"{block.path}.") for block in pool)]
        elif whole:
            pool = [s for s in anatomy.projections if s.sublayer in whole]
        else:
            wanted = _alternatives(role)
            pool = [s for s in (*anatomy.embeddings, *anatomy.projections) if s.role in wanted]
            if inside:
                pool = [replace(s, d_out=s.d_in, side="in") for s in pool]
        chosen = {-1} if role in OUTER else _layers(layers, anatomy.depth(role), at)
        present = {s.layer for s in pool}
        found |= {s.key: s for s in pool if s.layer in chosen}
        gateless = role == "gate" and not present and chosen <= {s.layer for s in anatomy.projections if s.role == "up"}
        if (missing := chosen - present) and not (optional or gateless):
            having = f"only in layers {ranges(present)}" if present else "nowhere"
            term = f"{role}{'.in' * inside}"
            where = "" if role in OUTER else f" in layers {ranges(missing)}"
            faults[term] = f"{term}{where}, which it has {having}"
            partly |= bool(present)
    if faults or not found:
        partly |= bool(found)
        wants = f"asks for {'; '.join(faults.values())}" if faults and partly else "matches no site of this model"
        has = f"The model has {len(anatomy.layers)} layers with the roles: {', '.join(anatomy.roles)}."
        routed = any(s.routed for s in anatomy.projections) and any(
            t in (*_MLP, "experts", "experts.in") for t in faults
        )
        advice = [
            _EXPERTS if routed else "",
            f"Name other layers, or end a term in `?` to select it where there is one, as in `{min(faults)}?`."
            if faults and partly
            else "",
        ]
        text = (f"The placement {at!r} {wants}. {has}", anatomy.remark, *advice)
        raise EmptyPlacement(" ".join(filter(None, text)))
    return tuple(sorted(found.values(), key=lambda s: s.layer))


def _whole(role: str) -> tuple[str, ...]:
    """Return the sublayers that a role stands for, none if it is that of a projection."""
    prefix, name = (ENCODER, role.removeprefix(ENCODER)) if role.startswith(ENCODER) else ("", role)
    return tuple(prefix + part for part in _SUBLAYER.get(name, ()))


def _alternatives(role: str) -> tuple[str, ...]:
    """Return the roles of the projections that hold what a role names: itself, fused or split."""
    prefix, _, name = role.rpartition(".")
    dot = f"{prefix}." if prefix and role != "attn.gate" else ""
    return tuple(dot + other for other in _FUSED.get(name, (name,))) if dot else _FUSED.get(role, (role,))


def _layers(text: str | None, count: int, at: str) -> set[int]:
    if text is None:
        return set(range(count))
    chosen: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        assert match  # checked by `parse`
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if not -count <= first < count or not -count <= last < count or last < first:
            raise BadSpec(f"The placement {at!r} names layers {part}, but the model has layers 0 to {count - 1}.")
        chosen |= {layer % count for layer in range(first, last + 1)}
    return chosen


def describe(anatomy: Anatomy, paths: Collection[str], side: str = "out") -> str:
    """Return the placement that selects exactly the projections at these paths, at one side; the inverse of `sites`.

    Raises:
        EmptyPlacement: a path is not one of the model's projections.
    """
    every = (*anatomy.embeddings, *anatomy.projections)
    if unknown := set(paths) - {s.path for s in every}:
        raise EmptyPlacement(f"No projection of this model's layers: {', '.join(sorted(unknown))}.")
    terms: dict[str, list[str]] = {}
    for role in dict.fromkeys(s.role for s in every):
        layers = dict.fromkeys(str(s.layer) for s in every if s.role == role and s.path in paths)
        if layers:
            everywhere = role in OUTER or len(layers) == anatomy.depth(role)
            terms.setdefault("" if everywhere else "@" + ",".join(layers), []).append(role)
    ending = ".in" if side == "in" else ""
    return "+".join(",".join(role + ending for role in roles) + layers for layers, roles in terms.items())
