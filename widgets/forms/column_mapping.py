"""Which columns of a file hold what: chosen from lists, with the first rows as a task reads them."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import BadRow, LabError
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results.formatting import percent
from llm_adapters_lab.tasks.answers import LETTERS
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.chats import chat_columns
from llm_adapters_lab.tasks.custom import PREFIX, examine, raw_rows
from llm_adapters_lab.tasks.readers import READERS, Row
from widgets.kit.elements import button, show_if
from widgets.kit.panel import Panel, error_text, message, note, schedule

SHOWN = 3
"""Number of rows that are shown as they are read."""
FAULTS = 4
"""Maximum number of faults that are told in full."""
LABELS = 12
"""Maximum number of different answers that are guessed to be labels."""
NUMBERS = 0.8
"""Share of numbers from which answers are guessed to be numbers; the others are told as faults."""
CLASSES = 6
"""Maximum number of answers whose shares are shown."""
QUESTIONS = "questions and answers"
CHATS = "chats: a column with turns"
AS_NAMED = "as the columns are named"
COLUMNS = {
    "instruction": "question",
    "input": "context",
    "answer": "answer",
    "output": "text to learn",
    "messages": "turns",
}
"""The keys of a task's name that are columns, and how they are called here."""
TIPS = {
    "instruction": "The column with the question or instruction",
    "input": "The column with further context, if there is one",
    "answer": "The column with the short answer that is scored",
    "output": "The column with the text to train on, such as an explanation that ends in the answer; else the answer",
    "messages": "The column with the turns of a chat",
}
_LIKELY = {
    "instruction": "instruction question query problem prompt input text sentence review title",
    "answer": "answer label solution target gold class category sentiment response output completion",
    "input": "input context passage background article document",
    "output": "output rationale explanation reasoning response completion",
}
"""Names that columns often have, the most likely first."""
_SIGNS = r"[|&=\n]"
"""Characters that a label in a task's name cannot have."""
_FORMS = {"number": "a number", "letter": "a letter", "label": "one of these:", "text": "any text"}


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """Return the place and the keys of a task name such as ``own:quiz.csv?answer=solution``."""
    place, _, query = name.removeprefix(PREFIX).partition("?")
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    return place, {key: value for key, _, value in pairs}


def join_name(place: str, given: Mapping[str, str]) -> str:
    """Return the task name of a place and keys; keys without a value are left out."""
    query = "&".join(f"{key}={value}" for key, value in given.items() if value)
    return f"{PREFIX}{place}{'?' * bool(query)}{query}"


def is_own_file(name: str) -> bool:
    """Return whether a task name is that of rows in a file."""
    return name.startswith(PREFIX) and Path(split_name(name)[0]).suffix.lower() in READERS


def guess(rows: Sequence[Row]) -> dict[str, str]:
    """Return the keys with which rows are probably read as they are meant."""
    if not rows or not isinstance(rows[0].content, dict):
        return {}
    names = [str(name) for name in rows[0].content]
    if chat_columns(rows[0], {}):
        return {}
    if turns := next((name for name in names if _holds_turns(rows[0], name)), ""):
        return {"messages": turns}
    found: dict[str, str] = {}
    for key, likely in _LIKELY.items():
        free = [name for name in names if name not in found.values()]
        if name := _likely(free, likely.split()):
            found[key] = name
    for key, place in (("instruction", 0), ("answer", -1)):
        free = [name for name in names if name not in found.values()]
        if key not in found and free and not (key == "answer" and "output" in found):
            found[key] = free[place]
    given = {key: name for key, name in found.items() if key != name}
    answers = [row.field(found["answer"]) for row in rows if row.has(found["answer"])] if "answer" in found else []
    return given | form_of(answers)


def form_of(answers: Sequence[Any]) -> dict[str, str]:
    """Return the keys for the form of some answers."""
    texts = [str(answer).strip() for answer in answers]
    different = sorted(set(texts))
    if not texts:
        return {}
    if sum(bool(re.fullmatch(r"[+-]?[\d,]*\.?\d+", text)) for text in texts) >= NUMBERS * len(texts):
        return {"form": "number"}
    if set(different) <= {*LETTERS}:
        return {"form": "letter"}
    plain = not any(re.search(_SIGNS, text) for text in different)
    if plain and 2 <= len(different) <= LABELS and len(texts) >= 3 * len(different):
        return {"labels": "|".join(different)}
    return {}


