"""The playground: one prompt, and the answers of the base and of the adapted model side by side.

Prompts and stop rules are those of the evaluation. Each token is computed outside the kernel's event loop, so a click
on Stop takes effect at the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.evaluation.decoding import Sampler, StopRule, check_fits, make_sampler, stream
from llm_adapters_lab.evaluation.scoring import RULES
from llm_adapters_lab.files import read_json
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import Format, get_format
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import prompt_ids
from widgets.kit.elements import Collapsible, button, column, field, row, show_if, text_area
from widgets.kit.loaded_runs import LoadedRun
from widgets.kit.panel import error_markup, errors_in, guarded, message, note
from widgets.panels.finished_run import FinishedRunPanel, schedule

RAW = "none (raw text)"
MAX_NEW_TOKENS = 4096
GREEDY = "temperature 0: greedy decoding, as in the evaluation"


def text_box(text: str, css: str = "lab-box") -> Html:
    """Return the markup of a text in a box, with its line breaks and spaces."""
    return el("pre", text, class_=css, tabindex="0")


class Answer:
    """One answer: its text, tokens, and the seconds of computation so far."""

    def __init__(self, name: str) -> None:
        """Start empty."""
        self.name, self.box, self.foot = W.Label(name, style={"font_weight": "bold"}), W.HTML(), W.Label()
        self.widget = W.VBox([self.name, self.box, self.foot], layout=W.Layout(flex="1 1 320px", min_width="0"))
        self.clear()

    def clear(self) -> None:
        """Remove the answer."""
        self.tokens: list[int] = []
        self.seconds = 0.0
        self.show("", "")

    def show(self, text: str, verdict: str) -> None:
        """Show the answer so far and a verdict on it."""
        count = len(self.tokens)
        speed = count / max(self.seconds, 1e-9)
        words = f"{count} token{'s' * (count != 1)} · {speed:.0f} tokens/s" if count else ""
        self.text, self.box.value = text, text_box(text)
        self.foot.value = " · ".join(part for part in (words, verdict) if part)


class AnswerPair:
    """The answers of the base and of the adapted model; set `stopped` to stop at the next token."""

    def __init__(self) -> None:
        """Start empty."""
        self.base, self.adapted, self.stopped = Answer("base"), Answer("with the adapter"), False
        layout = W.Layout(flex_flow="row wrap", grid_gap="0 16px")
        self.widget = W.HBox([self.base.widget, self.adapted.widget], layout=layout)

    def clear(self) -> None:
        """Remove both answers."""
        self.base.clear()
        self.adapted.clear()

    async def generate(
        self,
        loaded: LoadedRun,
        ids: list[int],
        form: Format | None,
        limit: int,
        new_sampler: Callable[[], Sampler],
        judge: Callable[[str], str],
    ) -> None:
        """Generate both answers, alternating token by token, until both have ended or `stopped` is set.

        Each token is computed in another thread, so the event loop stays responsive.

        Args:
            loaded: the model.
            ids: token ids of the prompt.
            form: how it is written, for what ends an answer; without one, only the end token and `limit` do.
            limit: maximum number of tokens per answer.
            new_sampler: returns the sampler of one answer.
            judge: returns the verdict on a complete answer.

        Raises:
            BadSpec: the prompt is empty or too long.
        """
        await asyncio.to_thread(_check, loaded, ids, limit)
        ended = StopRule(loaded.model, loaded.tokenizer, form)
        active = [(side, stream(loaded.model, ids, limit, ended, new_sampler())) for side in (self.base, self.adapted)]
        while active:
            for side, tokens in list(active):
                began = time.perf_counter()
                token = await asyncio.to_thread(_step, loaded, tokens, side is self.base)
                if self.stopped:
                    return
                side.seconds += time.perf_counter() - began
                if token is not None:
                    side.tokens.append(token)
                text = form.answer_text(side.tokens) if form else _decode(loaded.tokenizer, side.tokens)
                if token is None:
                    active.remove((side, tokens))
                    side.show(text, judge(text))
                else:
                    side.show(text.rstrip("\ufffd"), "")  # the bytes of one character may span several tokens


def _decode(tokenizer: Any, tokens: list[int]) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text


def _check(loaded: LoadedRun, ids: list[int], limit: int) -> None:
    with loaded.lock:
        check_fits(loaded.model, ids, limit)


def _step(loaded: LoadedRun, tokens: Iterator[int], bare: bool) -> Any:
    """Return the next token of an answer, or None at its end."""
    with loaded.lock:
        if not bare:
            return next(tokens, None)
        with loaded.injection.disabled():
            return next(tokens, None)


class ChatPanel(FinishedRunPanel):
    """A question, its settings, and two answers.

    Attributes:
        question: the instruction.
        input: the input of the instruction, if it has one.
        template: prompt template, or `RAW`.
        both: the answers.
    """

    def __init__(self, root: str | Path = "runs", run_id: str = "") -> None:
        """Build the panel; the model is loaded for the first question.

        Args:
            root: folder of all runs.
            run_id: any unambiguous prefix of the id of a run; by default, the newest run.
        """
        super().__init__(root, run_id)
        self._busy = False
        self._example: Example | None = None
        self._asked: Format | None = None
        self._build()
        for box in (self.question, self.input, self.template):
            box.observe(self._changed, "value")
        self.examples.task.observe(self._another, "value")
        self.examples.another.on_click(self._another)
        self._picked()

    @property
    def prompt(self) -> str:
        """The prompt as the model gets it."""
        return self._written()[0]

    def _written(self) -> tuple[str, list[int], Format | None]:
        """Return the prompt, its token ids, and how it is written."""
        if not self.run:
            return "", [], None
        tokenizer = self.examples.tokenizer
        if self.template.value == RAW:
            text = "\n".join(part for part in (self.question.value, self.input.value) if part)
            return text, prompt_ids(tokenizer, text), None
        system = self.run.spec.data.system if prompts.is_chat(self.template.value) else None
        form = get_format(tokenizer, self.template.value, system)
        if self._asked and self._asked.name == form.name:
            form = self._asked  # with its system prompt
        example = self._example or Example("", self.question.value, self.input.value, "", "")
        ((text, ids),) = form.prompts([example], self.examples.shots() if self.examples.task.value else ())
        return text, ids, form

    def close(self) -> None:
        """Stop generating and release the model."""
        self.both.stopped = True
        super().close()

    async def answer(self) -> None:
        """Generate both answers until both have ended or Stop is clicked."""
        if self._busy:
            return
        self._set_status(True, "loading the model …")
        self.problem.value, self.both.stopped = "", False
        self.both.clear()
        try:
            loaded = await self.loaded()
            _, ids, form = self._written()
            self.status.value = "generating …"
            make = partial(make_sampler, self.temperature.value, self.seed.value)
            if not self.both.stopped:
                await self.both.generate(loaded, ids, form, self.limit.value, make, self._verdict)
        except Exception as error:
            self.problem.value = error_markup(error)
            self._set_status(False, "")
        else:
            self._set_status(False, "stopped" if self.both.stopped else "done")

    def _verdict(self, text: str) -> str:
        """Return how the evaluation would judge an answer; "" if there is no gold answer."""
        if self._example is None or self.run is None:
            return ""
        task, spec = get_task(self.examples.task.value), self.run.spec.eval
        found, right = task.judge(text, self._example.answer, spec.extraction or RULES[spec.protocol])
        if found is None:
            return "no answer in the requested format"
        return f"read as {found} {'✓' if right else '✗'}"

    def _build(self) -> None:
        self.both, self.gold, self.shown = AnswerPair(), W.Label(), W.HTML()
        self.question = text_area("question", 4, placeholder="Type a question, or take an example.")
        self.input = text_area("input of the question", 2)
        self.template = field(
            W.Dropdown, "template", "300px", options=[*((name, name) for name in prompts.TEMPLATES), (RAW, RAW)]
        )
        self.limit = field(
            W.BoundedIntText,
            "new tokens",
            "150px",
            value=32,
            min=1,
            max=MAX_NEW_TOKENS,
            tooltip="maximum length of an answer",
        )
        self.temperature = field(W.BoundedFloatText, "temperature", "150px", min=0, max=5, step=0.1, tooltip=GREEDY)
        self.seed = field(W.BoundedIntText, "seed", "120px", min=0, max=2**31 - 1, tooltip="for sampling")
        self.generate = button("Generate", "Generate both answers", "primary", click=lambda _: schedule(self.answer))
        self.stop = button("Stop", "Stop at the next token", disabled=True, click=self._stop)
        hint = W.HTML(note(GREEDY))
        text = [row(self.examples.widget, self.template), self.question, self.input, self.gold]
        settings = row(self.limit, self.temperature, self.seed, hint)
        act = [settings, row(self.generate, self.stop, self.status), self.problem]
        seen = Collapsible("The prompt as the model sees it", self.shown)
        self.widget = column(self.picker, *text, *act, self.both.widget, seen.widget)

    @guarded
    def _picked(self) -> None:
        self.both.stopped, self.status.value = True, ""
        self.both.clear()
        spec = self.run.spec if self.run else None
        self.both.adapted.name.value = f"with the adapter: {spec.adapter.type}" if spec and spec.adapter else ""
        with self.silently():
            self.examples.offer(spec)
        self._take()

    @guarded
    def _another(self, _: Any) -> None:
        if not self.quiet:
            self._take()

    def _take(self) -> None:
        """Take the next example of the task, with template and length as in the evaluation."""
        self._example = self._asked = None
        try:
            with self.silently():
                if self.examples.task.value:
                    self.limit.value = self.examples.max_new_tokens
                    self._offer_templates()
                    example = self.examples.take()
                    self.question.value, self.input.value = example.instruction, example.input
                    self._example = example
        finally:
            self._changed()

    def _changed(self, change: Any = None) -> None:
        """Show the prompt; an edited question has no gold answer."""
        if self.quiet:
            return
        kept = self._example
        if kept and (kept.instruction, kept.input) != (self.question.value, self.input.value):
            self._example = None
        show_if(self.input.value or (kept and kept.input), self.input)
        self.gold.value = f"gold answer: {self._example.answer}" if self._example else ""
        show_if(self._example, self.gold)
        with errors_in(self.problem):
            self.problem.value = ""
            self.shown.value = ""
            self.shown.value = text_box(self.prompt, "lab-box lab-prompt")
            self.problem.value = message(self._mismatch())

    def _offer_templates(self) -> None:
        """Offer the plain templates, the base's own, and those of the run; that of its evaluation is selected."""
        self._asked, own = self.examples.asked, getattr(self.examples.tokenizer, "chat_template", None)
        names = [prompts.CHAT] * bool(own)
        trained = self.run.spec.data.template if self.run else None
        names += [given for given in (trained, self._asked.chat) if given and prompts.is_chat(given) and given != own]
        names = list(dict.fromkeys([*names, *prompts.TEMPLATES]))
        self.template.options = [(prompts.short_name(name), name) for name in names] + [(RAW, RAW)]
        chat = self._asked.chat if self._asked.name != prompts.CHAT else ""
        self.template.value = chat or self._asked.name

    def _mismatch(self) -> str:
        """Return in what the prompt differs from those of the training and of the evaluation; "" if in nothing."""
        if not self.run or not self.run.spec.adapter:
            return ""
        spec, own = self.run.spec, getattr(self.examples.tokenizer, "chat_template", None)
        file = self.run.folder / "adapter" / "adapter.json"
        known = read_json(file).get("prompt", {}) if file.is_file() and spec.data.form != "text" else {}
        scored = self._asked if spec.eval.tasks else None
        used = {"trained": known.get("template"), "scored": scored and (scored.chat or scored.name)}
        this = own if self.template.value == prompts.CHAT else self.template.value
        others: dict[str, list[str]] = {}
        for done, template in used.items():
            if template and template != this:
                name = prompts.CHAT if template == own else prompts.short_name(template)
                others.setdefault(name, []).append(done)
        told = " and ".join(f"{' and '.join(done)} with the prompt {name!r}" for name, done in others.items())
        return f"The adapter was {told}; this one is {prompts.short_name(self.template.value)!r}." if told else ""

    def _set_status(self, busy: bool, words: str) -> None:
        self._busy = self.generate.disabled = busy
        self.stop.disabled, self.status.value = not busy, words

    def _stop(self, _: Any) -> None:
        self.both.stopped = True
