"""P-tuning: virtual tokens prepended to the input, with embeddings computed by a small network.

    y = f([g(Q) ; E(x)])[t:]

with Q: (t, d), E the model's own embedding, and the prompt encoder g: an MLP d -> h -> h -> d with ReLU, or a
bidirectional LSTM of width h followed by an MLP 2h -> 2h -> d, or the identity. After training, only g(Q) is needed
(peft saves nothing else). As the virtual tokens are attended to, training never starts at the base.

Parameters: t d, and for the MLP h (2 d + h + 2) + d; for the LSTM 8 h (d + h + 2) + 2 h (2 h + 1) + d (2 h + 1).

Source: Liu et al. 2021, arXiv:2103.10385, equation 2 (their h_i / our rows of g(Q)); the MLP is from the original code
of LLM-Adapters, arXiv:2304.01933.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from llm_adapters_lab.adapters.shared.virtual_tokens import VirtualEmbeddings, embedding_width
from llm_adapters_lab.core.adapter import World
from llm_adapters_lab.core.adapter_config import ModelAdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class PTuningConfig(ModelAdapterConfig):
    """Config of P-tuning."""

    type: Literal["p-tuning"] = Field(default="p-tuning", description="name of the adapter")
    virtual_tokens: int = Field(default=20, ge=1, le=4096, description="number t of virtual tokens")
    encoder: Literal["mlp", "lstm", "none"] = Field(default="mlp", description="prompt encoder g")
    hidden: int = Field(default=128, ge=1, le=65536, description="width h of the prompt encoder")


@register_adapter("p-tuning", config=PTuningConfig, at="", source="arXiv:2103.10385", colour="#117733")
class PTuning(VirtualEmbeddings):
    """Virtual tokens and their encoder."""

    peft_type = "P_TUNING"
    example = {"virtual_tokens": 5, "hidden": 16}

    def __init__(self, config: PTuningConfig, world: World) -> None:
        """Create Q (t, d) and the encoder."""
        super().__init__(config, world)
        self.virtual_tokens, h = config.virtual_tokens, config.hidden
        width = embedding_width(world.model)
        self.tokens = nn.Parameter(torch.randn(config.virtual_tokens, width))
        self.lstm = nn.LSTM(width, h, batch_first=True, bidirectional=True) if config.encoder == "lstm" else None
        self.encoder: nn.Module = nn.Identity()
        if config.encoder == "mlp":
            layers = nn.Linear(width, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, width)
            self.encoder = nn.Sequential(*layers)
        elif config.encoder == "lstm":
            self.encoder = nn.Sequential(nn.Linear(2 * h, 2 * h), nn.ReLU(), nn.Linear(2 * h, width))

    @classmethod
    def parameter_count(cls, config: PTuningConfig, sites: Sequence[Site], world: World) -> int:
        """Return t d and the size of the encoder."""
        d, h = embedding_width(world.model), config.hidden
        lstm = 8 * h * (d + h + 2) + 2 * h * (2 * h + 1) + d * (2 * h + 1)
        return config.virtual_tokens * d + {"mlp": h * (2 * d + h + 2) + d, "lstm": lstm, "none": 0}[config.encoder]

    def embeddings(self) -> torch.Tensor:
        """Return g(Q)."""
        tokens = self.tokens if self.lstm is None else self.lstm(self.tokens[None])[0][0]
        encoded: torch.Tensor = self.encoder(tokens)
        return encoded

    def to_peft(self, config: PTuningConfig) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's config and g(Q); folders of peft have no encoder."""
        t, width = self.tokens.shape
        fields = {"num_virtual_tokens": t, "token_dim": width, "encoder_hidden_size": config.hidden, **self.sizes}
        return fields, {"prompt_embeddings": self.embeddings()}

    @classmethod
    def from_peft(cls, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Convert a peft config; the folder has g(Q) and no encoder."""
        for name in ("hidden_size", "num_layers", "dropout", "reparameterization_type"):
            fields.pop(f"encoder_{name}", None)
        return {"virtual_tokens": fields.pop("num_virtual_tokens"), "encoder": "none"}

    def load_peft(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load g(Q)."""
        self.load_state_dict({"tokens": tensors["prompt_embeddings"]})
