"""Union: several adapters in one, each a part with its own method, placement and modifier.

    y' = a_n(x, … a_2(x, a_1(x, y)))

where parts sit at the same output, in the order of `of`; elsewhere each part acts on its own. They are trained, saved,
resumed and merged as one. At most one part can act on the whole model, and at most one be split.

Parameters: the sum over the parts.

Source: Mao et al. 2022, arXiv:2110.07577, section 3 (without their gates); Houlsby et al. 2019, arXiv:1902.00751.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, SerializationInfo, SerializeAsAny, field_serializer, field_validator, model_validator
from torch import nn

from llm_adapters_lab.core.adapter import Adapter, World
from llm_adapters_lab.core.adapter_config import AdapterConfig, ModelAdapterConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.registry import adapter_config, get_adapter, register_adapter
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import BadSpec, CannotInject


class UnionConfig(ModelAdapterConfig):
    """Config of a union."""

    type: Literal["union"] = Field(default="union", description="name of the adapter")
    of: tuple[SerializeAsAny[AdapterConfig], ...] = Field(
        min_length=1, description="the parts, each with the fields of an adapter: [{type: series}, {type: norm-tuning}]"
    )

    @property
    def parts(self) -> tuple[AdapterConfig, ...]:
        """The configs of the parts."""
        return self.of

    def with_groups(self, names: Sequence[str]) -> UnionConfig:
        """Return the config whose parts have these groups."""
        return self.model_copy(update={"of": tuple(part.with_groups(names) for part in self.of)})

    @field_validator("of", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise BadSpec("adapter.of must be a list of adapters, such as [{type: series}, {type: norm-tuning}].")
        found = []
        for i, fields in enumerate(value):
            part = fields if isinstance(fields, AdapterConfig) else adapter_config(fields, f"adapter.of[{i}].")
            if part.type == cls.model_fields["type"].default:
                raise BadSpec(f"adapter.of[{i}] is a union itself. List its parts in this one instead.")
            found.append(part.model_copy(update={"at": part.at or get_adapter(part.type).at}))
        return tuple(found)

    @field_serializer("of")
    def _plain(self, of: tuple[AdapterConfig, ...], info: SerializationInfo) -> list[dict[str, Any]]:
        return [{"type": p.type} | p.model_dump(mode=info.mode, exclude_defaults=info.exclude_defaults) for p in of]

    @model_validator(mode="after")
    def _of_the_parts(self) -> UnionConfig:
        if any(part.start for part in self.of):
            raise BadSpec("A union starts as a whole: set adapter.start instead of the start of a part in of.")
        if sum(part.split is not None for part in self.of) > 1:
            raise BadSpec("Only one part of a union can be split, since each runs a batch twice. Remove the others.")
        return self


@register_adapter("union", config=UnionConfig, at="", source="arXiv:2110.07577", colour="#5A5A5A")
class Union(Adapter):
    """Only what is known of a union as a whole; each part is built from its own class."""

    family = "Several together"
    example = {"of": [{"type": "lora", "rank": 4}, {"type": "norm-tuning"}]}

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return no sites: those of the parts depend on the config."""
        return ()

    @classmethod
    def completed(cls, config: UnionConfig) -> UnionConfig:
        """Return the config with completed parts, or refuse one with a modifier of its own (CannotInject)."""
        if named := [name for name in ("sparse", "split", "quantize") if getattr(config, name)]:
            raise CannotInject(f"adapter.{named[0]} is for the matrices of one method. Put it into a part: adapter.of.")
        return config.model_copy(update={"of": tuple(get_adapter(p.type).cls.completed(p) for p in config.of)})

    @classmethod
    def parameter_count(cls, config: UnionConfig, sites: Sequence[Site], world: World) -> int:
        """Return the sum over the parts."""
        own = [[site for site in sites if site.part == f"{i}/"] for i in range(len(config.of))]
        return sum(get_adapter(p.type).cls.parameter_count(p, of, world) for p, of in zip(config.of, own, strict=True))

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each part is merged by itself, in the order of the parts."""
        raise NotImplementedError("The parts of a union are merged one by one.")
