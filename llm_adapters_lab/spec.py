"""RunSpec: everything that decides a run, in one validated object.

Its canonical JSON is hashed into the run id, so one spec is one run wherever it is started. Descriptions and bounds
of the fields serve the command line's help, the JSON schema and the panels.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from llm_adapters_lab.adapter import AdapterConfig, get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.fields import change, parse
from llm_adapters_lab.models import DeviceMap, Dtype
from llm_adapters_lab.presets import expand, read_spec
from llm_adapters_lab.prompts import get_template
from llm_adapters_lab.quantization import Quantization
from llm_adapters_lab.tasks import Rule, get_task, split_names
from llm_adapters_lab.untrusted import tilde

Protocol = Literal["lab", "paper", "options"]
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
UNTOLD = {"checkpoint_every", "trackers"}
"""Fields of `TrainSpec` that change no result, and so are no part of a run's id."""
Place = Annotated[str, AfterValidator(tilde)]


class Part(BaseModel):
    """A part of a spec: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSpec(Part):
    """What the adapter learns from."""

    task: str = Field(
        default="mini-math", description="task whose train split is learnt, or own:FILE; see the command `tasks`"
    )
    root: Place | None = Field(
        default=None, description="folder with the benchmark files; default: LAB_DATA, else the web"
    )
    rows: int | None = Field(default=None, ge=1, description="use only the first so many rows after shuffling")
    validation: int = Field(default=0, ge=0, description="rows held out to choose the best checkpoint")
    template: str | None = Field(default=None, description="prompt template; default: that of the task")
    max_tokens: int = Field(default=256, ge=8, le=131072, description="longest prompt with answer, in tokens")
    loss_on: Literal["answer", "all"] = Field(default="answer", description="which tokens the loss counts")

    @field_validator("task")
    @classmethod
    def _task(cls, name: str) -> str:
        task = get_task(name := tilde(name))
        if "train" not in task.splits:
            raise BadSpec(f"The task {name!r} has no train split; it can only be scored on.")
        return name

    @field_validator("template")
    @classmethod
    def _template(cls, name: str | None) -> str | None:
        if name is not None:
            get_template(name)
        return name


class TrainSpec(Part):
    """How it is trained. A step is one update of the adapter."""

    learning_rate: float = Field(default=3e-4, gt=0, le=10, description="peak learning rate")
    batch: int = Field(default=16, ge=1, le=65536, description="sequences per step, over all processes")
    micro_batch: int | None = Field(default=None, ge=1, description="sequences at a time; the rest is accumulated")
    micro_tokens: int | None = Field(
        default=None, ge=1, description="tokens at a time, padding included; rows of like length go together"
    )
    epochs: float = Field(default=3.0, gt=0, le=1000, description="passes over the training rows")
    max_steps: int | None = Field(default=None, ge=1, description="stop after so many steps, if sooner")
    warmup: int = Field(default=0, ge=0, description="steps over which the learning rate rises from 0")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="linear", description="after the warm-up")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="decoupled weight decay of AdamW")
    clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 does not clip")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="of the computation; auto: bf16 on a GPU that has it, else fp32"
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations to save memory")
    label_head: bool = Field(default=True, description="run the output head only where a label is counted")
    packing: bool = Field(default=True, description="lay rows end to end instead of padding them")
    share_prefix: bool = Field(
        default=True, description="compute what the rows of a micro-batch begin with alike once; needs packing"
    )
    compile: bool = Field(default=False, description="compile the decoder layers with torch.compile")
    deterministic: bool = Field(
        default=False, description="on a GPU, use only kernels that give the same bits every time; a CPU always does"
    )
    evaluate_every: int = Field(default=0, ge=0, description="steps between validations; 0: at the end only")
    probe_every: int = Field(
        default=0, ge=0, description="steps between measurements of weights, gradients and updates by site; 0: none"
    )
    checkpoint_every: int = Field(
        default=0, ge=0, description="steps between checkpoints; 0: by time, so that they cost little"
    )
    trackers: tuple[Tracker, ...] = Field(
        default=(), description="where the curves go beside the record: tensorboard, wandb, trackio, mlflow"
    )

    @model_validator(mode="after")
    def _divides(self) -> TrainSpec:
        if self.micro_batch and self.batch % self.micro_batch:
            raise BadSpec(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}.")
        return self


class EvalSpec(Part):
    """What it is scored on, after training."""

    tasks: tuple[str, ...] = Field(default=(), description="tasks whose test split is scored; empty: none")
    rows: int | None = Field(default=None, ge=1, description="score only the first so many rows of each task")
    batch: int = Field(default=32, ge=1, le=65536, description="prompts generated at a time")
    max_new_tokens: int | None = Field(default=None, ge=1, description="longest answer; default: that of the task")
    protocol: Protocol = Field(
        default="lab",
        description="lab: greedy answers; paper: prompt, 4 beams and extraction of the original code; options: "
        "the likeliest of the offered answers, without generating",
    )
    extraction: Rule | None = Field(
        default=None, description="how answers are read: lab or original; default: that of the protocol"
    )
    likelihood: bool = Field(default=True, description="on choice sets also score the likelihood of every option")
    shots: int = Field(default=0, ge=0, le=64, description="solved examples of the train split before every question")
    root: Place | None = Field(default=None, description="folder with the benchmark files; default: data.root")

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks(cls, names: Any) -> Any:
        names = split_names(names) if isinstance(names, str) else names
        if not isinstance(names, list | tuple):
            raise BadSpec(f"eval.tasks is {names!r:.60}; give a list of tasks, as in [boolq, piqa].")
        names = tuple(tilde(str(name)) for name in names)
        for name in names:
            task = get_task(name)
            if "test" not in task.splits:
                raise BadSpec(f"The task {name!r} has no test split; it can only be trained on.")
        if len(set(names)) != len(names):
            raise BadSpec(f"eval.tasks names a task twice: {', '.join(names)}.")
        return names

    @model_validator(mode="after")
    def _askable(self) -> EvalSpec:
        for name in self.tasks:
            task = get_task(name)
            if self.shots and "train" not in task.splits:
                raise BadSpec(f"eval.shots = {self.shots}, but {name!r} has no train split to take examples from.")
            if self.protocol == "options" and not task.labels:
                raise BadSpec(f"eval.protocol = options, but {name!r} offers no options; use lab or paper.")
        return self


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
