"""The panel for the training data: a form, and a preview of the rows as the model sees them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ipywidgets as W
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
from llm_adapters_lab.tasks.prompts import CHAT, TEMPLATES, TEXT
from llm_adapters_lab.tasks.readers import Row
from llm_adapters_lab.tasks.registry import all_tasks, get_task
from llm_adapters_lab.tasks.spec import DataSpec
from llm_adapters_lab.tasks.tokens import Sample, documents
from widgets.figures.figure_view import figure_output
from widgets.figures.row_view import RowView, legend, unwritten, visible, warning
from widgets.forms.form import Form
from widgets.kit.elements import button, row, show_if
from widgets.kit.panel import Panel, errors_in, message, note

PREVIEW_ROWS = 3
"""Number of rows in the preview."""
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


class DataPanel(Panel):
    """A form for the data, and a preview of the rows.

    Attributes:
        form: fields of `DataSpec`; the task is one of the list, or ``own:FILE?...``.
        preview: button that reads and shows the first rows.
        view: which of `VIEWS` is shown.
        back, forward, flagged: buttons to the rows before and after, and to the next one with a warning.
        prompts: the rows that are shown.
        warning: errors, contamination, rows that are too long.
        plot: the histogram of lengths.
    """

    def __init__(self, spec: RunSpec | None = None) -> None:
        """Build the panel around a spec, which provides tokenizer, seed and evaluation tasks."""
        super().__init__()
        self._spec = spec or RunSpec()
        trainable = [name for name, task in all_tasks().items() if "train" in task.splits]
        own = "own:FILE?answer=COLUMN&form=number"
        offers = {"task": [*trainable, own], "template": [CHAT, *TEMPLATES]}
        self.form: Form[DataSpec] = Form(DataSpec, self._spec.data, offers=offers, prefix="data.")
        self.form.observe(self._changed)
        self.about, self.prompts, self.warning, self.plot = W.HTML(), W.HTML(), W.HTML(), W.Output()
        self.preview = button("Preview rows", "The rows as the model sees them", click=self._preview)
        self.back = button("◂ Previous", "Previous rows", click=lambda _: self._step(-1))
        self.forward = button("Next ▸", "Next rows", click=lambda _: self._step(1))
        self.flagged = button("Next warning", "Next row with a warning", click=self._to_warning)
        self.view = W.ToggleButtons(options=VIEWS, tooltip="How rows are shown", style={"button_width": "auto"})
        self.view.observe(lambda _: self._draw(), "value")
        self.place, self.template = W.HTML(), W.HTML()
        self._shown: Preview | None = None
        self._at = 0
        self._steps = row(self.view, self.back, self.forward, self.flagged, self.place)
        rows = [self.template, self._steps, self.prompts]
        self.widget = W.VBox([self.about, self.form.widget, self.preview, self.warning, *rows, self.plot])
        self._changed(self.form)

    @property
    def spec(self) -> RunSpec | None:
        """The spec with the data of this panel, or None while a field is invalid."""
        return self._spec.model_copy(update={"data": self.form.value}) if self.form.value else None

    @spec.setter
    def spec(self, spec: RunSpec) -> None:
        self._spec = spec
        self.form.value = spec.data

    def use_context(self, spec: RunSpec) -> None:
        """Take everything but the data from a spec; an outdated preview is removed."""
        before, self._spec = self._spec, spec
        names = ("base", "seed", "eval", "trust_remote_code", "tokens")
        pairs = before.train.objective != spec.train.objective
        if pairs or any(getattr(before, name) != getattr(spec, name) for name in names):
            self._clear()

    def _changed(self, form: Form[DataSpec]) -> None:
        self._clear()
        self.about.value = ""
        if form.value:
            task = get_task(form.value.task)
            self.about.value = note(f"{task.summary} {task.source}".strip())
        self._notify()

    def _clear(self) -> None:
        self._shown, self._at = None, 0
        self.prompts.value = self.warning.value = self.template.value = self.place.value = ""
        self.plot.outputs = ()
        show_if(False, self._steps)

    def _preview(self, _: Any) -> None:
        self._clear()
        with errors_in(self.warning):
            self._show()

    def _step(self, by: int) -> None:
        if self._shown:
            self._at += by * self._shown.at_once
        self._draw()

    def _to_warning(self, _: Any) -> None:
        if self._shown and (marked := self._shown.marked):
            last = self._at + self._shown.at_once - 1
            self._at = next((number for number in marked if number > last), marked[0])
        self._draw()

    def _draw(self) -> None:
        """Show the rows at the present place."""
        if (shown := self._shown) is None:
            return
        with errors_in(self.prompts):
            self._at = max(0, min(self._at, shown.count - 1))
            numbers = range(self._at, min(self._at + shown.at_once, shown.count))
            self.back.disabled, self.forward.disabled = self._at == 0, numbers.stop == shown.count
            name, last = "sample" if shown.packed else "row", f"–{numbers.stop:,}" if len(numbers) > 1 else ""
            self.place.value = note(f"{name}{'s' * bool(last)} {self._at + 1:,}{last} of {shown.count:,}")
            show_if(shown.marked, self.flagged)
            show_if(True, self._steps)
            how = self.view.value
            key = legend() if how == VIEWS[0] and shown.view else ""
            self.prompts.value = key + "".join(shown.markup(number, how) for number in numbers)

    def _show(self) -> None:
        spec = self.spec
        if spec is None:
            raise BadSpec("Correct the fields above first.")
        if spec.adapter is None:
            raise BadSpec("A bare base is not trained, so there are no rows to show. Choose an adapter first.")
        base = Blueprint(*spec.base_parts)
        tokenizer = base.tokenizer
        if tokenizer is None:
            raise BadSpec(f"{spec.base} is a random model without a tokenizer; it cannot read text.")
        try:
            rows = read_rows(spec)
        except BadRow as error:
            self._shown = unread(spec, error)
            self._draw()
            raise
        first = replace(rows, train=rows.train[: spec.data.validation + HISTOGRAM_ROWS])
        self._shown = shown = make_preview(spec, first, tokenizer)
        self._at = min(shown.faults, default=0)
        self._draw()
        notes = [*first.notes]
        if shown.view and not shown.packed:
            self.template.value = template_line(spec, shown.view.form)
            notes = template_notes(spec.base, shown.view.form)
        else:
            self.template.value = note(" ".join(notes))
        self.warning.value = message("\n".join(_warnings(spec, base, first, rows, notes)))
        unit = "documents" if shown.packed else "rows"
        self.plot.outputs = (figure_output(length_histogram(shown.lengths, spec.data.max_tokens, unit)),)


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
    leaks = (contamination_warning(name, contamination.overlap(rows.train, test)) for name, test in rows.test.items())
    return found + [text for text in leaks if text]
