"""The config fields that all adapters have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator

from llm_adapters_lab.config import Part
from llm_adapters_lab.core.modifiers.configs import QuantizeConfig, SparseConfig, SplitConfig
from llm_adapters_lab.core.placement import parse

How = Literal["average", "delta", "align"]


class BlendConfig(Part):
    """Several saved adapters made into one."""

    blend: tuple[str, ...] = Field(min_length=1, description="runs or folders of adapters of one shape")
    how: How = Field(
        default="average", description="of the tensors; delta: of the updates B A; align: of units in the same order"
    )
    weights: tuple[float, ...] = Field(default=(), description="one for each; empty for equal ones")


class AdapterConfig(Part):
    """Fields of every adapter. Unknown keys are rejected.

    Attributes:
        has_mean: whether an adapter with a part for each group can answer with the mean of all.
        has_factors: whether its update is a product of two factors, so that several heads can train it together.
        full_rank: whether it is an update of any rank, which can hold what the heads of a regime merge.
    """

    has_mean: ClassVar[bool] = True
    has_factors: ClassVar[bool] = False
    full_rank: ClassVar[bool] = False
    type: str = Field(description="name of the adapter")
    at: str = Field(
        default="", description="placement, e.g. q,v or attn+mlp or down@0-7; empty for the adapter's usual one"
    )
    experts: Literal["each", "shared"] = Field(
        default="each", description="an adapter for each routed expert, or one for all of a layer"
    )
    sparse: SparseConfig | None = Field(
        default=None, description="prune the matrices: {score, sparsity, scope, warmup}"
    )
    split: SplitConfig | None = Field(
        default=None, description="train one random, disjoint part of each matrix per step: {parts, of, kl}"
    )
    quantize: QuantizeConfig | None = Field(default=None, description="quantise the matrices: {bits}")

    def with_groups(self, names: Sequence[str]) -> Self:
        """Return the config of an adapter with a part for each of these groups, unless it names its own.

        An adapter without such parts returns itself.
        """
        return self

    def headed(self, heads: int, dense: bool) -> AdapterConfig:
        """Return the config of what heads of this config train together, see `train.regime`.

        Args:
            heads: number of them.
            dense: whether the sum of their updates may have any rank.
        """
        raise NotImplementedError(f"{self.type!r} has no headed")

    start: str | BlendConfig = Field(
        default="", description="run or folder of a saved adapter to start from, or {blend: [...], how, weights}"
    )

    def __eq__(self, other: object) -> bool:
        # The registry reads a class from the head of its file, and again when the file is imported: both are the same.
        return isinstance(other, AdapterConfig) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def parts(self) -> tuple[AdapterConfig, ...]:
        """The configs of the parts that the adapter is made of: itself, unless it has several."""
        return (self,)

    @property
    def learns(self) -> bool:
        """Whether it has anything to train."""
        return True

    @property
    def saved(self) -> tuple[str, ...]:
        """The names of all saved adapters that the config refers to."""
        own = self.start.blend if isinstance(self.start, BlendConfig) else (self.start,) * bool(self.start)
        return own + tuple(name for part in self.parts if part is not self for name in part.saved)

    @field_validator("at")
    @classmethod
    def _parses(cls, at: str) -> str:
        if at:
            parse(at)
        return at


class ModelAdapterConfig(AdapterConfig):
    """Fields of every adapter that acts on the whole model and therefore has no placement."""

    at: Literal[""] = Field(default="", description="always empty: the adapter acts on the whole model")
