"""Choose what is learnt and see it as the model will: tokens, lengths, and whether the test is among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as W
import plotly.graph_objects as go

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.models import loading
from llm_adapters_lab.results.plots.style import BLUE, ORANGE, style
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks import contamination
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.prompts import TEMPLATES
from llm_adapters_lab.tasks.registry import all_tasks, get_task
from llm_adapters_lab.tasks.spec import DataSpec
from llm_adapters_lab.tasks.tokens import IGNORED, Sample, encode
from widgets.figures.figure_view import picture
from widgets.forms.form import Form
from widgets.kit.errors import message, note, why
from widgets.kit.panel import Panel

SHOWN = 3
MEASURED = 2000
"""So many rows are tokenised for the histogram."""
NO_LIMIT = 2**62


def tokens(tokenizer: Any, sample: Sample) -> Html:
    """Return a sample as markup: a box for each token, shaded where the loss does not count it."""
    spans = []
    for place, (token, label) in enumerate(zip(sample.ids, sample.labels, strict=True)):
        text = tokenizer.decode([token])
        if str(tokenizer.convert_ids_to_tokens(token)).startswith("▁") and not text.startswith(" "):
            text = f" {text}"  # a word by itself loses its space
        masked = label == IGNORED or place == 0  # nothing predicts the first
        back = "rgba(128,136,144,0.25)" if masked else "rgba(0,114,178,0.22)"
        look = f"background: {back}; border-radius: 3px; margin: 0 1px; white-space: pre-wrap"
        shown = text.replace("\n", "↵\n") or " "
        spans.append(el("span", shown, style=look, title=f"{token}: {'not learnt' if masked else 'learnt'}"))
    box = "font-family: var(--jp-code-font-family, monospace); line-height: 1.7; margin: 6px 0; max-width: 900px"
    return el("div", *spans, style=box)


def lengths(counts: Sequence[int], limit: int) -> go.Figure:
    """Show how long the rows are, in tokens, and which are too long to be learnt."""
    figure, over = go.Figure(), sum(count > limit for count in counts)
    words = f"{over} of {len(counts)} rows longer than max_tokens = {limit}: they are left out"
    style(figure, "Length of the rows, prompt and answer", words, "tokens", "rows", 300)
    figure.add_histogram(x=list(counts), marker={"color": BLUE}, showlegend=False, nbinsx=40)
    figure.add_vline(x=limit, line={"color": ORANGE, "dash": "dash", "width": 1.5})
    return figure


def leak_words(name: str, found: dict[str, Any]) -> str:
    """Return what to say about test rows that occur in training; "" if none does."""
    if not found["exact"] and not found["ngram"]:
        return ""
    return (
        f"{name}: {found['exact']} of {found['total']} test rows are in the training data word for word, "
        f"{found['ngram']} in most of their wording. Scores on them are too good; leave such rows out, or say so."
    )


class Data(Panel):
    """Form for the data, and on request a look at the rows.

    Attributes:
        widget: what is shown.
        form: fields of `DataSpec`; a task of the list, or ``own:FILE?...``.
        look: button that reads the rows and shows them.
        prompts: the first rows, token by token.
        warning: what is wrong with the rows: errors, leaks, rows too long.
        plot: the histogram of lengths.
    """

    def __init__(self, spec: RunSpec | None = None) -> None:
        """Build the panel around a spec: its base gives the tokenizer, its seed the order, its eval the test rows."""
        super().__init__()
        self._spec = spec or RunSpec()
        learnable = [name for name, task in all_tasks().items() if "train" in task.splits]
        offers = {"task": [*learnable, "own:FILE?answer=COLUMN&form=number"], "template": list(TEMPLATES)}
        self.form: Form[DataSpec] = Form(DataSpec, self._spec.data, offers=offers, prefix="data.")
        self.form.observe(self._changed)
        self.about, self.prompts, self.warning, self.plot = W.HTML(), W.HTML(), W.HTML(), W.Output()
        self.look: Any = W.Button(description="Look at the rows", tooltip="as the model sees them")
        self.look.on_click(self._look)
        parts = [self.about, self.form.widget, self.look, self.warning, self.prompts, self.plot]
        self.widget: Any = W.VBox(parts)
        self._changed(self.form)

    @property
    def spec(self) -> RunSpec | None:
        """The spec with the data chosen here, or None while something is wrong with them."""
        return self._spec.model_copy(update={"data": self.form.value}) if self.form.value else None

    @spec.setter
    def spec(self, spec: RunSpec) -> None:
        self._spec = spec
        self.form.value = spec.data

    def look_with(self, spec: RunSpec) -> None:
        """Take all but the data from a spec that was edited elsewhere; rows that would now look different go."""
        before, self._spec = self._spec, spec
        if any(getattr(before, name) != getattr(spec, name) for name in ("base", "seed", "eval", "trust_remote_code")):
            self._forget()

    def _changed(self, form: Form[DataSpec]) -> None:
        self._forget()
        self.about.value = ""
        if form.value:
            task = get_task(form.value.task)
            self.about.value = note(f"{task.summary} {task.source}".strip())
        self._tell()

    def _forget(self) -> None:
        self.prompts.value = self.warning.value = ""
        self.plot.outputs = ()

    def _look(self, _: Any) -> None:
        self._forget()
        try:
            self._show()
        except Exception as error:  # an exception in a callback is seen nowhere else
            self.warning.value = message(why(error))

    def _show(self) -> None:
        spec = self.spec
        if spec is None:
            raise BadSpec("Correct the fields above first.")
        if spec.adapter is None:
            raise BadSpec("A bare base learns nothing, so there are no rows to show. Choose an adapter first.")
        tokenizer = loading.tokenizer(spec.base, trust_remote_code=spec.trust_remote_code)
        if tokenizer is None:
            raise BadSpec(f"{spec.base} is a random model without a tokenizer; it cannot read text.")
        rows = read_rows(spec)
        name = spec.data.template or get_task(spec.data.task).template
        samples, _ = encode(tokenizer, rows.train[:MEASURED], name, NO_LIMIT, spec.data.loss_on)
        fitting = [sample for sample in samples if len(sample.ids) <= spec.data.max_tokens]
        legend = note("grey: read, but not learnt; blue: what the loss counts; ↵ is a line break")
        self.prompts.value = legend + "".join(tokens(tokenizer, sample) for sample in (fitting or samples)[:SHOWN])
        self.warning.value = message("\n".join(self._faults(spec, samples, rows.train, rows.test)))
        self.plot.outputs = (picture(lengths([len(s.ids) for s in samples], spec.data.max_tokens)),)

    def _faults(
        self, spec: RunSpec, samples: Sequence[Sample], train: Sequence[Example], test: dict[str, list[Example]]
    ) -> list[str]:
        long = sum(len(sample.ids) > spec.data.max_tokens for sample in samples)
        of = "" if len(samples) == len(train) else " first"
        found = [f"{long} of the{of} {len(samples)} rows are longer than data.max_tokens and left out."] if long else []
        if long == len(samples):
            found = [f"All{of} {long} rows are longer than data.max_tokens = {spec.data.max_tokens}. Raise it."]
        return found + [
            text for name, asked in test.items() if (text := leak_words(name, contamination.overlap(train, asked)))
        ]
