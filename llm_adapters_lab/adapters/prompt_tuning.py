"""Prompt tuning: learned embeddings prepended to the input.

    y = f([P ; E(x)])[t:]

with P: (t, d) the embeddings of t virtual tokens and E the model's own embedding. The outputs of the virtual tokens are
dropped, so the output has the length of x. As the virtual tokens are attended to, training never starts at the base.

Parameters: t d.

Source: Lester et al. 2021, arXiv:2104.08691, section 2 (their P_e / our P), section 3.2 for the initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from llm_adapters_lab.adapters.shared.virtual_tokens import VirtualEmbeddings, embedding_width
from llm_adapters_lab.core.adapter import World
from llm_adapters_lab.core.adapter_config import ModelAdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import BadSpec


class PromptTuningConfig(ModelAdapterConfig):
    """Config of prompt tuning."""

    type: Literal["prompt-tuning"] = Field(default="prompt-tuning", description="name of the adapter")
    virtual_tokens: int = Field(default=20, ge=1, le=4096, description="number t of virtual tokens")
    init: Literal["vocabulary", "normal", "text"] = Field(
        default="vocabulary", description="initialisation: embeddings of random tokens, N(0, 0.02²), or init_text"
    )
    init_text: str = Field(default="", description="text for init: text, repeated or truncated to t tokens")

    @model_validator(mode="after")
    def _has_text(self) -> PromptTuningConfig:
        if (self.init == "text") != bool(self.init_text):
            raise BadSpec("init: text needs an init_text, and no other init has one.")
        return self


@register_adapter("prompt-tuning", config=PromptTuningConfig, at="", source="arXiv:2104.08691", colour="#40B858")
class PromptTuning(VirtualEmbeddings):
    """Embeddings of virtual tokens."""

    peft_type = "PROMPT_TUNING"
    example = {"virtual_tokens": 5}

    def __init__(self, config: PromptTuningConfig, world: World) -> None:
        """Create P (t, d).

        Raises:
            BadSpec: init_text is empty, or there is no tokenizer.
        """
        super().__init__(config, world)
        self.virtual_tokens, tokenizer = (t := config.virtual_tokens), world.tokenizer
        embed: Any = world.model.get_input_embeddings()  # type: ignore[operator]
        vocabulary, width = embed.weight.shape
        if config.init == "normal":
            first = 0.02 * torch.randn(t, width)
        else:
            ids = torch.randint(vocabulary, (t,))
            if config.init == "text":
                if tokenizer is None:
                    raise BadSpec("init: text needs a tokenizer: `inject(model, config, tokenizer=tokenizer)`.")
                if not (text := tokenizer(config.init_text, add_special_tokens=False)["input_ids"]):
                    raise BadSpec(f"init_text {config.init_text!r} holds no token. Give a few words.")
                ids = torch.tensor((text * t)[:t])
            first = embed(ids).detach().float()
        self.prompt = nn.Parameter(first.clone())

    @classmethod
    def parameter_count(cls, config: PromptTuningConfig, sites: Sequence[Site], world: World) -> int:
        """Return t d."""
        return config.virtual_tokens * embedding_width(world.model)

    def embeddings(self) -> torch.Tensor:
        """Return P."""
        return self.prompt

    def to_peft(self, config: PromptTuningConfig) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's config and P."""
        t, width = self.prompt.shape
        return {"num_virtual_tokens": t, "token_dim": width, **self.sizes}, {"prompt_embeddings": self.prompt}

    @classmethod
    def from_peft(cls, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Convert a peft config; its initialisation no longer matters."""
        for name in ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"):
            fields.pop(name, None)
        return {"virtual_tokens": fields.pop("num_virtual_tokens"), "init": "normal"}

    def load_peft(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load P."""
        self.load_state_dict({"prompt": tensors["prompt_embeddings"]})
