"""Events of a run, as plain values: written to events.jsonl and shown by every front end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """What all events share."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as plain data, with its class name under "event"."""
        return {"event": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Started(Event):
    """The run has loaded everything and starts."""

    id: str
    steps: int
    trainable_parameters: int
    base_parameters: int
    device: str


@dataclass(frozen=True)
class Resumed(Event):
    """An interrupted run is resumed: its training after `step` steps, or its scoring.

    Events that earlier attempts logged after that point are removed, so every step is in the log once.
    """

    id: str
    stage: str
    step: int


@dataclass(frozen=True)
class Estimated(Event):
    """Estimated peak memory of the training, in bytes; `runs.forecast.memory.Memory` describes the parts."""

    weights: int
    adapter: int
    optimizer: int
    step: int
    total: int


@dataclass(frozen=True)
class Step(Event):
    """One update. Loss in nats per label token; tokens are label and prompt tokens seen so far; times in seconds.

    Other objectives have their own loss, and `measures`: margin and accuracy (dpo), reward and idle (reward).
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    tokens_per_second: float
    seconds_left: float
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FellBack(Event):
    """A setting of the spec cannot be used here; a slower computation with the same result replaces it."""

    setting: str
    reason: str


@dataclass(frozen=True)
class Validated(Event):
    """A validation after a step.

    Attributes:
        step: after which it was.
        loss: mean over the labels, in nats.
        best: whether it is the lowest so far.
        right: "1" for every held-out row of which each label is the likeliest token, so that greedy decoding writes the
            answer, else "0"; "" if the objective has no such rows.
    """

    step: int
    loss: float
    best: bool
    right: str = ""


@dataclass(frozen=True)
class ReadText(Event):
    """The loss on the text of `eval.forgetting` after training.

    Attributes:
        text: as in the spec.
        tokens: number of tokens that were predicted.
        loss: mean over them, in nats.
        base_loss: the same of the bare base.
    """

    text: str
    tokens: int
    loss: float
    base_loss: float


@dataclass(frozen=True)
class Norms(Event):
    """How far training has moved the adapter: Frobenius norm of (tensors now - tensors at the start) at each site.

    A model-wide adapter has one entry per tensor, named `model/<tensor>`.
    """

    step: int
    norms: dict[str, float]


@dataclass(frozen=True)
class Merged(Event):
    """A merge of the heads of `train.regime`.

    Attributes:
        step: after which it was.
        merges: number of merges so far.
        rank: by site, of the update that has been merged since the start (`training.regimes.TOLERANCE`).
    """

    step: int
    merges: int
    rank: dict[str, int]


@dataclass(frozen=True)
class Probed(Event):
    """Effect of one step at each site, with the keys of `Norms`: Frobenius norms over the tensors θ of the site.

    Attributes:
        step: number of the step, from 1.
        norm: ||θ|| after the step.
        gradient_norm: ||g|| before clipping; together they make the one of `Step`.
        update_ratio: ||Δθ|| / ||θ||, the change of this step beside `norm`; 1 in the first step from zero.
    """

    step: int
    norm: dict[str, float]
    gradient_norm: dict[str, float]
    update_ratio: dict[str, float]


def _counted(words: str) -> int:
    return field(default=0, metadata={"words": words})


@dataclass(frozen=True)
class LeftOut(Event):
    """How many of the `rows` read for training and validation were left out, or are unusual in some way."""

    rows: int
    too_long: int = _counted("longer than data.max_tokens, dropped")
    empty: int = _counted("without an output to learn, dropped")
    split: int = _counted("longer than data.max_tokens, split")
    held_out: int = _counted("with a validation question, dropped")
    repeated: int = _counted("equal to an earlier row")
    unknown: int = _counted("with characters that the tokenizer does not know")
    control: int = _counted("with a control token written out, read as text")
    allowed: int = _counted("with a control token written out, read as a token")
    scored: int = _counted("with a question of the scored rows")

    @property
    def dropped(self) -> int:
        """Number of rows that are neither learnt nor validated on."""
        return self.too_long + self.empty + self.held_out

    @property
    def text(self) -> str:
        """A sentence with all counts that are not zero; "" if there are none."""
        counts = ((getattr(self, part.name), part.metadata.get("words")) for part in dataclasses.fields(self))
        told = [f"{count:,} {words}" for count, words in counts if words and count]
        return f"Of {self.rows:,} training rows: {'; '.join(told)}." if told else ""


@dataclass(frozen=True)
class Unreadable(Event):
    """Rows on which even a perfect answer is judged wrong, because the tokenizer or the extraction rule changes it.

    `count` of the `total` rows of a set, "train" or "test/<task>"; examples: id, gold answer and reading of the first.
    """

    of: str
    count: int
    total: int
    examples: tuple[str, ...]

    @property
    def text(self) -> str:
        """A sentence with the count and examples."""
        share = f"{self.count:,} of {self.total:,} rows ({100 * self.count / self.total:.0f} %)"
        return f"{self.of}: a perfect answer is judged wrong in {share}, such as {'; '.join(self.examples)}."


@dataclass(frozen=True)
class Scoring(Event):
    """Progress of the scoring: `done` of `total` rows of a task have been answered."""

    task: str
    done: int
    total: int


@dataclass(frozen=True)
class Scored(Event):
    """A task has been scored; `score` is its entry in the summary."""

    task: str
    score: dict[str, Any]


@dataclass(frozen=True)
class Noticed(Event):
    """A warning; the run continues, or its result is returned."""

    text: str


@dataclass(frozen=True)
class Finished(Event):
    """The run is complete."""

    id: str
    seconds: float


@dataclass(frozen=True)
class Stopped(Event):
    """The run was asked to stop; the same call resumes it."""

    id: str
    stage: str


@dataclass(frozen=True)
class Failed(Event):
    """The run failed.

    Attributes:
        id: of the run.
        stage: where it failed: loading, training or scoring.
        error: class and message.
        traceback: as Python prints it, with the home folder as ~.
        step: the last step in a checkpoint; 0 for none.
        advice: how to continue.
    """

    id: str
    stage: str
    error: str
    traceback: str = ""
    step: int = 0
    advice: str = ""


def row_remarks(summary: Mapping[str, Any]) -> list[str]:
    """Return sentences about the rows of a finished run: which were left out, and which cannot be judged right."""
    found = summary.get("rows") or {}
    left_out = [LeftOut(**found["left_out"]).text] if found.get("left_out") else []
    unreadable = [Unreadable(**fields).text for fields in found.get("unreadable", ())]
    return [text for text in (*left_out, *unreadable, *found.get("notes", ())) if text]
