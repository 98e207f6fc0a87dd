"""RunSpec: everything that determines a run, in one validated object.

The run id is a hash of its canonical JSON, so a spec identifies a run wherever it is started. The descriptions and
bounds of the fields also appear in the command line's help, the JSON schema and the panels.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from llm_adapters_lab.config import Part, change
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import adapter_config, all_adapters, get_adapter
from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.evaluation.spec import EvalSpec
from llm_adapters_lab.models.spec import DeviceMap, Dtype, NewToken, Quantization
from llm_adapters_lab.runs.presets import expand, read_spec
from llm_adapters_lab.runs.recipes import AUTO, rate_of
from llm_adapters_lab.signatures import checked
from llm_adapters_lab.tasks.spec import DataSpec, Place
from llm_adapters_lab.training.spec import NOT_IN_ID, TrainSpec


class RunSpec(Part):
    """One run: a base model, an optional adapter, data, training and evaluation."""

    base: Place = Field(
        default="nano", min_length=1, description="nano, smollm2-135m, a hub id, folder, GGUF or tiny:family"
    )
    adapter: SerializeAsAny[AdapterConfig] | None = Field(
        default=None, description="the adapter; null scores the bare base"
    )
    data: DataSpec = Field(default_factory=DataSpec, description="what it learns from")
    train: TrainSpec = Field(default_factory=TrainSpec, description="how it is trained")
    eval: EvalSpec = Field(default_factory=EvalSpec, description="what it is scored on")
    dtype: Dtype = Field(default="auto", description="of the base's weights")
    quantization: Quantization = Field(
        default="none", description="of the base's projections: 8 or 4 bits for each weight; none: as its files are"
    )
    device_map: DeviceMap = Field(
        default="none", description="auto: the base over all GPUs, the rest in memory and on disk; none: on one device"
    )
    trust_remote_code: bool = Field(default=False, description="run model code from the hub repository")
    anatomy: dict[str, str] = Field(
        default_factory=dict, description="module paths by role, {q: '*.attn.query'}, if they cannot be told apart"
    )
    tokens: tuple[NewToken, ...] = Field(
        default=(), description="new tokens, each a text or {text, start: words that it starts from}"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="of adapter, row order, dropout and subsets")

    @field_validator("adapter", mode="before")
    @classmethod
    def _adapter(cls, value: Any) -> Any:
        if value is None or isinstance(value, AdapterConfig):
            return value
        if isinstance(value, str):
            value = {"type": value}
        named = isinstance(value, dict) and isinstance(value.get("type"), str)
        return adapter_config(expand(value) if named else value)

    @model_validator(mode="before")
    @classmethod
    def _auto_rate(cls, fields: Any) -> Any:
        train = fields.get("train") if isinstance(fields, dict) else None
        if not isinstance(train, dict) or train.get("learning_rate") != AUTO:
            return fields
        adapter = cls._adapter(fields.get("adapter"))
        if adapter is None:  # nothing is trained
            return {**fields, "train": {key: value for key, value in train.items() if key != "learning_rate"}}
        return {**fields, "train": {**train, "learning_rate": rate_of(adapter.type), "rate_from": AUTO}}

    @field_validator("tokens", mode="before")
    @classmethod
    def _tokens(cls, value: Any) -> Any:
        return [{"text": one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value

    @field_validator("tokens")
    @classmethod
    def _once(cls, tokens: tuple[NewToken, ...]) -> tuple[NewToken, ...]:
        texts = [token.text for token in tokens]
        if twice := next((text for text in texts if texts.count(text) > 1), None):
            raise BadSpec(f"names {twice!r} twice. Name each new token once.")
        return tokens

    @property
    def base_parts(self) -> tuple[str, bool, dict[str, str], dict[str, str]]:
        """What a `Blueprint` of the base is made from, new tokens as start words by text."""
        tokens = {token.text: token.start for token in self.tokens}
        return self.base, self.trust_remote_code, self.anatomy, tokens

    @model_validator(mode="after")
    def _placed(self) -> RunSpec:
        # The default placement is filled in, so that the spec is the same with and without it. The type is looked up
        # in any case, because it becomes part of the run id and so of a path.
        if self.adapter is not None and (at := get_adapter(self.adapter.type).at) and not self.adapter.at:
            object.__setattr__(self, "adapter", self.adapter.model_copy(update={"at": at}))
        return self

    @model_validator(mode="after")
    def _learnable(self) -> RunSpec:
        # What the objective asks of other parts of the spec; a bare base learns nothing.
        objective, validation = self.train.objective, self.data.validation
        if not self.learns or objective == "likelihood":
            return self
        assert self.adapter is not None
        parts = max(part.split.parts if part.split else 1 for part in self.adapter.parts)
        faults = {
            f"adapter.split.parts = {parts}, which compares two passes over the labels": parts > 1,
            "data.form = text, which has no answers": self.data.form == "text",
            "data.loss_on = all, as only answers are compared": self.data.loss_on == "all",
            f"data.validation = {validation}, which compares losses": objective == "reward" and validation,
        }
        for fault in (fault for fault, holds in faults.items() if holds):
            raise BadSpec(f"train.objective = {objective!r} does not work with {fault}. Remove one of the two.")
        return self

    @model_validator(mode="after")
    def _headed(self) -> RunSpec:
        if self.adapter is None or self.train.regime is None or not self.learns:
            return self
        able = {name for name, entry in all_adapters().items() if entry.config.has_factors}
        if self.adapter.type not in able:
            raise BadSpec(
                f"train.regime trains heads of two factors each, which adapter.type = {self.adapter.type!r} does not "
                f"have. {choices(self.adapter.type, able)}"
            )
        if self.tokens:
            raise BadSpec("train.regime does not train the rows of new tokens. Remove tokens, or train.regime.")
        init = "pissa" if self.train.regime.name == "hd-pissa" else "kaiming"
        wanted = {"init": init, "scale": "alpha", "dropout": 0.0, "experts": "each", "start": ""}
        wanted |= dict.fromkeys(("sparse", "split", "quantize"))
        for name, value in wanted.items():
            if (given := getattr(self.adapter, name, value)) != value:
                raise BadSpec(
                    f"train.regime {self.train.regime.name!r} does not work with adapter.{name} = {given!r}. "
                    f"Set it to {'null' if value is None else repr(value)}."
                )
        return self

    @property
    def learns(self) -> bool:
        """Whether the run trains anything; otherwise it only scores, a bare base or adapters that are trained."""
        return self.adapter is not None and self.adapter.learns

    @property
    def injected(self) -> AdapterConfig | None:
        """The config of what is put into the base: the adapter, or what the heads of a regime train together."""
        if self.adapter is None or self.train.regime is None or not self.learns:
            return self.adapter
        return self.adapter.headed(self.train.regime.heads, self.train.regime.dense)

    def canonical(self) -> str:
        """Return the JSON that is hashed into the id.

        Fields that cannot change a result are left out: `NOT_IN_ID` and, if nothing is trained, those on training.
        """
        # Fields equal to their default are left out too: a field added later, whose default is the former behaviour,
        # then leaves the ids of earlier runs unchanged. In return, a released default may never change: the old and
        # the new meaning would share an id. The adapter's type is the default of its config, and is kept.
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"train": NOT_IN_ID})
        if not fields.get("train", True):
            del fields["train"]
        if not self.learns:
            # The seed then only chooses the few-shot examples in the prompts.
            kept = {"base", "adapter", "eval", "dtype", "quantization", "device_map", "trust_remote_code", "tokens"}
            fields = {key: fields[key] for key in fields if key in kept or (key == "seed" and self.eval.shots)}
            fields |= {key: value for key in ("template", "system") if (value := getattr(self.data, key))}
            routed = bool(self.adapter and not self.eval.group and self.data.group != "none")
            fields |= {"group": self.data.group} if routed else {}
            # The questions come from there, unless eval.root is given.
            fields |= {"root": self.data.root} if self.data.root and not self.eval.root else {}
        if self.adapter is not None:
            fields["adapter"]["type"] = self.adapter.type
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @property
    def id(self) -> str:
        """The run id: base, adapter and the first 10 digits of the SHA-256 of `canonical`."""
        digest = hashlib.sha256(self.canonical().encode()).hexdigest()[:10]
        base = re.sub(r"[^a-z0-9]+", "-", Path(self.base).name.lower()).strip("-")[:32] or "base"
        return f"{base}-{self.adapter.type if self.adapter else 'base'}-{digest}"

    @classmethod
    @checked
    def load(cls, path: str | Path, changes: dict[str, Any] | None = None) -> RunSpec:
        """Read a spec from a YAML or JSON file, or a spec preset by name.

        Args:
            path: of the file, or the name of a preset, such as ``paper/llama-7b-lora``, if there is no such file.
            changes: dotted keys with new values, e.g. ``{"adapter.rank": 16}``.

        Raises:
            BadSpec: the file is missing, unreadable, or not a valid spec.
        """
        return cls.parse(change(read_spec(path), changes or {}))
