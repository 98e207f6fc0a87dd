"""The data part of a spec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from llm_adapters_lab.config import Part
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.privacy import tilde
from llm_adapters_lab.tasks.custom import check_group
from llm_adapters_lab.tasks.formats import Control, LossOn
from llm_adapters_lab.tasks.prompts import read_template
from llm_adapters_lab.tasks.registry import get_task

Place = Annotated[str, AfterValidator(tilde)]
"""A path, with "~" for the home folder."""


class DataSpec(Part):
    """What the adapter is trained on."""

    task: str = Field(default="mini-math", description="task to train on, or own:FILE; see the command `tasks`")
    root: Place | None = Field(
        default=None, description="folder with the benchmark files; default: LAB_DATA, else download"
    )
    rows: int | None = Field(default=None, ge=1, description="number of training rows, after shuffling; default: all")
    validation: int = Field(default=0, ge=0, description="rows held out to choose the best checkpoint")
    form: Literal["rows", "text"] = Field(
        default="rows", description="rows: questions and answers; text: documents, packed, all of which is learnt"
    )
    template: str | None = Field(
        default=None, description="prompt template, chat (the base's own) or a .jinja file; default: the task's"
    )
    system: str | None = Field(default=None, description="system prompt of chats that have none")
    max_tokens: int = Field(default=256, ge=8, le=131072, description="longest prompt with answer, in tokens")
    group: str = Field(
        default="none",
        pattern=r"^(none|task|column:.+)$",
        description="what a row belongs to, for adapters with a part for each group: task, column:NAME of a file, none",
    )
    loss_on: LossOn = Field(
        default="answer", description="tokens that the loss counts: of all answers of a chat, of its last, or all"
    )
    control_tokens: Control = Field(
        default="text", description="control tokens written in the data are text; allow: they are tokens"
    )
    allow_dropped: bool = Field(default=False, description="go on although most rows are left out or cannot be right")

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
            name = read_template(name)
        return name

    @model_validator(mode="after")
    def _whole(self) -> DataSpec:
        check_group("data.group", self.group, self.task)
        if self.form == "text":
            if self.group != "none":
                raise BadSpec("data.form = text packs documents of several groups together. Set data.group to none.")
            if self.template or self.system or self.loss_on == "last":
                raise BadSpec("data.form = text learns whole documents: remove data.template, system and loss_on.")
            object.__setattr__(self, "loss_on", "all")
        return self
