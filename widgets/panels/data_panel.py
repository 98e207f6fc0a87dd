"""The panel for the training data: a form, and a preview of the rows as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as W
import plotly.graph_objects as go

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.events import row_remarks
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.results.plots.style import BLUE, ORANGE, style
from llm_adapters_lab.runs.preflight import check_rows
from llm_adapters_lab.runs.rows import Rows, read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks import contamination
from llm_adapters_lab.tasks.prompts import TEMPLATES
from llm_adapters_lab.tasks.registry import all_tasks, get_task
from llm_adapters_lab.tasks.spec import DataSpec
from llm_adapters_lab.tasks.tokens import IGNORED, Sample, encode
from widgets.figures.figure_view import figure_output
from widgets.forms.form import Form
from widgets.kit.elements import button
from widgets.kit.loaded_runs import token_texts
from widgets.kit.panel import Panel, errors_in, message, note

PREVIEW_ROWS = 3
"""Number of rows in the preview."""
HISTOGRAM_ROWS = 2000
"""Maximum number of rows that are tokenised for the histogram."""
NO_LIMIT = 2**62


def token_markup(tokenizer: Any, sample: Sample) -> Html:
    """Return a sample as markup: a box for each token, grey if it is masked in the loss."""
    spans = []
    texts = token_texts(tokenizer, sample.ids)
    for i, (token, label, text) in enumerate(zip(sample.ids, sample.labels, texts, strict=True)):
        masked = label == IGNORED or i == 0  # nothing predicts the first token
        look, tip = ("lab-token lab-masked", "masked") if masked else ("lab-token", "in the loss")
        spans.append(el("span", text.replace("\n", "↵\n") or " ", class_=look, title=f"{token}: {tip}"))
    return el("div", *spans, class_="lab-tokens")


def length_histogram(counts: Sequence[int], limit: int) -> go.Figure:
    """Return a histogram of the lengths of rows, in tokens, with the maximum length."""
    figure, over = go.Figure(), sum(count > limit for count in counts)
    words = f"{over} of {len(counts)} rows exceed max_tokens = {limit}"
    style(figure, "Length of the rows", words, "tokens of prompt and answer", "rows", 300)
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
        prompts: these rows, token by token.
        warning: errors, contamination, rows that are too long.
        plot: the histogram of lengths.
    """

    def __init__(self, spec: RunSpec | None = None) -> None:
        """Build the panel around a spec, which provides tokenizer, seed and evaluation tasks."""
        super().__init__()
        self._spec = spec or RunSpec()
        trainable = [name for name, task in all_tasks().items() if "train" in task.splits]
        offers = {"task": [*trainable, "own:FILE?answer=COLUMN&form=number"], "template": list(TEMPLATES)}
        self.form: Form[DataSpec] = Form(DataSpec, self._spec.data, offers=offers, prefix="data.")
        self.form.observe(self._changed)
        self.about, self.prompts, self.warning, self.plot = W.HTML(), W.HTML(), W.HTML(), W.Output()
        self.preview = button("Preview rows", "The rows as the model sees them", click=self._preview)
        self.widget = W.VBox([self.about, self.form.widget, self.preview, self.warning, self.prompts, self.plot])
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
        if any(getattr(before, name) != getattr(spec, name) for name in ("base", "seed", "eval", "trust_remote_code")):
            self._clear()

    def _changed(self, form: Form[DataSpec]) -> None:
        self._clear()
        self.about.value = ""
        if form.value:
            task = get_task(form.value.task)
            self.about.value = note(f"{task.summary} {task.source}".strip())
        self._notify()

    def _clear(self) -> None:
        self.prompts.value = self.warning.value = ""
        self.plot.outputs = ()

    def _preview(self, _: Any) -> None:
        self._clear()
        with errors_in(self.warning):
            self._show()

    def _show(self) -> None:
        spec = self.spec
        if spec is None:
            raise BadSpec("Correct the fields above first.")
        if spec.adapter is None:
            raise BadSpec("A bare base is not trained, so there are no rows to show. Choose an adapter first.")
        base = Blueprint(spec.base, spec.trust_remote_code, spec.anatomy)
        tokenizer = base.tokenizer
        if tokenizer is None:
            raise BadSpec(f"{spec.base} is a random model without a tokenizer; it cannot read text.")
        rows = read_rows(spec)
        template = spec.data.template or get_task(spec.data.task).template
        first = replace(rows, train=rows.train[: spec.data.validation + HISTOGRAM_ROWS])
        samples, _ = encode(tokenizer, first.train, template, NO_LIMIT, spec.data.loss_on)
        fitting = [sample for sample in samples if len(sample.ids) <= spec.data.max_tokens]
        legend = note("grey: masked (prompt); blue: tokens in the loss; ↵: line break")
        self.prompts.value = legend + "".join(
            token_markup(tokenizer, sample) for sample in (fitting or samples)[:PREVIEW_ROWS]
        )
        self.warning.value = message("\n".join(_warnings(spec, base, first, rows)))
        self.plot.outputs = (figure_output(length_histogram([len(s.ids) for s in samples], spec.data.max_tokens)),)


def _warnings(spec: RunSpec, base: Blueprint, first: Rows, rows: Rows) -> list[str]:
    """Return what a run would say of its first rows, and warnings about rows that are in the test data, too."""
    found = []
    try:
        check_rows(spec, first, base)
    except LabError as error:
        found.append(str(error))
    found += row_remarks({"rows": first.told()})
    if found and len(first.train) < len(rows.train):
        found.append(f"Only the first {len(first.train):,} of {len(rows.train):,} rows are examined.")
    leaks = (contamination_warning(name, contamination.overlap(rows.train, test)) for name, test in rows.test.items())
    return found + [text for text in leaks if text]