def _likely(names: Sequence[str], likely: Sequence[str]) -> str:
    plain = {name.casefold().strip(" _"): name for name in reversed(names)}
    return next((plain[word] for word in likely if word in plain), "")


def _holds_turns(row: Row, name: str) -> bool:
    assert isinstance(row.content, dict)
    value = row.content[name]
    text = isinstance(value, str) and re.match(r'\s*\[\s*\{\s*"(role|from)"', value)
    return bool(text) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and bool({"role", "from"} & {*value[0]})
    )


class ColumnMapping(Panel):
    """Lists to choose the columns of a file from.

    Attributes:
        name: the task's name with the present choice.
        columns: by key, the list of columns.
        form: of the answers.
        labels: the allowed answers, if they are labels.
        told: what is read: three rows, faults, the shares of the answers.
    """

    def __init__(self) -> None:
        """Start without a file."""
        super().__init__()
        self.name = ""
        self._place, self._asked = "", 0
        self._other: dict[str, str] = {}
        self._rows: dict[str, Row] = {}
        self.kind = W.Dropdown(description="rows are", options=[QUESTIONS], tooltip="What a row of the file is")
        self.columns = {
            key: W.Dropdown(description=text, options=[("–", "")], tooltip=TIPS[key]) for key, text in COLUMNS.items()
        }
        forms = [(text, form) for form, text in _FORMS.items()]
        self.form = W.Dropdown(description="answer is", options=forms, value="text", tooltip="How answers are judged")
        tip = "The allowed answers, separated by |"
        self.labels = W.Text(description="labels", placeholder="yes|no", tooltip=tip, continuous_update=False)
        self.told, self.title = W.HTML(), W.HTML()
        self.done = button("Done", "Hide the columns", click=lambda _: show_if(False, self.widget))
        for control in (self.kind, *self.columns.values(), self.form, self.labels):
            control.observe(self._changed, "value")
        grid = W.Box([self.kind, *self.columns.values(), self.form, self.labels]).add_class("lab-mapping-columns")
        head = W.HBox([self.title, self.done]).add_class("lab-rows-head")
        self.widget = W.VBox([head, grid, self.problem, self.told]).add_class("lab-mapping")
        show_if(False, self.widget)

    def open(self, name: str, root: str | None = None) -> None:
        """Read the file of a task name and show its columns; without keys in the name, guess them.

        Args:
            name: such as ``own:quiz.csv``.
            root: the data folder.
        """
        self._asked += 1
        asked = self._asked
        show_if(True, self.widget)
        self.title.value, self.told.value, self.problem.value = note(f"Reading {split_name(name)[0]} …"), "", ""

        async def work() -> None:
            try:
                rows = await asyncio.to_thread(_read, name, root)
            except Exception as error:
                if asked == self._asked:
                    self.problem.value, self.title.value = message(error_text(error)), ""
                return
            if asked == self._asked:
                self._take(name, rows)

        schedule(work)

    def close_editor(self) -> None:
        """Hide the columns."""
        self._asked += 1
        show_if(False, self.widget)

    def _take(self, name: str, rows: dict[str, Row]) -> None:
        self._place, given = split_name(name)
        self._rows = rows
        examples = list(rows.values())
        content = examples[0].content if isinstance(examples[0].content, dict) else {}
        names = [str(column) for column in content]
        fresh = not given
        given = given or guess(examples)
        kinds = [QUESTIONS, CHATS]
        if chat_columns(examples[0], {}):
            kinds.insert(0, AS_NAMED)
        with self.silently():
            self.kind.options = kinds
            as_named = AS_NAMED in kinds and not {"instruction", "messages"} & {*given}
            self.kind.value = CHATS if "messages" in given else AS_NAMED if as_named else QUESTIONS
            for key, choice in self.columns.items():
                choice.options = [("–", ""), *((column, column) for column in names)]
                wanted = given.get(key, key if key in names and key != "messages" else "")
                choice.value = wanted if wanted in names else ""
            self.form.value = given.get("form") or ("label" if "labels" in given else "text")
            self.labels.value = given.get("labels", "")
            self._other = {key: value for key, value in given.items() if key not in (*COLUMNS, "form", "labels")}
        count = f"{len(rows):,} rows · {len(names)} columns"
        self.title.value = el("div", el("b", Path(self._place).name), f" · {count}")
        self._show(tell=fresh)

    def _changed(self, change: Any) -> None:
        if self.quiet:
            return
        if change["owner"] is self.form and change["new"] == "label" and not self.labels.value.strip():
            with self.silently():
                self.labels.value = self._labels()
        self._show(tell=True)

    def _labels(self) -> str:
        """Return the different answers in the chosen column; "" if they are too many to be labels."""
        column = self.columns["answer"].value or self.columns["output"].value
        found = {str(row.field(column)).strip() for row in self._rows.values() if row.has(column)}
        plain = not any(re.search(_SIGNS, text) for text in found)
        return "|".join(sorted(found)) if plain and len(found) <= LABELS else ""

    def _show(self, *, tell: bool) -> None:
        """Compose the name and show what it reads; tell the observers if asked."""
        kind = self.kind.value
        for key, choice in self.columns.items():
            show_if(kind == CHATS if key == "messages" else kind == QUESTIONS, choice)
        show_if(kind != AS_NAMED, self.form)
        show_if(kind != AS_NAMED and self.form.value == "label", self.labels)
        self.name = join_name(self._place, self._given())
        asked, rows, name = self._asked, self._rows, self.name
        if tell:
            self._notify()
        if kind == QUESTIONS and not (self.columns["answer"].value or self.columns["output"].value):
            self.problem.value = message("Choose the column with the answer, or the one with the text to learn.")
            self.told.value = ""
            return

        async def work() -> None:
            try:
                found = await asyncio.to_thread(examine, name, rows)
            except LabError as error:
                text, markup = str(error), ""
            else:
                text, markup = "", await asyncio.to_thread(_told, found, self.form.value)
            if (asked, name) == (self._asked, self.name):
                self.problem.value, self.told.value = message(text), markup

        schedule(work)

    def _given(self) -> dict[str, str]:
        """Return the keys of the present choice, without those that have their default."""
        kind, given = self.kind.value, dict(self._other)
        if kind == AS_NAMED:
            return given
        if kind == CHATS:
            given["messages"] = self.columns["messages"].value
        else:
            chosen = {key: choice.value for key, choice in self.columns.items() if key != "messages"}
            given |= {key: value for key, value in chosen.items() if value and value != key}
        labels = self.labels.value.strip()
        if self.form.value == "label" and labels:
            given["labels"] = labels
        elif self.form.value != "text":
            given["form"] = self.form.value
        return given


