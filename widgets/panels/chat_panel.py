"""Try panel: asks the base and the adapted model the same, and shows both answers side by side as they come.

Questions become prompts, and answers end, as in scoring. Each step of a model runs beside the kernel's loop, which has
its turn between two steps: a click on Stop counts at the next token.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.evaluation.scoring import RULES
from llm_adapters_lab.evaluation.streaming import picker
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.registry import get_task
from widgets.figures.answers import SideBySide, boxed
from widgets.forms.example_picker import Examples
from widgets.forms.run_picker import IntoRun, start
from widgets.kit.collapsible import Fold
from widgets.kit.errors import error_markup, guarded, note

RAW = "none: the text as it stands"
LONGEST = 4096


class TryPanel(IntoRun):
    """Question in, two answers out.

    Attributes:
        examples: questions of its tasks.
        question: the text that is asked; `further` is its input, where the question has one.
        template: prompt form, or `RAW`.
        both: the answers.
    """

    def __init__(self, root: str | Path = "runs", run_id: str = "") -> None:
        """Build the panel; nothing is loaded before the first question.

        Args:
            root: folder of all runs.
            run_id: of the run, or the beginning of it; default: the newest.
        """
        super().__init__(root, run_id)
        self._asks, self._quiet, self._front = False, False, ""
        self._example: Example | None = None
        self.status = W.Label()
        self.examples = Examples()
        self.both = SideBySide()
        self._build()
        self.pick.observe(self._picked)
        self._arrange()
        for box in (self.question, self.further, self.template):
            box.observe(self._changed, "value")
        self.examples.task.observe(self._task_chosen, "value")
        for button, callback in (
            (self.examples.another, self._another),
            (self.ask, lambda _: start(self.answer)),
            (self.halt, self._stop),
        ):
            button.on_click(callback)
        self._picked()

    @property
    def prompt(self) -> str:
        """The text that the model is given."""
        example = Example("", self.question.value, self.further.value, "", "")
        if self.template.value == RAW:
            return "\n".join(part for part in (self.question.value, self.further.value) if part)
        return self._front + prompts.prompt(example, self.template.value)

    def close(self) -> None:
        """Stop answering, and let go of the model."""
        self.both.stopped = True
        super().close()

    async def answer(self) -> None:
        """Ask both, token by token in turn, until both have ended or Stop is clicked."""
        if self._asks:
            return
        self._say(True, "loading the model…")
        self.problem.value, self.both.stopped = "", False
        self.both.clear()
        try:
            loaded = await self.pick.loaded()
            template = None if self.template.value == RAW else self.template.value
            self.status.value = "answering…"
            make = partial(picker, self.temperature.value, self.seed.value)
            if not self.both.stopped:
                await self.both.answer(loaded, self.prompt, template, self.limit.value, make, self._judged)
        except Exception as error:
            self.problem.value = error_markup(error)
            self._say(False, "")
        else:
            self._say(False, "stopped" if self.both.stopped else "done")

    def _judged(self, text: str) -> str:
        """Say how scoring would read an answer; nothing where there is no gold answer."""
        if self._example is None or self.pick.run is None:
            return ""
        task, plan = get_task(self.examples.task.value), self.pick.run.spec.eval
        found = task.extract(text, plan.extraction or RULES[plan.protocol])
        if found is None:
            return "no answer in the asked form"
        return f"reads as {found} {'✓' if task.same(found, self._example.answer) else '✗'}"

    def _build(self) -> None:
        hint = "Type a question, or take an example."
        self.question: Any = W.Textarea(placeholder=hint, tooltip="question", rows=4, layout=W.Layout(width="auto"))
        self.further: Any = W.Textarea(tooltip="input of the question", rows=2, layout=W.Layout(width="auto"))
        self.gold: Any = W.Label()
        self.template: Any = W.Dropdown(
            **{"description": "template", "options": [*prompts.TEMPLATES, RAW]},
            layout=W.Layout(width="300px", max_width="100%"),
        )
        small: dict[str, Any] = {"style": {"description_width": "initial"}}
        self.limit: Any = W.BoundedIntText(
            **{"description": "new tokens", "min": 1, "max": LONGEST, "value": 32, **small},
            **{"tooltip": "most tokens of an answer", "layout": W.Layout(width="150px")},
        )
        self.temperature: Any = W.BoundedFloatText(
            **{"description": "temperature", "min": 0, "max": 5, "step": 0.1, "value": 0, **small},
            **{"tooltip": "0: always the likeliest token, as in scoring", "layout": W.Layout(width="150px")},
        )
        self.seed: Any = W.BoundedIntText(
            **{"description": "seed", "min": 0, "max": 2**31 - 1, "value": 0, **small},
            **{"tooltip": "of the draws, where the temperature is above 0", "layout": W.Layout(width="120px")},
        )
        self.ask: Any = W.Button(description="Ask", button_style="primary", tooltip="Ask both")
        self.halt: Any = W.Button(description="Stop", disabled=True, tooltip="Stop at the next token")
        self.shown: Any = W.HTML()

    def _arrange(self) -> None:
        row = W.Layout(flex_flow="row wrap", align_items="center")
        hint = "temperature 0: always the likeliest token, as in scoring"
        self.widget: Any = W.VBox(
            [
                self.pick.widget,
                W.HBox([self.examples.widget, self.template], layout=row),
                *(self.question, self.further, self.gold),
                W.HBox([self.limit, self.temperature, self.seed, W.HTML(note(hint))], layout=row),
                W.HBox([self.ask, self.halt, self.status], layout=row),
                self.problem,
                self.both.widget,
                Fold("The prompt as the model reads it", self.shown).widget,
            ],
            layout=W.Layout(width="100%"),
        )

    @guarded
    def _picked(self) -> None:
        """Another run: offer its tasks, and forget the answers of the old one."""
        self.both.stopped, self.status.value = True, ""
        self.both.clear()
        spec = self.pick.run.spec if self.pick.run else None
        self.both.adapted.name.value = f"with the adapter: {spec.adapter.type}" if spec and spec.adapter else ""
        self._quiet = True
        try:
            self.examples.offer(spec)
        finally:
            self._quiet = False
        self._take()

    def _task_chosen(self, change: Any) -> None:
        if not self._quiet:
            self._another(None)

    @guarded
    def _another(self, button: Any) -> None:
        self._take()

    def _take(self) -> None:
        """Show the next example of the task, to be asked as it was scored."""
        self._front, self._example, self._quiet = "", None, True
        try:
            if self.examples.task.value:
                self.template.value = self.examples.template
                self.limit.value = self.examples.max_new_tokens
                self._front, example = self.examples.front(), self.examples.take()
                self.question.value, self.further.value = example.instruction, example.input
                self._example = example
        finally:
            self._quiet = False
            self._changed(None)

    def _changed(self, change: Any) -> None:
        """The question follows the boxes; one that was changed has no gold answer any more."""
        if self._quiet:
            return
        kept = self._example
        if kept and (kept.instruction, kept.input) != (self.question.value, self.further.value):
            self._example = None
        self.further.layout.display = "flex" if self.further.value or (kept and kept.input) else "none"
        self.gold.value = f"gold answer: {self._example.answer}" if self._example else ""
        self.gold.layout.display = "flex" if self._example else "none"
        self.shown.value = boxed(self.prompt, "0")

    def _say(self, asks: bool, words: str) -> None:
        self._asks = asks
        self.ask.disabled, self.halt.disabled, self.status.value = asks, not asks, words

    def _stop(self, button: Any) -> None:
        self.both.stopped = True
