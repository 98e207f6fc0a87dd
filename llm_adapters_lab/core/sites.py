"""A site: one place in a model where an adapter can sit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Side = Literal["out", "in", "parameters"]
ENCODER = "encoder."
"""What the roles of an encoder start with, in a model that also has a decoder."""
WHOLE = ("attn", "cross", "ssm", "conv", "mlp", "shared")
"""The roles of whole sublayers."""
OUTER = ("embed", "head")
"""The roles of what is outside of the layers: the token embedding and the output head, both (vocabulary, width)."""

ROLES_OF = dict.fromkeys(("q", "k", "v", "o", "qkv", "kv", "q_a", "q_b", "kv_a", "kv_b", "attn.gate"), "attn")
ROLES_OF |= {"in_proj": "ssm", "out_proj": "ssm", **dict.fromkeys(("gate", "up", "gate_up", "down"), "mlp")}
ROLES_OF |= {f"cross.{role}": "cross" for role in ("q", "k", "v", "o", "qkv", "kv")} | {"router": "router"}
ROLES_OF |= {f"{part}.{r}": part for part in ("shared", "experts") for r in ("gate", "up", "gate_up", "down")}
"""The roles of projections, and the kind of sublayer that they are in if nothing but the role is known."""


@dataclass(frozen=True)
class Site:
    """One place where an adapter can sit.

    Attributes:
        path: path of the host, the module at which the adapter sits.
        role: function of the host; "attn", "cross", "ssm", "conv", "mlp" and "shared" are whole sublayers, "module" is
            any module, "tokens" are single rows of the embedding or the head, the others are projections.
        layer: index of the decoder layer, from 0; -1 if irrelevant.
        d_in: width of the adapter's input x.
        d_out: width of what the adapter changes, y.
        side: what the adapter changes: the output of the host, its input, or its parameters.
        reader: path of the projection whose input is x; equals `path` unless the site is a sublayer.
        sublayer: role of the sublayer that the host is or belongs to; "" for a module; "tied" for an embedding and a
            head that share their weight.
        part: in an adapter of several parts, the number of the part and a slash.
    """

    path: str
    role: str
    layer: int
    d_in: int
    d_out: int
    side: Side = "out"
    reader: str = ""
    sublayer: str = ""
    part: str = ""

    @property
    def key(self) -> str:
        """Unique name of the site within a model, used in saved adapters and records."""
        whole = f":{self.role}" if self.role.removeprefix(ENCODER) in (*WHOLE, "tokens") else ""
        return self.part + self.path + whole + (":in" if self.side == "in" else "")

    @property
    def routed(self) -> bool:
        """Whether the host is a projection of a routed expert."""
        return self.sublayer.endswith("experts")

    @property
    def tied(self) -> bool:
        """Whether the host is an embedding or a head that shares its weight with the other."""
        return self.sublayer == "tied"


def ranges(layers: Iterable[int]) -> str:
    """Return layers as in a placement, such as ``0-3,5``."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def placement_counts(sites: Iterable[Site]) -> dict[str, dict[int, int]]:
    """Return the number of sites by role, then by layer."""
    counts: dict[str, dict[int, int]] = {}
    for site in sites:
        of_role = counts.setdefault(site.role, {})
        of_role[site.layer] = of_role.get(site.layer, 0) + 1
    return counts


def describe_counts(counts: Mapping[str, Mapping[Any, int]]) -> str:
    """Return `placement_counts` in words, such as ``q,k@0-5 (6 each) + v@0,2,4 (3)``; layer -1 is not named."""
    alike: dict[tuple[str, int], list[str]] = {}
    for role, by_layer in counts.items():
        layers = ranges(int(layer) for layer in by_layer if int(layer) >= 0)
        alike.setdefault((layers and f"@{layers}", sum(by_layer.values())), []).append(role)
    return " + ".join(f"{','.join(r)}{at} ({n}{' each' * (len(r) > 1)})" for (at, n), r in alike.items())
