"""Composed: saved adapters, and new ones, that act together by a rule written as text.

    lang > task                 one after the other: y' = task(x, lang(x, y))
    a | b,  0.7 a + 0.3 b       average, or weighted sum, of what they change: y' = y + Σ w_i (a_i(x, y) - y)
    [german: a, french: b]      each row through the member of its group
    lang > (a | b)              rules nest

Names are runs or folders of saved adapters, which stay as they are, or stand for the entries of `of`, in order of their
first occurrence. New members are trained within the rule, as a task adapter on a frozen language adapter; without any,
nothing is trained, and the run only scores.

Parameters: those of new members; with `freeze: false`, of all.

Source: Pfeiffer et al. 2020, arXiv:2007.07779, section 3 (stack, and BatchSplit, here by group); new members on frozen
ones: Pfeiffer et al. 2020, arXiv:2005.00052.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import nn

from llm_adapters_lab.adapters.shared.members import Members, MembersConfig
from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.rule_text import parse_rule
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import BadSpec


class ComposedConfig(MembersConfig):
    """Config of a composed adapter."""

    has_mean: ClassVar[bool] = False
    type: Literal["composed"] = Field(default="composed", description="name of the adapter")
    rule: str = Field(description="how members act together: lang > (a | b), 0.7 a + 0.3 b or [german: a, french: b]")
    of: tuple[str | SerializeAsAny[AdapterConfig], ...] = Field(
        default=(), description="a saved or new member for each name; default: the names are those of saved adapters"
    )

    @model_validator(mode="after")
    def _named(self) -> ComposedConfig:
        from llm_adapters_lab.core.rule_text import parse_rule

        names = list(dict.fromkeys(parse_rule(self.rule).names()))
        if not self.of:
            object.__setattr__(self, "of", tuple(names))
        if len(self.of) != len(names):
            raise BadSpec(f"The rule names {', '.join(names)}, but `of` has {len(self.of)}. Give one for each name.")
        return self

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that the rule routes by."""
        from llm_adapters_lab.core.rule_text import parse_rule

        return tuple(group for rule in parse_rule(self.rule).rules() for group in getattr(rule, "groups", ()))

    @property
    def learns(self) -> bool:
        """Whether a member is trained."""
        return any(not self.keeps(member) for member in self.of)


@register_adapter("composed", config=ComposedConfig, at="", source="arXiv:2007.07779", colour="#5C7AB8")
class Composed(Members):
    """Members that act together by a rule at one site."""

    family = "Several together"
    needs_context, sliceable, anywhere = True, False, True
    example = {
        "rule": "0.5 (first > second) + 0.5 third",
        "freeze": False,
        "of": [{"type": "lora", "rank": 2}, {"type": "krona", "factor": 8, "at": "q,v"}, {"type": "lora"}],
    }

    def __init__(self, config: ComposedConfig, site: Site, base: nn.Module, members: Sequence[Adapter]) -> None:
        """Parse the rule."""
        super().__init__(config, site, base, members)
        self.rule, self.groups = parse_rule(config.rule), config.groups
        self.named = dict(zip(dict.fromkeys(self.rule.names()), self.members, strict=True))

    @staticmethod
    def per_site(config: ComposedConfig, site: Site) -> int:
        """Return 0: only members have parameters."""
        return 0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y after the rule; a member that is not at this site leaves it unchanged."""
        return self.rule.fold(lambda name, before: self.named[name](x, before), y, self.context)