def _read(name: str, root: str | None) -> dict[str, Row]:
    place, _ = split_name(name)
    return raw_rows(f"{PREFIX}{place}", "train", Path(root).expanduser() if root else None)


def _told(found: Mapping[str, Example | BadRow], form: str) -> Html:
    """Return three rows as they are read, the faults, and the shares of the answers."""
    good = [row for row in found.values() if isinstance(row, Example)]
    bad = [re.sub("^.*?, (?=row )", "", str(row)) for row in found.values() if isinstance(row, BadRow)]
    parts: list[str] = []
    if bad:
        more = [f"… and {len(bad) - FAULTS:,} more"] if len(bad) > FAULTS else []
        head = f"{len(bad):,} of {len(found):,} rows cannot be read:"
        parts.append(message("\n".join([head, *bad[:FAULTS], *more])))
    parts += [_row(row) for row in good[:SHOWN]]
    if good and (balance := _balance([row.answer for row in good], form)):
        parts.append(balance)
    return el("div", *parts)


def _row(row: Example) -> Html:
    turns = [(str(turn["role"]), str(turn.get("content", ""))) for turn in row.messages]
    said = [
        ("question", row.instruction),
        ("context", row.input),
        ("trained on", row.output),
        ("rejected", row.rejected),
    ]
    fields = [*(turns or said), ("gold answer", row.answer if row.answer != row.output else "")]
    lines = [part for name, text in fields if text for part in (el("span", name), el("div", text[:400]))]
    return el("div", *lines, class_="lab-mapped")


def _balance(answers: Sequence[str], form: str) -> Html | None:
    """Return the shares of the most frequent answers; None if most occur once."""
    counts = Counter(answers)
    if len(counts) > len(answers) / 2 and form not in ("label", "letter"):
        return None
    shown = counts.most_common(CLASSES)
    chips = [
        el(
            "span",
            el("span", "", class_="lab-bar-share", style=f"width: {round(40 * count / shown[0][1])}px"),
            f"{answer[:30]} {percent(count / len(answers))}",
            class_="lab-chip",
        )
        for answer, count in shown
    ]
    rest = len(counts) - len(shown)
    more = [el("span", f"and {rest:,} others", class_="lab-muted")] if rest else []
    return el("div", el("span", "answers:", class_="lab-muted"), *chips, *more, class_="lab-balance")
