"""The `train` section of a run spec."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm_adapters_lab.config import Part
from llm_adapters_lab.errors import BadSpec

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
NOT_IN_ID = {"checkpoint_every", "pause_at", "rate_from", "trackers"}
"""Fields of `TrainSpec` that affect no result and are therefore left out of the run id."""


class Regime(Part):
    """Several heads that train one adapter together, each on its own rows; see `training.regimes`."""

    name: Literal["lte", "hd-pissa"] = Field(
        default="lte",
        description="lte: low-rank heads, merged now and then; hd-pissa: heads of different singular directions",
    )
    heads: int = Field(default=4, ge=1, le=1024, description="number of heads; each has its share of every batch")
    every: int = Field(default=1, ge=1, le=1_000_000, description="lte: steps between merges")
    reset: bool = Field(default=False, description="lte: begin with new factors after every merge")

    @property
    def dense(self) -> bool:
        """Whether the updates add up to more than the rank of all heads."""
        return self.reset or self.name == "hd-pissa"

    @model_validator(mode="after")
    def _fits_name(self) -> Regime:
        if self.name == "hd-pissa" and (self.every != 1 or self.reset):
            raise BadSpec("every and reset are only read by lte; hd-pissa merges after every step. Remove them.")
        return self


class TrainSpec(Part):
    """How an adapter is trained. A step is one update of its parameters."""

    learning_rate: float = Field(
        default=3e-4, gt=0, le=10, description="peak learning rate; auto: the best that a search found for the method"
    )
    objective: Literal["likelihood", "dpo", "reward"] = Field(
        default="likelihood",
        description="likelihood: of the answers; dpo: of chosen over rejected ones; reward: of answers that it draws",
    )
    regime: Regime | None = Field(
        default=None, description="heads that train the adapter together: {name, heads, every, reset}"
    )
    beta: float = Field(default=0.1, gt=0, le=100, description="dpo: weight of the distance from the base")
    answers: int = Field(default=4, ge=2, le=1024, description="reward: number of answers drawn to every question")
    temperature: float = Field(default=1.0, ge=0.001, le=10, description="reward: of the draws")
    batch: int = Field(default=16, ge=1, le=65536, description="sequences per step, over all processes")
    micro_batch: int | None = Field(default=None, ge=1, description="sequences per forward pass; default: no limit")
    micro_tokens: int | None = Field(
        default=None, ge=1, description="tokens per forward pass, including padding; groups rows of similar length"
    )
    epochs: float = Field(default=3.0, gt=0, le=1000, description="passes over the training rows")
    max_steps: int | None = Field(default=None, ge=1, description="maximum number of steps; limits `epochs`")
    warmup: int = Field(default=0, ge=0, description="steps over which the learning rate rises from 0")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="linear", description="decay after the warm-up")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="decoupled weight decay of AdamW")
    clip: float = Field(default=1.0, ge=0, description="maximum gradient norm; 0 disables clipping")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="precision of the computation; auto: bf16 on a GPU that supports it, else fp32"
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations to save memory")
    label_head: bool = Field(default=True, description="run output head and last layer only where a label is counted")
    packing: bool = Field(default=True, description="lay rows end to end instead of padding them")
    share_prefix: bool = Field(
        default=True, description="compute a common beginning of the rows of a micro-batch once; needs packing"
    )
    recompute: bool = Field(
        default=True, description="compute norms, activation functions and the like again instead of keeping them"
    )
    cache_below: float = Field(
        default=0, ge=0, description="GiB on disk for what the layers below the adapter make of the rows; 0: none"
    )
    compile: bool = Field(default=False, description="compile the decoder layers with torch.compile")
    deterministic: bool = Field(
        default=False, description="use only deterministic kernels on a GPU; those of the CPU always are"
    )
    evaluate_every: int = Field(default=0, ge=0, description="steps between validations; 0: only at the end")
    probe_every: int = Field(
        default=0, ge=0, description="steps between measurements of weights, gradients and updates per site; 0: none"
    )
    checkpoint_every: int = Field(
        default=0, ge=0, description="steps between checkpoints; 0: by time, at a small fraction of the run time"
    )
    rate_from: Literal["spec", "auto"] = Field(default="spec", description="auto: learning_rate was given as auto")
    pause_at: int | None = Field(
        default=None, ge=1, description="step after which to stop, saved; the same run without it continues"
    )
    trackers: tuple[Tracker, ...] = Field(
        default=(), description="experiment trackers to log to: tensorboard, wandb, trackio, mlflow"
    )

    @model_validator(mode="after")
    def _divides(self) -> TrainSpec:
        if self.micro_batch and self.batch % self.micro_batch:
            raise BadSpec(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}.")
        return self

    @model_validator(mode="after")
    def _fits_regime(self) -> TrainSpec:
        if self.regime is None:
            return self
        heads, name = self.regime.heads, self.regime.name
        faults = {
            f"batch = {self.batch}, which {heads} heads cannot share evenly": self.batch % heads,
            f"objective = {self.objective!r}": self.objective != "likelihood",
            "precision = 'fp16', whose gradients are scaled": self.precision == "fp16",
            f"probe_every = {self.probe_every}, as it is the heads that take the steps": self.probe_every,
            "compile": self.compile,
            f"weight_decay = {self.weight_decay} on frozen directions": self.weight_decay and name == "hd-pissa",
        }
        for fault in (fault for fault, holds in faults.items() if holds):
            raise BadSpec(f"train.regime {name!r} does not work with train.{fault}. Change one of the two.")
        return self

    @model_validator(mode="after")
    def _fits_objective(self) -> TrainSpec:
        for name, owner in {"beta": "dpo", "answers": "reward", "temperature": "reward"}.items():
            value = getattr(self, name)
            if self.objective != owner and value != type(self).model_fields[name].default:
                raise BadSpec(
                    f"train.{name} = {value} is only read by the objective {owner!r}, but train.objective = "
                    f"{self.objective!r}. Remove it, or set train.objective: {owner}."
                )
        if self.compile and self.objective != "likelihood":
            raise BadSpec(f"train.compile does not work with train.objective = {self.objective!r}. Remove it.")
        return self
