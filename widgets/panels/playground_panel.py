"""The playground: prompts for the base and up to three adapters, answered side by side.

Prompts and stop rules are those of the evaluation. All adapters of a base share one copy of it; a run of another base
brings its own. Tokens are computed outside the kernel's event loop, in short turns, so that all columns grow together
and a click on Stop takes effect at the next token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.evaluation.scoring import RULES
from llm_adapters_lab.files import read_json
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results.appearance import BASE, colours, short_names
from llm_adapters_lab.results.formatting import ago
from llm_adapters_lab.results.picking import Picker, training_questions
from llm_adapters_lab.results.run_index import Entry
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import Format, get_format
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import prompt_ids
from widgets.figures.answer_grid import AnswerGrid
from widgets.figures.answer_table import AnswerTable
from widgets.forms.decoding_settings import DecodingSettings
from widgets.forms.history_list import HistoryList
from widgets.forms.prompt_box import PromptBox
from widgets.kit.answers import Answer, Voice
from widgets.kit.elements import Collapsible, button, field, segments, show_if, toolbar
from widgets.kit.loaded_runs import LoadedRun, base_key, free_memory, load_run
from widgets.kit.panel import Panel, error_markup, error_text, guarded, schedule
from widgets.kit.prompt_history import Entry as Remembered
from widgets.kit.workspace import Question, Workspace
from widgets.panels.question_picker import QuestionPicker

RAW = "none (raw text)"
MAX_ADAPTERS = 3
MAX_OFFERED = 200
"""Number of runs that can be added by name; any others are selected in Compare."""
MAX_COMPARED = 40
"""Number of tasks whose runs are compared with a question."""
MAX_PROMPTS = 200
"""Number of prompts in a batch."""
EVERY = 0.1
"""Seconds between two updates of the page while answers are generated."""
BARE, MIX = "base", "mix"
"""Keys of the columns that are no runs."""
NOTHING = "Here, a prompt is answered by the base and by up to three of your adapters, side by side, token by token."
PLACEHOLDER = "Type a question, or take an example. Shift+Enter generates."


def text_box(text: str, css: str = "lab-box") -> Html:
    """Return the markup of a text in a box, with its line breaks and spaces."""
    return el("pre", text, class_=css, tabindex="0")


class PlaygroundPanel(Panel):
    """A question, its settings, and an answer in each column.

    Attributes:
        workspace: the runs and the selection, whose first adapters answer.
        question: the instruction; in a batch, one on each line.
        input: the input of the instruction, if it has one.
        template: prompt template, or `RAW`.
        system: the system prompt of a chat.
        answers: the answers by column: "base", run ids, "mix".
        grid: shows them.
        sliders: the weights of the mix by run id.
        settings: how answers are generated.
        table: the answers to a batch.
        history: earlier prompts.
        status: what the panel is doing.
        warning: in what the prompt differs from those of the training and of the evaluation.
    """

    def __init__(self, workspace: Workspace | str | Path = "runs", run_id: str = "") -> None:
        """Build the place; models are loaded for the first question.

        Args:
            workspace: shared with the other places, or the folder of all runs.
            run_id: id of a run to select; by default, the selection stays as it is, and without any the newest answers.
        """
        super().__init__()
        self.workspace = Workspace.of(workspace)
        self._alone = self.workspace is not workspace
        self._busy = self._stopped = self._shown = False
        self._ids: tuple[str, ...] | None = None
        self._loaded: dict[str, LoadedRun] = {}
        self._voices: dict[str, Voice] = {}
        self.answers: dict[str, Answer] = {}
        self._active: dict[str, Answer] = {}
        self._flushed: dict[str, int] = {}
        self._problems: dict[str, str] = {}
        self._past: list[tuple[str, dict[str, str]]] = []
        self._example: Example | None = None
        self._asked: Format | None = None
        self._prompts: dict[str, dict[str, tuple[str, str]]] = {}
        self._question: Question | None = None
        self._kept: tuple[Example | None, str] | None = None
        self._takes = 0
        self.sliders: dict[str, Any] = {}
        self._build()
        if run_id:
            self.workspace.selection.ids = [run_id]
        self.workspace.selection.observe(self._arrange)
        self.workspace.runs.observe(self._arrange)
        for box in (self.question, self.input, self.template, self.system):
            box.observe(self._changed, "value")
        self.examples.task.observe(self._another, "value")
        self.examples.another.on_click(self._another)
        if self._alone:
            self._poll(1.0, lambda: schedule(self._look))
            self.opened()
        else:
            self._arrange()

    @property
    def entries(self) -> list[Entry]:
        """The runs that answer: the first selected ones with an adapter, else the newest."""
        known = self.workspace.runs.entries
        chosen = [known[i] for i in self.workspace.selection.ids if i in known and _answers(known[i])]
        return chosen[:MAX_ADAPTERS] or [each for each in known.values() if _answers(each)][:1]

    @property
    def names(self) -> dict[str, str]:
        """Short names of these runs, by id."""
        return short_names({entry.id: entry.fields for entry in self.entries})

    @property
    def prompt(self) -> str:
        """The prompt as the base gets it."""
        return self._written(self.examples.tokenizer, BARE, self._typed(), self._past)[0] if self.entries else ""

    def opened(self) -> None:
        """Show the place, with the question that another one has handed over."""
        self._shown = True
        self._arrange()
        question = self.workspace.question
        if question is not None and question is not self._question and self._ids:
            self._question = question
            self.mode.value = "single"
            schedule(lambda: self._take(question))

    def hidden(self) -> None:
        """Leave the place; what is being generated is finished."""
        self._shown = False

    def close(self) -> None:
        """Stop generating and release the models."""
        self._stopped = True
        self.workspace.selection.unobserve(self._arrange)
        self.workspace.runs.unobserve(self._arrange)
        self._release(())
        super().close()

    async def answer(self) -> None:
        """Generate an answer in each column until all have ended or Stop is clicked."""
        if self._busy or not self._ids:
            return
        self._set_status(True, "loading the model …")
        self.problem.value, self._stopped = "", False
        try:
            await self._load()
            if self._stopped:
                pass
            elif self.mode.value == "batch":
                await self._answer_batch()
            else:
                self._begin(self._voices)
                await self._generate()
                self._remember()
        except Exception as error:
            self.problem.value, self.problem_of = error_markup(error), "answer"
            self._set_status(False, "")
        else:
            self._set_status(False, "stopped" if self._stopped else "done")

    async def choose(self) -> None:
        """Select the runs, of the base of the first, whose training questions are most like the question.

        Of several runs of a task the one with the highest accuracy counts.
        """
        if self._busy or not self._ids or not self.question.value.strip():
            return
        self._set_status(True, "comparing the question with what runs were trained on …")
        self.problem.value, words = "", ""
        try:
            await self._load()
            chosen = await asyncio.to_thread(self._nearest, self.question.value)
            names = self.workspace.runs.names
            words = "chosen: " + ", ".join(f"{share:.2f} · {names[run_id]}" for run_id, share in chosen.items())
            if chosen:
                self._select(list(chosen))
            else:
                words = "no run was trained on questions like this one"
        except Exception as error:
            self.problem.value, self.problem_of = error_markup(error), "answer"
        self._set_status(False, words)

    def _select(self, ids: Sequence[str]) -> None:
        """Select runs, which answer the same question."""
        self._kept = (self._example, self.question.value) if self.question.value else None
        self.workspace.selection.ids = list(ids)

    def _nearest(self, text: str) -> dict[str, float]:
        """Return runs and their weights for a question; called in a thread."""
        shared, wanted = self._loaded[self._first].base, base_key(self._loaded[self._first].run.spec)
        first, best = self.entries[0].fields.get("base"), dict[str, Entry]()
        for entry in filter(_answers, list(self.workspace.runs.entries.values())):
            task, known = str(entry.fields.get("data.task")), entry.fields.get("base") == first
            if known and (task not in best or (entry.accuracy or 0) > (best[task].accuracy or 0)):
                best[task] = entry
        alike = [entry.run for entry in list(best.values())[:MAX_COMPARED] if base_key(entry.run.spec) == wanted]
        questions = {run.id: training_questions(run) for run in alike}
        with shared.using():
            return Picker(questions, shared.model, shared.tokenizer).pick(text, most=MAX_ADAPTERS)

    async def answer_mix(self) -> None:
        """Generate the answer of the mix anew, beside those of the other columns."""
        if not self.answers or self.mode.value == "batch" or not self.mixed.value or not self._voices:
            return
        if self._stopped and self._busy:
            return
        self._voices[MIX] = self._mix()
        self._begin({MIX: self._voices[MIX]})
        if self._busy:  # the loop that is generating takes it up
            return
        self._stopped = False
        self._set_status(True, "generating …")
        try:
            await self._generate()
        except Exception as error:
            self.problem.value, self.problem_of = error_markup(error), "answer"
        self._set_status(False, "stopped" if self._stopped else "done")

    # Prompts

    def _typed(self) -> Example:
        return self._example or Example("", self.question.value, self.input.value, "", "")

    def _written(
        self, tokenizer: Any, key: str, example: Example, past: Sequence[tuple[str, Mapping[str, str]]]
    ) -> tuple[str, list[int], Format | None]:
        """Return the prompt of a column, its token ids, and how it is written.

        Args:
            tokenizer: of the column's base.
            key: of the column.
            example: the question.
            past: earlier turns, each the question and the answers by column.
        """
        if self.template.value == RAW:
            text = "\n".join(part for part in (example.instruction, example.input) if part)
            return text, prompt_ids(tokenizer, text), None
        chat = prompts.is_chat(self.template.value)
        form = get_format(tokenizer, self.template.value, self.system.value if chat else None)
        shots = self.examples.shots() if self.examples.task.value and not past else ()
        if past:
            asked = "\n\n".join(part for part in (example.instruction, example.input) if part)
            turns = [text for said, answers in past for text in (said, self._said(answers, key))] + [asked, ""]
            roles = ("user", "assistant") * (len(turns) // 2)
            messages = tuple({"role": role, "content": text} for role, text in zip(roles, turns, strict=True))
            example = Example("", asked, "", "", "", messages=messages)
        ((text, ids),) = form.prompts([example], shots)
        return text, ids, form

    def _said(self, answers: Mapping[str, str], key: str) -> str:
        """Return an earlier answer of a column; one that was not there yet takes that of the first run."""
        return answers.get(key, answers.get(self._first, ""))

    def _verdict(self, text: str) -> tuple[str, bool | None]:
        """Return how the evaluation would judge an answer, and whether it is right; nothing without a gold answer."""
        if self._example is None or not self.entries:
            return "", None
        task, spec = get_task(self.examples.task.value), self.examples.spec.eval
        found, right = task.judge(text, self._example.answer, spec.extraction or RULES[spec.protocol])
        if found is None:
            return "no answer in the requested format", False
        return f"read as {found} {'✓' if right else '✗'}", right

    def _mismatch(self) -> list[str]:
        """Return in what the prompt differs from those of the training and of the evaluation, by run."""
        chat = prompts.is_chat(self.template.value)
        own = getattr(self.examples.tokenizer, "chat_template", None)
        this = own if self.template.value == prompts.CHAT else self.template.value
        told = []
        for entry in self.entries:
            templates: dict[str, list[str]] = {}
            systems: dict[str, list[str]] = {}
            for done, (template, system) in self._prompts.get(entry.id, {}).items():
                if template != this:
                    name = prompts.CHAT if template == own else prompts.short_name(template)
                    templates.setdefault(f"the prompt {name!r}", []).append(done)
                elif chat and system != self.system.value:
                    systems.setdefault(_system(system), []).append(done)
            name = "The adapter" if len(self.entries) == 1 else self.names[entry.id]
            used = f"is {prompts.short_name(self.template.value)!r}"
            for found, here in ((templates, used), (systems, f"has {_system(self.system.value)}")):
                how = " and ".join(f"{' and '.join(done)} with {words}" for words, done in found.items())
                told += [f"{name} was {how}; this one {here}."] if how else []
        return told

    # Columns

    @guarded
    def _arrange(self, _: Any = None) -> None:
        """Show the runs that answer; nothing is generated for others any more."""
        entries = self.entries
        ids = tuple(entry.id for entry in entries)
        self._offer_runs(entries)
        show_if(not ids, self._empty)
        show_if(ids, self._full)
        if ids == self._ids or not (self._shown or self._ids is None):
            return
        self._ids, self._stopped = ids, True
        self._release(ids)
        self._past, self._voices, self._prompts = [], {}, {}
        self._new_sliders(entries)
        self._draw_empty()
        with self.silently():
            self.examples.offer(entries[0].run.spec if entries else None)
        if entries:
            schedule(self._take)

    def _offer_runs(self, entries: Sequence[Entry]) -> None:
        """Offer further runs, those of the same base first."""
        runs, shown = self.workspace.runs, {entry.id for entry in entries}
        base = entries[0].fields.get("base") if entries else None
        others = [each for each in runs.entries.values() if _answers(each) and each.id not in shown]
        alike = [(runs.names[each.id], each.id) for each in others if each.fields.get("base") == base]
        other = [
            (f"{runs.names[each.id]} (other base: {Path(str(each.fields['base'])).name})", each.id)
            for each in others
            if each.fields.get("base") != base
        ]
        options = [("+ Add a run", ""), *[*alike, *other][:MAX_OFFERED]]
        with self.silently():
            if options != list(self.adder.options):
                self.adder.options = options
            self.adder.value = ""
        self.adder.disabled = len(shown) >= MAX_ADAPTERS or len(options) == 1

    def _new_sliders(self, entries: Sequence[Entry]) -> None:
        names = self.names
        before = list(self.sliders.values())
        self.sliders = {
            entry.id: W.FloatSlider(
                value=round(1 / len(entries), 2),
                min=-1,
                max=2,
                step=0.05,
                description=names[entry.id],
                tooltip=f"Weight of {names[entry.id]} in the mix",
                readout_format=".2f",
                continuous_update=False,
                style={"description_width": "initial"},
            )
            for entry in entries
        }
        for slider in self.sliders.values():
            slider.observe(lambda _: schedule(self.answer_mix), "value")
        self._weights.children = list(self.sliders.values())
        for slider in before:
            slider.close()

    def _columns(self) -> list[dict[str, Any]]:
        entries, names = self.entries, self.names
        if not entries:
            return []
        shades = colours({entry.id: entry.fields for entry in entries})
        first = entries[0].fields.get("base")
        base = Path(str(first)).name
        found = [_column(BARE, "base", base, BASE, base)]
        for entry in entries:
            own = entry.fields.get("base")
            words = "" if own == first else f"on its own base, {Path(str(own)).name}"
            if entry.id in self._loaded and _groups(self._loaded[entry.id]):
                words = "as the mean of its groups"
            several = len(entries) > 1
            title = f"{self.workspace.runs.names[entry.id]} · {entry.id}"
            found.append(_column(entry.id, names[entry.id], title, shades[entry.id], words, removable=several))
        if self.mixed.value:
            words = " + ".join(f"{slider.value:g} · {names[i]}" for i, slider in self.sliders.items())
            found.append(_column(MIX, "mix", words, "var(--lab-accent)", self._unmixed() or words))
        return found

    def _unmixed(self) -> str:
        """Return which adapters are not in the mix, and why; "" if all are."""
        names, words = self.names, []
        for run_id, loaded in self._loaded.items():
            if loaded.base is not self._loaded[self._first].base:
                words.append(f"{names[run_id]} has another base")
            elif not _mixable(loaded):
                words.append(f"{names[run_id]} does not act at sites, so its effect has no weight")
        return f"Without {'; '.join(words)}." if words else ""

    @property
    def _first(self) -> str:
        return self._ids[0] if self._ids else ""

    def _mix(self) -> Voice:
        base = self._loaded[self._first].base
        kept = {run_id: each for run_id, each in self._loaded.items() if each.base is base and _mixable(each)}
        return Voice(base, shares={each.injection.name: self.sliders[i].value for i, each in kept.items()})

    async def _load(self) -> None:
        """Load the models of all columns."""
        ids = self._ids or ()
        for number, run_id in enumerate(ids, 1):
            self.status.value = f"loading the model …{f' {number} of {len(ids)}' if len(ids) > 1 else ''}"
            if run_id not in self._loaded:
                found = await asyncio.to_thread(load_run, self.workspace.runs.run(run_id))
                if ids != self._ids:  # others are selected by now
                    return
                self._loaded[run_id] = found
        self._loaded = {run_id: self._loaded[run_id] for run_id in ids}
        voices = {BARE: Voice(self._loaded[self._first].base)}
        voices |= {i: Voice(each.base, (each.injection.name,)) for i, each in self._loaded.items()}
        self._voices = voices | ({MIX: self._mix()} if self.mixed.value else {})
        self.status.value = "generating …"

    def _release(self, kept: Sequence[str]) -> None:
        gone = [run_id for run_id in self._loaded if run_id not in kept]
        self.answers, self._active, self._voices = {}, {}, {}
        for run_id in gone:
            del self._loaded[run_id]
        if gone:
            free_memory()

    # Answers

    def _begin(self, voices: Mapping[str, Voice]) -> None:
        """Prepare an answer for each of these columns, and show all columns."""
        for key, voice in voices.items():
            _, ids, form = self._written(voice.shared.tokenizer, key, self._typed(), self._past)
            self.answers[key] = self._active[key] = self._new(voice, ids, form)
            self._flushed[key] = 0
            self._problems.pop(key, None)
            if voice.shares == {}:
                self._fail(key, "None of these adapters can be mixed.")
        self.grid.show(self._columns(), self._all_turns())

    def _new(self, voice: Voice, ids: list[int], form: Format | None) -> Answer:
        return Answer(voice, ids, form, self.settings.limit.value, self.settings.sampler())

    async def _generate(self) -> None:
        """Generate the active answers in turns, and show what they have so far."""
        shown = 0.0
        while self._active and not self._stopped:
            for key, answer in list(self._active.items()):
                await self._advance(key, answer)
            if time.monotonic() - shown > EVERY:
                shown = time.monotonic()
                self._flush()
        self._active.clear()
        self._flush()
        self.grid.turns = self._all_turns()

    async def _advance(self, key: str, answer: Answer) -> None:
        def obsolete() -> bool:
            return self._stopped or self._active.get(key) is not answer

        try:
            await asyncio.to_thread(answer.advance, obsolete)
        except LabError as error:
            if not obsolete():
                self._fail(key, self._named(error_text(error)))
        else:
            if answer.done and not obsolete():
                del self._active[key]

    def _named(self, text: str) -> str:
        """Return an error with the names of runs instead of those of their adapters."""
        for run_id, loaded in self._loaded.items():
            text = text.replace(loaded.injection.name, self.names.get(run_id, run_id))
        return text

    def _fail(self, key: str, text: str) -> None:
        self._active.pop(key, None)
        self._problems[key] = text

    def _end(self, key: str) -> dict[str, Any]:
        """Return what stands below an answer: the verdict and its size; instead of an answer, why there is none."""
        if key in self._problems:
            return {"problem": self._problems[key], "verdict": "", "foot": "", "good": None}
        answer = self.answers[key]
        count = len(answer.tokens)
        speed = count / max(answer.seconds, 1e-9)
        verdict, good = self._verdict(answer.text) if answer.done else ("", None)
        foot = f"{count} token{'s' * (count != 1)} · {speed:.0f} tokens/s" if count else ""
        return {"verdict": verdict, "foot": foot, "good": good}

    def _flush(self) -> None:
        """Show the tokens that are new since the last time."""
        part: list[dict[str, Any]] = []
        for key, answer in self.answers.items():
            known, count = self._flushed.get(key, 0), len(answer.shown)
            if count > known or key in self._problems or answer.done:
                added = {"key": key, "turn": len(self._past), "from": known, "tokens": answer.shown[known:count]}
                part.append(added | self._end(key))
                self._flushed[key] = count
        if part:
            self.grid.part = part

    def _all_turns(self) -> dict[str, list[dict[str, Any]]]:
        """Return the conversation of each column."""
        found: dict[str, list[dict[str, Any]]] = {}
        for column in self._columns():
            key = column["key"]
            turns: list[dict[str, Any]] = [
                {"asked": asked, "text": self._said(answers, key)} for asked, answers in self._past
            ]
            if key in self.answers:
                tokens = [] if key in self._problems else list(self.answers[key].shown)
                turns.append({"asked": self.question.value, "tokens": tokens, **self._end(key)})
            found[key] = turns
        return found

    def _draw_empty(self) -> None:
        """Show the columns without answers."""
        self.answers, self._active = {}, {}
        self.grid.show(self._columns(), {})

    async def _answer_batch(self) -> None:
        """Answer each line of the prompt box in each column, and fill the table."""
        lines = [line.strip() for line in self.question.value.splitlines() if line.strip()]
        if not lines:
            raise BadSpec("There is no prompt. Write one on each line.")
        if len(lines) > MAX_PROMPTS:
            raise BadSpec(f"There are {len(lines)} prompts; a batch has at most {MAX_PROMPTS}. Remove some.")
        names = [column["name"] for column in self._columns()]
        self.table.clear(["prompt", *names])
        shown = 0.0
        for number, line in enumerate(lines, 1):
            texts = []
            for key, voice in self._voices.items():
                self.status.value = f"prompt {number} of {len(lines)} …"
                try:
                    example = Example("", line, "", "", "")
                    _, ids, form = self._written(voice.shared.tokenizer, key, example, ())
                    answer = self._new(voice, ids, form)
                    while not answer.done and not self._stopped:
                        await asyncio.to_thread(answer.advance, lambda: self._stopped)
                    texts.append(answer.text)
                except LabError as error:
                    texts.append(f"✗ {self._named(error_text(error))}")
                if self._stopped:
                    break
            if self._stopped:
                break
            self.table.rows.append([line, *texts])
            if number == len(lines) or time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                self.table.show()
        self.table.show()

    # Conversation and history

    @guarded
    def _follow_up(self, _: Any) -> None:
        """Keep the conversation so far, and ask the next question of it."""
        asked = "\n\n".join(part for part in (self.question.value, self.input.value) if part)
        self._past.append((asked, {key: answer.text for key, answer in self.answers.items()}))
        self.answers, self._active, self._example = {}, {}, None
        self.grid.turns = self._all_turns()
        with self.silently():
            self.question.value = self.input.value = ""
        self.question.placeholder = "The next question of this conversation."
        self._changed()

    @guarded
    def _restart(self, _: Any = None) -> None:
        """Forget the conversation, which the question stays out of."""
        self._past = []
        self.question.placeholder = PLACEHOLDER
        self._draw_empty()
        self._changed()

    def _remember(self) -> None:
        """Keep prompt and answers in the history."""
        shown = [column for column in self._columns() if column["key"] in self.answers]
        answers = [[column["name"], self.answers[column["key"]].text] for column in shown]
        if any(text for _, text in answers):
            values = {"question": self.question.value, "input": self.input.value, "system": self.system.value}
            self.history.add({"at": time.time(), **values, "template": self.template.value, "answers": answers})

    @guarded
    def _recall(self, entry: Remembered) -> None:
        """Show an earlier prompt with its answers."""
        known = [value for _, value in self.template.options]
        with self.silently():
            self.mode.value = "single"
            self._mode_changed()
            self.question.value, self.input.value = entry["question"], entry.get("input", "")
            if entry.get("template") in known:
                self.template.value = entry["template"]
            self.system.value = entry.get("system", "")
        self._past, self.answers, self._active, self._example = [], {}, {}, None
        self._changed()
        answers = {f"past{i}": pair for i, pair in enumerate(entry["answers"])}
        columns = [_column(key, name, ago(entry["at"]), BASE, "") for key, (name, _) in answers.items()]
        turns = {key: [{"asked": "", "text": text}] for key, (_, text) in answers.items()}
        self.grid.show(columns, turns)
        self.status.value = f"from {ago(entry['at'])}; Generate answers it again"

    # The question

    async def _take(self, question: Question | None = None) -> None:
        """Take the next example of the task, or the question that another place hands over.

        Template and length are those of the evaluation.
        """
        self._takes += 1
        number = self._takes
        try:
            if question is not None and not question.task:
                self._put(None, question.text)
                with self.silently():
                    self.template.value = RAW
                self._changed()
                return
            with self.silently():
                if question is not None:
                    self.examples.offer_also(question.task)
            if not self.examples.task.value:
                return
            example, asked = await asyncio.to_thread(self._read, question.item if question else "")
            if number != self._takes:
                return
            self._asked = asked
            with self.silently():
                self.settings.limit.value = self.examples.max_new_tokens
                self._offer_templates(asked)
            kept, self._kept = self._kept, None
            self._put(*(kept or (example, "")))
        except Exception as error:
            if number == self._takes:
                self._put(None)
                self.problem.value, self.problem_of = error_markup(error), "_take"
        else:
            if self.problem_of == "_take":
                self.problem.value, self.problem_of = "", ""

    def _read(self, item: str) -> tuple[Example | None, Format]:
        """Return an example and how it is asked, and learn how the runs were trained; called in a thread."""
        asked = self.examples.asked
        for entry in self.entries:
            file = entry.run.folder / "adapter" / "adapter.json"
            spec = entry.run.spec
            known = read_json(file).get("prompt", {}) if file.is_file() and spec.data.form != "text" else {}
            used = {"trained": (known["template"], known.get("system", ""))} if known.get("template") else {}
            if entry.id == self._first and spec.eval.tasks:
                used["scored"] = (asked.chat or asked.name, asked.system)
            self._prompts[entry.id] = used
        if not item:
            return self.examples.take(), asked
        found = next((row for row in self.examples.examples() if row.id == item), None)
        if found is None:
            raise BadSpec(f"The run was not asked {item} of {self.examples.task.value}. Take another example.")
        return found, asked

    def _put(self, example: Example | None, text: str = "") -> None:
        """Show a question; a conversation ends."""
        self._example, self._past = example, []
        self.question.placeholder = PLACEHOLDER
        with self.silently():
            self.question.value = example.instruction if example else text
            self.input.value = example.input if example else ""
        if not self._busy:
            self._draw_empty()
        self._changed()

    def _offer_templates(self, asked: Format) -> None:
        """Offer the plain templates, the base's own, and those of the runs; that of the evaluation is selected."""
        own = getattr(self.examples.tokenizer, "chat_template", None)
        names = [prompts.CHAT] * bool(own)
        used = [template for each in self._prompts.values() for template, _ in each.values()]
        names += [given for given in (*used, asked.chat) if given and prompts.is_chat(given) and given != own]
        names = list(dict.fromkeys([*names, *prompts.TEMPLATES]))
        self.template.options = [(prompts.short_name(name), name) for name in names] + [(RAW, RAW)]
        chat = asked.chat if asked.name != prompts.CHAT else ""
        self.template.value = chat or asked.name
        self.system.value = asked.system or (self.examples.spec.data.system or "")

    @guarded
    def _another(self, _: Any) -> None:
        if not self.quiet:
            schedule(self._take)

    @guarded
    def _changed(self, change: Any = None) -> None:
        """Show the prompt; an edited question has no gold answer."""
        if self.quiet or self._ids is None:
            return
        kept = self._example
        if kept and (kept.instruction, kept.input) != (self.question.value, self.input.value):
            self._example = None
        chat = self.template.value != RAW and prompts.is_chat(self.template.value)
        if not chat and self._past:
            self._past = []
            self._draw_empty()
        single = self.mode.value == "single"
        show_if(single and (self.input.value or (kept and kept.input)), self.input)
        show_if(chat, self.system)
        self.gold.value = el("span", "gold answer: ", el("b", self._example.answer)) if self._example else ""
        show_if(chat and single and (self.answers or self._past), self.follow, self.restart)
        self.follow.disabled = not self.answers or bool(self._busy)
        if self._ids:
            self.seen.value = self.warning.value = ""
            lines = [el("div", f"⚠ {text}") for text in self._mismatch()]
            self.warning.value = el("div", *lines, class_="lab-warn", role="status") if lines else ""
            self.seen.value = text_box(self.prompt, "lab-box lab-prompt")

    @guarded
    def _mode_changed(self, _: Any = None) -> None:
        batch = self.mode.value == "batch"
        self.question.rows = 8 if batch else 3
        self.question.placeholder = "One prompt on each line." if batch else PLACEHOLDER
        show_if(batch, self.table.widget)
        show_if(not batch, self.grid, self.tinted, self.gold, self.examples.task, self.examples.another)
        show_if(not batch and not self._alone, self.inspect)
        self._changed()

    @guarded
    def _mix_changed(self, _: Any = None) -> None:
        show_if(self.mixed.value, self._weights)
        if self.mixed.value and self.answers and self._voices:
            schedule(self.answer_mix)
            return
        self.answers.pop(MIX, None)
        self._active.pop(MIX, None)
        self._voices.pop(MIX, None)
        self.grid.show(self._columns(), self._all_turns() if self.answers else {})

    @guarded
    def _added(self, change: Any) -> None:
        if not self.quiet and change["new"]:
            self._select([*(self._ids or ()), change["new"]])

    @guarded
    def _removed(self, change: Any) -> None:
        if run_id := change["new"]:
            self.grid.removed = ""
            self._select([known for known in self._ids or () if known != run_id])

    @guarded
    def _inspected(self, _: Any) -> None:
        """Hand the question to Inspect."""
        if self._example is not None and self._example.id:
            self.workspace.go("Inspect", Question(self.examples.task.value, self._example.id))
        else:
            self.workspace.go("Inspect", Question(text=self.prompt))

    async def _look(self) -> None:
        await self.workspace.runs.refresh_soon()

    def _set_status(self, busy: bool, words: str) -> None:
        self._busy = self.generate.disabled = self.chooser.disabled = busy
        self.stop.disabled, self.status.value = not busy, words
        if not busy:
            self._changed()

    def _stop(self, _: Any) -> None:
        self._stopped = True

    def _build(self) -> None:
        self.grid, self.examples = AnswerGrid(), QuestionPicker()
        self.settings, self.table = DecodingSettings(), AnswerTable()
        self.history = HistoryList(self.workspace.root, self._recall)
        self.examples.task.layout.width = "240px"
        self.gold, self.seen, self.warning, self.status = W.HTML(), W.HTML(), W.HTML(), W.Label()
        self.status.add_class("lab-end")
        self.question = PromptBox(label="question", placeholder=PLACEHOLDER)
        self.input = PromptBox(label="input of the question", rows=2, placeholder="Input of the question")
        for box in (self.question, self.input):
            box.observe(lambda _: schedule(self.answer), "submitted")
        self.mode = segments([("Single", "single"), ("Batch", "batch")], "One prompt, or one on each line")
        self.mode.observe(self._mode_changed, "value")
        self.adder = W.Dropdown(
            options=[("+ Add a run", "")], tooltip="Add another run", layout=W.Layout(width="150px")
        ).add_class("lab-add-run")
        self.adder.observe(self._added, "value")
        choosing = "Select the runs whose training questions are most like this one"
        self.chooser = button("Choose for me", choosing, click=lambda _: schedule(self.choose))
        self.grid.observe(self._removed, "removed")
        self.mixed = W.ToggleButton(description="Mix", tooltip="Add a column: the weighted sum of the adapters")
        self.mixed.observe(self._mix_changed, "value")
        self.tinted = W.ToggleButton(value=True, description="Tint", tooltip="Tint tokens: the less likely, the darker")
        self.tinted.observe(lambda _: setattr(self.grid, "tinted", self.tinted.value), "value")
        self.template = field(
            W.Dropdown, "template", "190px", options=[*((name, name) for name in prompts.TEMPLATES), (RAW, RAW)]
        )
        self.system = field(W.Text, "system prompt", "auto", placeholder="none", tooltip="System prompt of the chat")
        self.system.add_class("lab-grow")
        self.generate = button("Generate", "Generate all answers (Shift+Enter)", "primary")
        self.generate.on_click(lambda _: schedule(self.answer))
        self.stop = button("Stop", "Stop at the next token", disabled=True, click=self._stop)
        self.inspect = button("Inspect this", "Look inside while the model reads this prompt", click=self._inspected)
        self.follow = button("Follow up", "Keep these answers, and ask the next question", click=self._follow_up)
        self.restart = button("New conversation", "Forget the turns so far", click=self._restart)
        self._weights = W.Box(layout=W.Layout(display="none")).add_class("lab-weights")
        seen = Collapsible("The prompt as the model sees it", self.seen)
        settings = toolbar(self.generate, self.stop, *self.settings.widgets, self.inspect)
        top = toolbar(self.mode, self.examples.task, self.examples.another, self.template, self.system)
        talking = (self.adder, self.chooser, self.mixed, self.tinted, self.follow, self.restart, self.gold, self.status)
        talk = toolbar(*talking)
        talk.add_class("lab-talk")
        shown = [self.question, self.input, settings, self.warning, self.problem, talk, self._weights]
        setup = button("Go to Setup", "Start a run", "primary", click=lambda _: self.workspace.go("Setup"))
        self._empty = W.VBox([W.HTML(el("div", NOTHING)), setup]).add_class("lab-empty")
        self._full = W.VBox([top, *shown, self.grid, self.table.widget, self.history.widget, seen.widget])
        self._full.add_class("lab-play")
        self.widget = W.VBox([self._empty, self._full]).add_class("lab-playground")
        show_if(False, self.table.widget, self.follow, self.restart, self.input, self.system)
        show_if(not self._alone, self.inspect)


def _answers(entry: Entry) -> bool:
    return entry.state.name == "finished" and not entry.fault and bool(entry.fields.get("adapter.type"))


def _groups(loaded: LoadedRun) -> bool:
    return any(each.groups for each in loaded.injection.adapters.values())


def _mixable(loaded: LoadedRun) -> bool:
    return not any(each.scope == "model" or each.trains_base for each in loaded.injection.adapters.values())


def _system(text: str) -> str:
    return f"the system prompt {prompts.short_name(text)!r}" if text else "no system prompt"


def _column(key: str, name: str, title: str, colour: str, note: str, *, removable: bool = False) -> dict[str, Any]:
    return {"key": key, "name": name, "title": title, "colour": colour, "note": note, "removable": removable}
