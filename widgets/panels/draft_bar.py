"""The bar above all places: what the draft is, what it costs, Start, and the draft as code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ipywidgets as W

from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results.formatting import ago
from llm_adapters_lab.results.run_index import Entry
from widgets.forms.cost_strip import CostStrip
from widgets.kit.draft import Draft
from widgets.kit.elements import CopyMenu, Heartbeat, button
from widgets.kit.launching import start as start
from widgets.panels.spec_files import as_code


@dataclass(frozen=True)
class Fault:
    """Why a draft is not valid.

    Attributes:
        text: the message.
        field: the dotted field that it is about; "" for none.
    """

    text: str
    field: str = ""


class DraftBar:
    """Two lines that stay in sight; their height never changes.

    Attributes:
        start: the button.
        line: the draft in one line.
        costs: parameters, memory and time.
        remark: the first fault, or what was changed.
    """

    def __init__(self, costs: CostStrip, start: Callable[[], object]) -> None:
        """Make an empty bar; `start` is called by its button."""
        self.costs = costs
        self.start = button("Start", style="primary", disabled=True, click=lambda _: start())
        self.line, self.remark = W.HTML().add_class("lab-draft"), W.HTML().add_class("lab-remark")
        self.copy, self.beat = CopyMenu(), Heartbeat()
        first = W.HBox([self.line, self.beat, self.copy, self.start]).add_class("lab-bar-line")
        second = W.HBox([costs.widget, self.remark]).add_class("lab-bar-line")
        self.widget = W.VBox([first, second]).add_class("lab-bar")

    def show(self, draft: Draft | None, faults: Sequence[Fault], known: Entry | None, busy: int, waiting: str) -> None:
        """Show a draft.

        Args:
            draft: None while it is not valid.
            faults: why it is not.
            known: the run of a draft of one run, if there is one.
            busy: number of runs that are active or queued before it.
            waiting: what the draft waits for, such as the look-up of a base.
        """
        self.start.disabled = draft is None
        if draft is None:
            self.copy.texts, self.start.description = {}, "Start"
            words = waiting or "not valid yet"
            self.line.value = el("div", el("span", "draft", class_="lab-kicker"), words, role="status")
            self.remark.value = _faults(faults)
            return
        self.copy.texts = as_code(draft.spec, draft)
        name, state = summary(draft), _state(known)
        head = [el("span", "draft", class_="lab-kicker"), el("span", name, class_="lab-name"), *state]
        self.line.value = el("div", *head, role="status", title=draft.spec.id)
        text = draft.changed()
        self.remark.value = el(
            "div", text, class_="lab-muted", title="; ".join(" → ".join(c[1:]) for c in draft.changes())
        )
        self.start.description, self.start.tooltip = _action(draft, known, busy)


def summary(draft: Draft) -> Html:
    """Return a draft in one line: base, method with its size and placement, data and scoring."""
    spec, varied = draft.spec, draft.varied
    parts: list[str | Html] = []
    if count := draft.count():
        parts += [el("b", count), " · "]
    parts += [el("b", _method(draft)), f" · {spec.base}"]
    if spec.adapter:
        parts.append(f" · {short_task(spec.data.task)}")
        if steps := varied.get("train.max_steps", [spec.train.max_steps] if spec.train.max_steps else []):
            parts.append(f" · {_list(steps)} steps")
        else:
            parts.append(f" · {_list(varied.get('train.epochs', [spec.train.epochs]))} epochs")
    tasks = len(spec.eval.tasks)
    parts.append(f" · {tasks} task{'s' * (tasks != 1)}" if tasks else " · not evaluated")
    return el("span", *parts)


def short_task(name: str) -> str:
    """Return the name of a task; of a file of one's own, without its folder and columns."""
    return re.sub(r"^own:(?:.*/)?([^/?]+).*$", r"\1", name)


def _method(draft: Draft) -> str:
    spec, varied = draft.spec, draft.varied
    if spec.adapter is None:
        return "no adapter"
    own = [k for k in type(spec.adapter).model_fields if k not in ("type", "at")]
    size = next((k for k in own if type(getattr(spec.adapter, k)) is int), "")
    words = [spec.adapter.type]
    if size:
        words.append(f"{size[0]}{_list(varied.get(f'adapter.{size}', [getattr(spec.adapter, size)]))}")
    at = varied.get("adapter.at", [spec.adapter.at] if spec.adapter.at else [])
    return " ".join([*words, *(["; ".join(map(str, at))] if at else [])])


def _list(values: Sequence[object]) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _state(known: Entry | None) -> list[Html]:
    if known is None or known.state.name == "unfinished":
        return []
    when = f" {ago(known.begun)}" if known.state.name == "finished" else ""
    return [el("span", f"{known.state.name}{when}", class_="lab-chip lab-on")]


def _action(draft: Draft, known: Entry | None, busy: int) -> tuple[str, str]:
    count = len(draft.points)
    later = f"; {busy} run{'s' * (busy > 1)} before it in the queue" if busy else ""
    if count > 1:
        return f"Start {count} runs", f"One after the other{later}. Finished ones are not repeated."
    if known is not None and (known.state.works or known.state.name in ("finished", "queued")):
        return "Show run", "Open it in Monitor"
    if known is not None and known.state.name != "unfinished":
        return "Resume", f"Continue where it stopped{later}"
    return ("Queue" if busy else "Start"), f"It runs on if you close this page{later}"


def _faults(faults: Sequence[Fault]) -> Html:
    if not faults:
        return el("div")
    fault, rest = faults[0], len(faults) - 1
    text = "✗ " + fault.text.split("\n")[0] + (f" (and {rest} more)" if rest else "")
    classes = "lab-goto lab-to-" + re.sub(r"\W+", "-", fault.field) if fault.field else ""
    shown = (
        el("a", text, href="#", class_=classes, title=fault.text) if fault.field else el("span", text, title=fault.text)
    )
    return el("div", shown, class_="lab-error", role="alert")
