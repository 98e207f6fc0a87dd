"""A hypernetwork: it makes the matrices of an adapter from embeddings of group, layer and place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm, pad, relu

from llm_adapters_lab.adapters.shared.groups import two_layers
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject

PLAIN = {"down": "down.weight", "up": "up.weight", "down_bias": "down.bias", "up_bias": "up.bias"}
"""Names of what is generated in a plain bottleneck."""


def tables(groups: Sequence[str], pairs: bool) -> dict[str, tuple[str, ...]]:
    """Return the embedding tables of groups, with the names of their rows.

    There is one, `group`; for pairs such as "de-en" one of what is before the dash, and one of what is behind it.
    """
    if not pairs:
        return {"group": tuple(groups) or ("",)}
    ends = [name.partition("-")[::2] for name in groups] or [("", "")]
    if groups and not all(source and target for source, target in ends):
        raise CannotInject(f"pairs = true needs groups such as de-en, not {', '.join(groups):.80}.")
    return {name: tuple(dict.fromkeys(end[i] for end in ends)) for i, name in enumerate(("source", "target"))}


class Hypernetwork(nn.Module):
    """I = LN(W_2 relu(W_1 [e_group; e_layer; e_place])), and a head for each kind of matrix: H I / √c.

    Attributes:
        rows: names of the rows of each table of groups.
        tables: embeddings, (rows, e) each: of groups, and of layers and places if there are several sites.
    """

    def __init__(self, config: Any, sites: Sequence[Site]) -> None:
        """Create the network of some sites."""
        super().__init__()
        self.config, self.rows, self.fixed = config, tables(config.groups, config.pairs), _fixed(config, sites)
        counts = {name: len(rows) for name, rows in (self.rows | self.fixed).items()}
        made = {name: nn.Parameter(torch.randn(count, config.embedding)) for name, count in counts.items()}
        self.tables = nn.ParameterDict(made)
        self.first = nn.Linear(len(counts) * config.embedding, config.hidden)
        self.second = nn.Linear(config.hidden, config.code)
        self.heads = nn.ModuleDict()
        for d_in, d_out in _shapes(config, sites):
            for kind, shape in _kinds(config, d_in, d_out).items():
                head = nn.Linear(config.code, math.prod(shape), bias=False)
                # As the code has entries of variance 1, W_down then starts as that of a plain bottleneck.
                bound = 1 / math.sqrt(d_in) if kind == "down" else 0.0
                nn.init.uniform_(head.weight, -bound, bound)
                self.heads[f"{kind} {d_in} {d_out}"] = head

    @staticmethod
    def count(config: Any, sites: Sequence[Site]) -> int:
        """Return the number of parameters of the network of some sites."""
        groups, fixed = tables(config.groups, config.pairs), _fixed(config, sites)
        e, h, c = int(config.embedding), int(config.hidden), int(config.code)
        own = e * sum(map(len, groups.values()))
        if config.train == "groups":
            return own
        network = (e * len(groups | fixed) + 1) * h + (h + 1) * c
        made = [math.prod(kind) for shape in _shapes(config, sites) for kind in _kinds(config, *shape).values()]
        return own + e * sum(map(len, fixed.values())) + network + c * sum(made)

    def code(self, groups: Sequence[int], site: Site) -> torch.Tensor:
        """Return I, (G, c), for the numbers of groups; for none, that of the mean of all embeddings, with G = 1."""
        names, found = [self.config.groups[number] for number in groups], []
        for i, (name, rows) in enumerate(self.rows.items()):
            ends = [group.partition("-")[::2][i] for group in names] if self.config.pairs else names
            table = self.tables[name]
            found.append(table[[rows.index(end) for end in ends]] if ends else table.mean(0, keepdim=True))
        for name, (own,) in _fixed(self.config, [site]).items():
            found.append(self.tables[name][self.fixed[name].index(own)].expand(len(found[0]), -1))
        code: torch.Tensor = self.second(relu(self.first(torch.cat(found, -1))))
        return layer_norm(code, code.shape[-1:])

    def forward(self, groups: Sequence[int], site: Site) -> dict[str, torch.Tensor]:
        """Return down (G, b, d_in), up (G, d_out, b) and perhaps their biases, down_bias (G, b), up_bias (G, d_out)."""
        code, ((d_in, d_out),) = self.code(groups, site), _shapes(self.config, [site])
        code = code / math.sqrt(self.config.code) if self.config.rescale else code
        kinds = _kinds(self.config, d_in, d_out)
        return {kind: self.heads[f"{kind} {d_in} {d_out}"](code).view(-1, *shape) for kind, shape in kinds.items()}


def branch(
    x: torch.Tensor,
    made: dict[str, torch.Tensor],
    where: torch.Tensor | None,
    f: nn.Module,
) -> torch.Tensor:
    """Return f(x W_down) W_up, (..., d_out), with the matrices of each token's group, see `two_layers`."""
    made = {kind: value.to(x.device) for kind, value in made.items()}
    if "up_bias" not in made:
        return two_layers(x, made["down"], made["up"], where, f)

    def between(hidden: torch.Tensor) -> torch.Tensor:  # with a unit that is always 1, whose column is the second bias
        opened: torch.Tensor = f(hidden + made["down_bias"])
        return pad(opened, (0, 1), value=1.0)

    return two_layers(x, made["down"], torch.cat([made["up"], made["up_bias"][..., None]], -1), where, between)


def _fixed(config: Any, sites: Sequence[Site]) -> dict[str, tuple[str, ...]]:
    """Return the tables of layers and places, with the names of their rows; a network of one site has none."""
    if config.share == "none":
        return {}
    layers = dict.fromkeys(str(site.layer) for site in sites)
    return {"layer": tuple(layers), "place": tuple(dict.fromkeys(f"{site.role}:{site.side}" for site in sites))}


def _shapes(config: Any, sites: Sequence[Site]) -> list[tuple[int, int]]:
    """Return the different (d_in, d_out) of the bottlenecks at some sites."""
    return list(dict.fromkeys((site.d_out if config.reads == "output" else site.d_in, site.d_out) for site in sites))


def _kinds(config: Any, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
    b = config.bottleneck
    found: dict[str, tuple[int, ...]] = {"down": (b, d_in), "up": (d_out, b)}
    return found | ({"down_bias": (b,), "up_bias": (d_out,)} if config.bias else {})
