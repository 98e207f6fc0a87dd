"""The placement language, which selects the sites of a model.

A placement is a list of terms joined by "," or "+". A term is a role (`q k v qkv kv o gate up gate_up down attn mlp`),
optionally followed by `.in` for the input of the sublayer or projection, by `?`, and by `@` and layers: `q,v`,
`attn+mlp`, `mlp.in`, `down@0-7`, `q@0,4-7,-1` (negative layers count from the end). Layers apply to all terms before
them that are joined by ",", but not across a "+": `q,v@0-7` selects both in eight layers, `q+v@0-7` selects q in all
layers. In models with fused projections, `q`, `k` and `v` select `qkv`, and `gate` and `up` select `gate_up`.

A role that is missing in one of the layers asked for is an error; with `?`, as in `v?`, it is selected where there is
one. In models whose MLPs have no gate, `gate` is ignored beside other terms.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

from llm_adapters_lab.core.sites import Role, Site, ranges
from llm_adapters_lab.errors import BadSpec, EmptyPlacement, choices

if TYPE_CHECKING:
    from llm_adapters_lab.core.anatomy import Anatomy

Level = Literal["projection", "sublayer"]
Term = tuple[str, bool, bool, str | None]
"""Role, whether at the input, whether only where there is one, and layers."""
ROLES = get_args(Role)[:-1]
"""The roles that a placement can name: all but "module"."""
_FUSED = {
    "q": ("q", "qkv"),
    "k": ("k", "kv", "qkv"),
    "v": ("v", "kv", "qkv"),
    "gate": ("gate", "gate_up"),
    "up": ("up", "gate_up"),
}
_SUBLAYER = {"attn": ("q", "k", "v", "kv", "qkv", "o"), "mlp": ("gate", "up", "gate_up", "down")}
_TERM = re.compile(r"([a-z_]+)(\.in)?(\?)?(?:@([-0-9,]+))?")
_ADVICE = "Name other layers, or end a term in `?` to select it where there is one, as in `v?`."
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
            members.append((role, inside, optional, shared))
        terms += reversed(members)
    return terms


def _term(term: str, at: str) -> Term:
    match = _TERM.fullmatch(term)
    if not match:
        raise BadSpec(f"The placement {at!r} has a term {term!r} that is not of the form role[.in][?][@layers].")
    role, inside, optional, layers = match.groups()
    if role not in ROLES:
        raise BadSpec(f"The placement {at!r} names {role!r}, which is not a role. {choices(role, ROLES)}")
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
    faults: list[str] = []
    for role, inside, optional, layers in parse(at):
        if inside and role in _SUBLAYER:
            pool = [s for s in anatomy.entries if s.role == role]
        elif role in _SUBLAYER and level == "sublayer":
            pool = [s for s in anatomy.sublayers if s.role == role]
        else:
            wanted = _SUBLAYER.get(role) or _FUSED.get(role, (role,))
            pool = [s for s in anatomy.projections if s.role in wanted]
            if inside:
                pool = [replace(s, d_out=s.d_in, side="in") for s in pool]
        chosen, present = _layers(layers, len(anatomy.layers), at), {s.layer for s in pool}
        found |= {s.key: s for s in pool if s.layer in chosen}
        gateless = role == "gate" and not present and chosen <= {s.layer for s in anatomy.projections if s.role == "up"}
        if (missing := chosen - present) and not (optional or gateless):
            having = f"only in layers {ranges(present)}" if present else "nowhere"
            faults.append(f"{role}{'.in' * inside} in layers {ranges(missing)}, which it has {having}")
    if faults or not found:
        wants = f"asks for {'; '.join(faults)}" if faults and found else "matches no site of this model"
        raise EmptyPlacement(
            f"The placement {at!r} {wants}. The model has {len(anatomy.layers)} layers "
            f"with the roles: {', '.join(anatomy.roles)}. {anatomy.remark} {_ADVICE if faults and found else ''}"
        )
    return tuple(sorted(found.values(), key=lambda s: s.layer))


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
    if unknown := set(paths) - {s.path for s in anatomy.projections}:
        raise EmptyPlacement(f"No projection of this model's layers: {', '.join(sorted(unknown))}.")
    terms: dict[str, list[str]] = {}
    for role in dict.fromkeys(s.role for s in anatomy.projections):
        layers = dict.fromkeys(str(s.layer) for s in anatomy.projections if s.role == role and s.path in paths)
        if layers:
            everywhere = len(layers) == len(anatomy.layers)
            terms.setdefault("" if everywhere else "@" + ",".join(layers), []).append(role)
    ending = ".in" if side == "in" else ""
    return "+".join(",".join(role + ending for role in roles) + layers for layers, roles in terms.items())
