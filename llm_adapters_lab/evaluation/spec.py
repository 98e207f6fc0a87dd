"""The `eval` part of a spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llm_adapters_lab.config import Part
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.privacy import tilde
from llm_adapters_lab.tasks.base import Rule, Task
from llm_adapters_lab.tasks.prompts import read_template
from llm_adapters_lab.tasks.registry import get_task, split_names
from llm_adapters_lab.tasks.spec import Place

Protocol = Literal["lab", "paper", "options"]
LEARNT = "auto"
"""The value of `max_new_tokens` that stands for a limit learnt from the training rows of a task."""


class EvalSpec(Part):
    """What a run is evaluated on after training."""

    tasks: tuple[str, ...] = Field(default=(), description="tasks whose test split is scored; empty: none")
    rows: int | None = Field(default=None, ge=1, description="maximum number of rows of each task")
    batch: int = Field(default=32, ge=1, le=65536, description="number of prompts answered together")
    max_new_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="maximum number of tokens of an answer; auto: learnt from training rows; default: that of the task",
    )
    protocol: Protocol = Field(
        default="lab",
        description="lab: greedy answers; paper: prompt, 4 beams and extraction of the original code; options: "
        "the likeliest of the offered answers, without generating",
    )
    extraction: Rule | None = Field(
        default=None, description="rule that extracts answers: lab or original; default: that of the protocol"
    )
    likelihood: bool = Field(default=True, description="on choice sets, also score the likelihood of every option")
    shots: int = Field(
        default=0, ge=0, le=64, description="number of solved examples of the train split before every question"
    )
    template: str | None = Field(
        default=None, description="prompt template, chat or a .jinja file; default: data.template, else the task's"
    )
    system: str | None = Field(default=None, description="system prompt of chats; default: data.system")
    group: str | None = Field(
        default=None,
        min_length=1,
        description="part of the adapter that answers: task, column:NAME, a group, or mean of all; default: data.group",
    )
    forgetting: str | None = Field(
        default=None,
        min_length=1,
        description="text whose loss is measured with and without the adapter: stories, prose or a text file",
    )
    root: Place | None = Field(default=None, description="folder with the benchmark files; default: data.root")

    def most_tokens(self, task: Task) -> int:
        """Return the maximum number of tokens of an answer to a task; a limit that is learnt can be lower."""
        return self.max_new_tokens if isinstance(self.max_new_tokens, int) else task.max_new_tokens

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

    @field_validator("template")
    @classmethod
    def _template(cls, name: str | None) -> str | None:
        return name and read_template(name)

    @model_validator(mode="after")
    def _askable(self) -> EvalSpec:
        for name in self.tasks:
            task = get_task(name)
            if self.shots and "train" not in task.splits:
                raise BadSpec(f"eval.shots = {self.shots}, but {name!r} has no train split to take examples from.")
            if self.protocol == "options" and not task.labels:
                raise BadSpec(f"eval.protocol = options, but {name!r} offers no options; use lab or paper.")
        return self
