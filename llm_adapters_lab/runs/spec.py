"""RunSpec: everything that decides a run, in one validated object.

Its canonical JSON is hashed into the run id, so one spec is one run wherever it is started. Descriptions and bounds
of the fields serve the command line's help, the JSON schema and the panels.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from llm_adapters_lab.config import Part, change, parse
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.spec import EvalSpec
from llm_adapters_lab.models.spec import DeviceMap, Dtype, Quantization
from llm_adapters_lab.runs.presets import expand, read_spec
from llm_adapters_lab.tasks.spec import DataSpec, Place
from llm_adapters_lab.training.spec import UNTOLD, TrainSpec


class RunSpec(Part):
    """One run: a base model, perhaps an adapter, data, training and scoring."""

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
    seed: int = Field(default=0, ge=0, lt=2**31, description="of adapter, row order, dropout and subsets")

    @field_validator("adapter", mode="before")
    @classmethod
    def _adapter(cls, value: Any) -> Any:
        if value is None or isinstance(value, AdapterConfig):
            return value
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict) or "type" not in value:
            raise BadSpec(f"adapter needs a type, e.g. {{type: lora, rank: 8}}; given was {value!r}.")
        value = expand(value)
        return parse(get_adapter(str(value["type"])).config, value, "adapter.")

    @model_validator(mode="after")
    def _placed(self) -> RunSpec:
        # The usual placement is written out, so that naming it or not is the same run.
        # Asked in any case: the type becomes a part of the run's id, and so of a path.
        if self.adapter is not None and (at := get_adapter(self.adapter.type).at) and not self.adapter.at:
            object.__setattr__(self, "adapter", self.adapter.model_copy(update={"at": at}))
        return self

    def canonical(self) -> str:
        """Return the JSON that the id is made of.

        What cannot change a result is left out: `UNTOLD`, and for a bare base, how it would be trained.
        """
        # What equals its default is left out too: a field that is added later, with a default that does what was done
        # before, then changes the id of no earlier run. In return a default, once released, may never change: the old
        # and the new meaning would share an id. The adapter's type is the default of its config, and stays.
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"train": UNTOLD})
        if not fields.get("train", True):
            del fields["train"]
        if self.adapter is None:
            # The seed of a bare base chooses the solved examples in its prompts, and nothing else.
            kept = {"base", "eval", "dtype", "quantization", "device_map", "trust_remote_code"}
            fields = {key: fields[key] for key in fields if key in kept or (key == "seed" and self.eval.shots)}
            fields |= {"template": self.data.template} if self.data.template else {}
            # Where the questions come from, if eval.root does not say.
            fields |= {"root": self.data.root} if self.data.root and not self.eval.root else {}
        else:
            fields["adapter"]["type"] = self.adapter.type
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @property
    def id(self) -> str:
        """The run id: base, adapter and the first 10 digits of the SHA-256 of `canonical`."""
        digest = hashlib.sha256(self.canonical().encode()).hexdigest()[:10]
        base = re.sub(r"[^a-z0-9]+", "-", Path(self.base).name.lower()).strip("-")[:32] or "base"
        return f"{base}-{self.adapter.type if self.adapter else 'base'}-{digest}"

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> RunSpec:
        """Make a spec from plain data.

        Raises:
            BadSpec: a key is unknown or a value not allowed; the message names key, value and nearest choices.
        """
        return parse(cls, fields)

    @classmethod
    def load(cls, path: str | Path, changes: dict[str, Any] | None = None) -> RunSpec:
        """Read a spec from a YAML or JSON file, or the one that comes with the lab under a name.

        Args:
            path: of the file, or a name such as ``paper/llama-7b-lora`` where there is no such file.
            changes: dotted keys with new values, e.g. ``{"adapter.rank": 16}``.

        Raises:
            BadSpec: the file is missing, cannot be read, or holds no valid spec.
        """
        return cls.parse(change(read_spec(path), changes or {}))
