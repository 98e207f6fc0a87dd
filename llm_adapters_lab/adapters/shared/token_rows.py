"""Train single rows of a base's token embedding, and of its output head: those of new tokens.

The rows are fp32 copies that take the place of the base's own: in the output of the embedding wherever one of the
tokens is read, and in the logits of these tokens at the head. Where both share one weight, they share the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.adapter import Adapter, Place
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject


class TokenRows(Adapter):
    """Rows (n, d) of an embedding, of a head, or of both if they share their weight."""

    family = "Tokens"
    for_tokens = True
    ids: torch.Tensor
    start: torch.Tensor

    def __init__(self, ids: Sequence[int], site: Site, host: nn.Module) -> None:
        """Copy the rows of these tokens."""
        super().__init__(None, site, host)
        start = host.get_parameter("weight")[list(ids)].detach().float()
        self.rows = nn.Parameter(start.clone())
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("ids", torch.tensor(ids, dtype=torch.long), persistent=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y with what the change of the rows adds: to the logits of the tokens, or where x, ids, has them."""
        change = self.rows - self.start
        if x.is_floating_point():
            return y.index_add(-1, self.ids, linear(x, change))
        found = x.unsqueeze(-1) == self.ids
        return y + change[found.int().argmax(-1)] * found.any(-1, keepdim=True)

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weight with the rows in it."""
        return {"weight": own["weight"].index_copy(0, self.ids, self.rows.to(own["weight"].dtype))}


def token_sites(anatomy: Anatomy) -> tuple[Site, ...]:
    """Return the sites of token rows: the embedding, and the head.

    Raises:
        CannotInject: there is no embedding, or modules other than the head share its weight.
    """
    if not any(site.role == "embed" for site in anatomy.embeddings):
        raise CannotInject("The base has no token embedding of its own whose rows could be trained.")
    return tuple(replace(site, role="tokens") for site in anatomy.embeddings)


def token_rows(places: Mapping[str, Place], ids: Sequence[int]) -> dict[str, Adapter]:
    """Return the rows of some tokens by site key; hosts that share their weight share the rows.

    Raises:
        CannotInject: the embedding has fewer rows, or is packed or offloaded.
    """
    found: dict[str, Any] = {}
    for key, place in places.items():
        if weights.is_offloaded(place.host) or weights.is_quantized(place.host):
            raise CannotInject(
                f"{key}: its rows are packed or offloaded, and cannot be trained. Load the base as it is."
            )
        if not 0 <= min(ids) <= max(ids) < place.site.d_out:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise CannotInject(
                f"{place.site.path} has {place.site.d_out} rows, and token {wrong} is to be trained. Add the tokens "
                "to the base first: `tokens:` in a spec, `add_tokens`, or transformers' resize_token_embeddings."
            )
        with torch.device(weights.device(place.host)):
            found[key] = TokenRows(ids, place.site, place.host)
        if place.site.tied:
            found[key].rows = next(iter(found.values())).rows
    return found
