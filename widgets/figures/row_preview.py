"""Rows of data as the model sees them: what is read, which of it is learnt, and what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from llm_adapters_lab.errors import BadRow, BadSpec, LabError
from llm_adapters_lab.events import row_remarks
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.results.plots.style import BLUE, ORANGE, style
from llm_adapters_lab.runs.preflight import check_rows, template_notes
from llm_adapters_lab.runs.rows import Rows, read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks import contamination
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.custom import PREFIX, raw_rows
from llm_adapters_lab.tasks.encoding import encode, encode_text
from llm_adapters_lab.tasks.formats import Format, get_format
from llm_adapters_lab.tasks.prompts import TEXT
from llm_adapters_lab.tasks.readers import Row
from llm_adapters_lab.tasks.spec import DataSpec
from llm_adapters_lab.tasks.tokens import Sample, documents
from widgets.figures.row_view import RowView, unwritten, visible, warning
from widgets.kit.panel import note

PREVIEW_ROWS = 20
"""Number of rows that are shown together."""
HISTOGRAM_ROWS = 2000
"""Maximum number of rows that are tokenised for the histogram."""
NO_LIMIT = 2**62


LEARNT = {"answer": "the answers", "last": "the last answer", "all": "everything"}
VIEWS = ("tokens", "rendered text", "raw row")


@dataclass
class Preview:
    """The rows of a preview.

    Attributes:
        data: the data part of the spec.
        view: draws the rows; None if the file cannot be read.
        rows: the rows; in place of a row that cannot be read, that of the file.
        packed: samples of documents; they are drawn instead of rows.
        lengths: of the rows or documents that can be written, in tokens.
        faults: why rows cannot be written, by number.
        marked: numbers of the rows with a fault or a control token from the data.
    """

    data: DataSpec
    view: RowView | None
    rows: Sequence[Example | Row]
    packed: Sequence[Sample] = ()
    lengths: Sequence[int] = ()
    faults: Mapping[int, str] = field(default_factory=dict)
    marked: Sequence[int] = ()

    @property
    def count(self) -> int:
        """Number of rows or samples."""
        return len(self.packed or self.rows)

    @property
    def at_once(self) -> int:
        """Number of rows that are shown together: of chats, documents and pairs one."""
        long = self.view is None or self.view.form.chat or self.packed or isinstance(self.rows[0], Row)
        return 1 if long or any(row.rejected for row in self.rows if isinstance(row, Example)) else PREVIEW_ROWS

    def find(self, text: str) -> Sequence[int]:
        """Return the numbers of the rows that contain a text in any field, whatever the case."""
        wanted = text.strip().casefold()
        if not wanted or self.packed:
            return range(self.count)
        return [number for number, found in enumerate(self.rows) if wanted in _all_text(found).casefold()]

    def markup(self, number: int, how: str) -> Html:
        """Return a row or sample in one of the `VIEWS`."""
        name = "sample" if self.packed else "row"
        try:
            head, parts = self._sample(number, how) if self.packed else self._row(number, how)
        except BadRow as error:
            head, parts = "cannot be written", [warning(str(error))]
        title = el("div", el("b", f"{name.capitalize()} {number + 1:,}"), f" · {head}", class_="lab-row-head")
        css = f"lab-chat{' lab-packed' if self.packed else ''}"
        return el("div", title, *parts, class_=css, role="group", aria_label=f"{name} {number + 1}")

    def _row(self, number: int, how: str) -> tuple[str, list[Html]]:
        row, fault = self.rows[number], self.faults.get(number, "")
        if how == VIEWS[2]:
            warned = [warning(fault)] if fault else []
            return row.where if isinstance(row, Row) else row.id, [*warned, self._raw(row)]
        if isinstance(row, Row):
            return row.where, unwritten(_turns_in_file(row, fault), fault)
        assert self.view is not None
        if fault:
            turns = row.messages or (_turn("prompt", row.instruction, row.input), _turn("answer", row.output))
            more = [_turn("rejected", row.rejected)] if row.rejected else []
            return f"{row.id} · cannot be written", unwritten([*turns, *more], fault)
        form, loss_on = self.view.form, self.data.loss_on
        written = form.row(row, loss_on)
        ids, labels, rejected, counted = written.ids, written.labels, None, Sample("", written.ids, written.labels)
        if row.rejected:
            (counted,) = encode(form.tokenizer, [row], form, NO_LIMIT, loss_on)[0]
            ids, labels, rejected = counted.ids, counted.labels, documents([counted])[1]
        head = f"{row.id} · {self.view.learnt(ids, labels, counted.counted)}"
        notes = [] if row.output.strip() else [warning("This row has no output. It is dropped.")]
        if max(len(part.ids) for part in documents([counted])) > self.data.max_tokens:
            notes.append(warning(f"Longer than data.max_tokens = {self.data.max_tokens:,}. This row is dropped."))
        if how == VIEWS[1]:
            return head, [*notes, self.view.rendered(row, written)]
        return head, [*notes, *self.view.tokens(row, written, rejected)]

    def _sample(self, number: int, how: str) -> tuple[str, list[Html]]:
        sample = self.packed[number]
        assert self.view is not None
        pieces = len(sample.starts) + 1
        room = (
            f"{pieces} piece{'s' * (pieces > 1)} of documents, none of which sees another"
            if pieces > 1
            else "one piece"
        )
        head = f"{room} · {self.view.learnt(sample.ids, sample.labels, sample.counted)}"
        if how == VIEWS[2]:
            row = next(row for row in self.rows if isinstance(row, Example) and row.id == sample.id)
            return f"its first document is of {sample.id}", [self._raw(row)]
        if how == VIEWS[1]:
            texts = (self.view.form.tokenizer.decode(part.ids) for part in documents([sample]))
            return head, [el("pre", visible(text), class_="lab-rendered") for text in texts]
        return head, self.view.documents(sample)

    @cached_property
    def _in_file(self) -> Mapping[str, Row]:
        """The rows of a custom task as they are in its file, by id."""
        return raw_rows(self.data.task, "train", _folder(self.data)) if self.data.task.startswith(PREFIX) else {}

    def _raw(self, row: Example | Row) -> Html:
        """Return the fields of a row as JSON: those in the file of a custom task, else those that its task reads."""
        found = row if isinstance(row, Row) else self._in_file.get(row.id)
        content: Any = found.content if found else {k: v for k, v in asdict(row).items() if v}
        return el("pre", visible(json.dumps(content, indent=2, ensure_ascii=False, default=str)), class_="lab-rendered")


def _all_text(row: Example | Row) -> str:
    content: Any = row.content if isinstance(row, Row) else [row.id, row.instruction, row.input, row.output, row.answer]
    chat = [] if isinstance(row, Row) else [row.rejected, *(str(turn.get("content", "")) for turn in row.messages)]
    return "\n".join(map(str, content.values() if isinstance(content, dict) else [*content, *chat]))


def _folder(data: DataSpec) -> Path | None:
    return Path(data.root).expanduser() if data.root else None


def _turn(role: str, *said: str) -> dict[str, str]:
    return {"role": role, "content": "\n\n".join(filter(None, said))}


def _turns_in_file(row: Row, fault: str) -> list[Any]:
    """Return the turns of a row that cannot be read, in the column that the message names."""
    content = row.content if isinstance(row.content, dict) else {}
    named = re.search(r"field '([^']*)' (?:turn \d+|ends)", fault)
    found = content.get(named[1]) if named else None
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            found = None
    return found if isinstance(found, list) else [{"role": key, "content": value} for key, value in content.items()]


def make_preview(spec: RunSpec, rows: Rows, tokenizer: Any) -> Preview:
    """Return the preview of rows; those that cannot be written are in it with the reason.

    Raises:
        BadSpec: the rows cannot be written at all.
    """
    data, train, faults = spec.data, rows.train, dict[int, str]()
    if data.form == "text" or any(row.template == TEXT for row in train):
        samples, _ = rows.samples(tokenizer, data)
        whole = encode_text(tokenizer, train, NO_LIMIT, control=data.control_tokens == "allow")[0]
        lengths = [len(document.ids) for document in documents(whole)]
        plain = get_format(tokenizer, "plain", None, data.control_tokens)
        return Preview(data, RowView(plain, "all"), train, samples, lengths)
    form = rows.training_format(tokenizer, data)
    view = RowView(form, data.loss_on)
    try:
        samples = list(rows.samples(tokenizer, data)[0])  # kept there, for `check_rows`
    except LabError:
        samples = []
    kept = {sample.id for sample in samples}
    for number, example in enumerate(train):
        try:
            samples += [] if example.id in kept else encode(tokenizer, [example], form, NO_LIMIT, data.loss_on)[0]
        except BadRow as error:
            faults[number] = str(error)
        except BadSpec:  # it has no output
            continue
    marked = [number for number, row in enumerate(train) if number in faults or view.has_control(row)]
    lengths = [max(len(part.ids) for part in documents([sample])) for sample in samples]
    return Preview(data, view, train, (), lengths, faults, marked)


def unread(spec: RunSpec, error: BadRow) -> Preview | None:
    """Return the preview of the one row of a file that cannot be read; None if the message names no row."""
    if not spec.data.task.startswith(PREFIX):
        return None
    rows = raw_rows(spec.data.task, "train", _folder(spec.data)).values()
    found = next((row for row in rows if str(error).startswith(f"{row.where}: ")), None)
    return Preview(spec.data, None, [found], faults={0: str(error)}) if found else None


def template_line(spec: RunSpec, form: Format) -> Html:
    """Return which template writes the rows, and what of them is learnt."""
    whose = {"chat": f"that of {spec.base}"}.get(form.name, "given in the spec") if form.chat else "plain"
    learnt = LEARNT[spec.data.loss_on]
    read_as = "tokens" if spec.data.control_tokens == "allow" else "text"
    told = f"Template: {form.name}, {whose}. Learnt: {learnt}. Control tokens in the data are {read_as}."
    text = [el("details", el("summary", "The template"), el("pre", visible(form.chat), class_="lab-rendered"))]
    notes = [el("div", f"⚠ {found}", class_="lab-flag") for found in template_notes(spec.base, form)]
    return el("div", told, *notes, *(text if form.chat else []), class_="lab-note")


def length_histogram(counts: Sequence[int], limit: int, unit: str = "rows") -> go.Figure:
    """Return a histogram of the lengths of rows or documents, in tokens, with the maximum length."""
    figure, over = go.Figure(), sum(count > limit for count in counts)
    words = f"{over:,} of {len(counts):,} {unit} exceed max_tokens = {limit:,}"
    whole = "tokens of prompt and answer" if unit == "rows" else "tokens"
    style(figure, f"Length of the {unit}", words, whole, unit, 300)
    figure.add_histogram(x=list(counts), marker={"color": BLUE}, showlegend=False, nbinsx=40)
    figure.add_vline(x=limit, line={"color": ORANGE, "dash": "dash", "width": 1.5})
    return figure


def contamination_warning(name: str, found: dict[str, Any]) -> str:
    """Return a warning about test rows that are in the training data; "" if there are none."""
    if not found["exact"] and not found["ngram"]:
        return ""
    return (
        f"{name}: {found['exact']} of {found['total']} test rows are in the training data verbatim, and "
        f"{found['ngram']} share most of their {found['n']}-grams with it. Scores on them are too high: remove them "
        "from the training data, or report the contamination."
    )


@dataclass(frozen=True)
class Look:
    """The rows of a spec, read.

    Attributes:
        preview: the rows; None if none can be shown.
        template: markup of the line about the template.
        warnings: what is wrong, as text.
        rows: number of rows to train on, without those held out.
        lengths: of the examined rows or documents, in tokens.
        examined: number of rows that are tokenised.
    """

    preview: Preview | None
    template: str = ""
    warnings: str = ""
    rows: int = 0
    lengths: Sequence[int] = ()
    examined: int = 0

    @property
    def unit(self) -> str:
        """What the lengths are of."""
        return "documents" if self.preview and self.preview.packed else "rows"

    def facts(self, data: DataSpec, batch: int) -> str:
        """Return number of rows, those that are too long, and tokens of a step, in one line."""
        over = sum(length > data.max_tokens for length in self.lengths)
        kept = [length for length in self.lengths if length <= data.max_tokens]
        step = f"{batch * sum(kept) / len(kept):,.0f} tokens/step" if kept else "nothing to learn"
        return f"{self.rows:,} rows · {over:,} too long · {step}"


def look(spec: RunSpec) -> Look:
    """Read the rows of a spec as a run would, and tokenise the first ones. Takes seconds.

    Raises:
        LabError: there are no rows to show.
    """
    if spec.adapter is None:
        raise BadSpec("A bare base is not trained, so there are no rows to show. Choose a method first.")
    base = Blueprint(*spec.base_parts)
    tokenizer = base.tokenizer
    if tokenizer is None:
        raise BadSpec(f"{spec.base} is a random model without a tokenizer; it cannot read text.")
    try:
        rows = read_rows(spec)
    except BadRow as error:
        return Look(unread(spec, error), warnings=str(error))
    first = replace(rows, train=rows.train[: spec.data.validation + HISTOGRAM_ROWS])
    shown = make_preview(spec, first, tokenizer)
    notes = [*first.notes]
    if shown.view and not shown.packed:
        template: str = template_line(spec, shown.view.form)
        notes = template_notes(spec.base, shown.view.form)
    else:
        template = note(" ".join(notes))
    warnings = "\n".join(_warnings(spec, base, first, rows, notes))
    count = len(rows.train) - spec.data.validation
    examined = min(count, len(first.train))
    return Look(shown, template, warnings, count, shown.lengths, examined)


def _warnings(spec: RunSpec, base: Blueprint, first: Rows, rows: Rows, known: Sequence[str]) -> list[str]:
    """Return what a run would say of its first rows but what is known, and warn of rows that are in the test data."""
    found = []
    try:
        check_rows(spec, first, base)
    except LabError as error:
        found.append(str(error))
    found += [remark for remark in row_remarks({"rows": first.told()}) if remark not in known]
    if found and len(first.train) < len(rows.train):
        found.append(f"Only the first {len(first.train):,} of {len(rows.train):,} rows are examined.")
    found_in = contamination.overlaps(rows.train, rows.test)
    leaks = (contamination_warning(name, found) for name, found in found_in.items())
    return found + [text for text in leaks if text]
