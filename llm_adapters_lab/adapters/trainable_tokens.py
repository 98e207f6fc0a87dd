"""Trainable tokens: trains single rows of the token embedding and of the output head, and nothing else.

    e_t = r_t   instead of   e_t = W_t,        logit_t = r'_t h + b_t

for the tokens t that were added to the base (`tokens` of a spec) and those named by id, else for the end tokens, with
r: (n, d); r' = r where embedding and head share one weight. Training starts at the base. Merging replaces its rows.

Parameters: n d, twice that if the head has a weight of its own.

Source: `TrainableTokens` of peft, which trains the rows of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import nn

from llm_adapters_lab.adapters.shared import peft_rows
from llm_adapters_lab.adapters.shared.token_rows import TokenRows, token_rows, token_sites
from llm_adapters_lab.core.adapter import Adapter, Place, World
from llm_adapters_lab.core.adapter_config import ModelAdapterConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject


class TrainableTokensConfig(ModelAdapterConfig):
    """Config of trainable tokens."""

    type: Literal["trainable-tokens"] = Field(default="trainable-tokens", description="name of the adapter")
    ids: tuple[int, ...] = Field(
        default=(),
        description="ids of tokens to train besides those added to the base; if there are none, the end tokens",
    )


@register_adapter("trainable-tokens", config=TrainableTokensConfig, at="", source="", colour="#886611")
class TrainableTokens(TokenRows):
    """Rows of the embedding or of the head."""

    peft_type = peft_rows.ALONE
    export_rows = staticmethod(peft_rows.export_rows)
    read_rows = staticmethod(peft_rows.read_rows)
    texts_of = staticmethod(peft_rows.texts_of)
    load_rows = staticmethod(peft_rows.load_rows)
    example = {"ids": [12, 16, 60]}

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return embedding and head."""
        return token_sites(anatomy)

    @classmethod
    def build(
        cls, config: TrainableTokensConfig | None, places: Mapping[str, Place], world: World
    ) -> dict[str, Adapter]:
        """Return the rows at each site."""
        return token_rows(places, cls.tokens(config, world))

    @staticmethod
    def tokens(config: TrainableTokensConfig | None, world: World) -> list[int]:
        """Return the ids of all tokens that are trained."""
        ends: Any = getattr(getattr(world.model, "config", None), "eos_token_id", None)
        ids = {*(config.ids if config else ()), *world.tokens}
        if ids := ids or ({*ends} if isinstance(ends, list) else {ends} - {None}):
            return sorted(ids)
        raise CannotInject("'trainable-tokens' has no tokens to train. Add some by `tokens:`, or name ids of others.")

    @classmethod
    def parameter_count(cls, config: Any, sites: Sequence[Site], world: World) -> int:
        """Return n d for each weight."""
        widths = {site.tied or site.key: site.d_in for site in sites}.values()
        return len(cls.tokens(config, world)) * sum(widths)

    @classmethod
    def from_peft(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Convert a peft config."""
        fields.pop("init_weights", None)
        return {"ids": fields.pop("token_indices")}
