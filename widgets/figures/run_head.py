"""What Monitor says about one run, as markup: stages, progress, result, accuracies as dots, latest answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results.formatting import clock, count, interval, percent, size
from llm_adapters_lab.runs.status import State
from widgets.kit.status import SIGNS

Last = Mapping[str, Mapping[str, Any]]
"""The last event of each class."""
STAGES = ("libraries", "rows", "weights", "first step")
_WORDS = {"queued": "queued", "unfinished": "not finished", "dead": "process died"}


def ordinal(number: int) -> str:
    """Return "1st", "2nd", "3rd", "4th" and so on."""
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ends.get(number % 10, 'th')}"


def state_words(state: State, place: int = 0) -> str:
    """Return the state of a run in words; `place` is its place in the queue."""
    where = f" ({ordinal(place)})" if place else ""
    return _WORDS.get(state.name, state.name) + where


def progress(last: Last) -> tuple[float, str]:
    """Return how far an active run is, 0..1, and where: "step 64 of 150"."""
    if scoring := last.get("Scoring"):
        where = f"scoring {scoring['task']}, {scoring['done']} of {scoring['total']}"
        return scoring["done"] / max(1, scoring["total"]), where
    if step := last.get("Step"):
        if "Scored" in last or step["step"] == step["steps"]:
            return 1.0, "scoring"
        return step["step"] / max(1, step["steps"]), f"step {step['step']:,} of {step['steps']:,}"
    return 0.0, ""


def figures(last: Last) -> str:
    """Return the numbers of the latest step: loss, other measures, speed, time left."""
    step = last.get("Step")
    if not step:
        return ""
    measures = [f"{name} {value:.3f}" for name, value in step.get("measures", {}).items()]
    held = [f"validation {last['Validated']['loss']:.3f}"] if "Validated" in last else []
    speed = f"{step['tokens_per_second']:,.0f} tokens/s"
    left = [f"{clock(step['seconds_left'])} left"] if step["step"] < step["steps"] else []
    return " · ".join([f"loss {step['loss']:.3f}", *held, *measures, speed, *left])


def ended(last: Last) -> str:
    """Return where an interrupted run was: "step 293 of 750 after 1:52"."""
    if scoring := last.get("Scoring"):
        return f"scoring {scoring['task']}, {scoring['done']} of {scoring['total']}"
    if step := last.get("Step"):
        return f"step {step['step']:,} of {step['steps']:,} after {clock(step['seconds'])}"
    return ""


def result(summary: Mapping[str, Any], seconds: float | None) -> str:
    """Return a finished run in a sentence: accuracies, trainable parameters, size of the adapter, duration."""
    scores = [f"{task} {percent(score['accuracy'])}" for task, score in summary.get("scores", {}).items()]
    trained = summary.get("trainable_parameters")
    parts = [", ".join(scores) or "not evaluated"]
    parts += [f"{count(trained)} trainable"] if trained else []
    parts += [f"adapter {size(summary['adapter_bytes'])}"] if summary.get("adapter_bytes") else []
    parts += [f"peak memory {size(summary['train']['peak_memory_bytes'])}"] if summary.get("train") else []
    return " · ".join([*parts, *([f"took {clock(seconds)}"] if seconds is not None else [])])


def sentence(*parts: str) -> Html:
    """Return a line of fixed height with what is not empty."""
    words = " · ".join(filter(None, parts))
    return el("div", words, class_="lab-run-say lab-short", title=words)


def gauge(done: float) -> Html:
    """Return a bar that is full to a share 0..1."""
    wide = f"{100 * min(1.0, max(0.0, done)):.1f}"
    fill = el("div", style=f"width: {wide}%")
    return el("div", fill, class_="lab-gauge", role="progressbar", aria_valuenow=wide, aria_label="progress")


def stages(now: str) -> Html:
    """Return the stages before the first step, the one at work marked."""
    at = STAGES.index(now) if now in STAGES else -1
    looks = ["lab-past" if i < at else "lab-now" if i == at else "" for i in range(len(STAGES))]
    shown = [
        el("span", f"{'✓ ' if i < at else ''}{name}", class_=look)
        for i, (name, look) in enumerate(zip(STAGES, looks, strict=True))
    ]
    return el("div", *shown, class_="lab-stages")


def title(name: str, run_id: str, state: State, place: int = 0, more: str = "") -> Html:
    """Return the first line about a run: sign, name, state, id."""
    words = el("span", f"{SIGNS[state.name]} {state_words(state, place)}", class_=f"lab-is-{state.name}")
    rest = el("span", more, class_="lab-muted", title=more)
    return el("div", el("b", name), words, el("code", run_id), rest, class_="lab-run-line", role="status")


def hint_line(hints: Sequence[str]) -> Html:
    """Return health hints in a line of fixed height, which unfolds if there are several."""
    if not hints:
        return el("div", "", class_="lab-hint lab-muted")
    if len(hints) == 1:
        return el("div", f"⚠ {hints[0]}", class_="lab-hint", title=hints[0])
    head = el("summary", f"⚠ {hints[0]} (+{len(hints) - 1})", class_="lab-hint")
    return el("details", head, *(el("div", f"⚠ {hint}", class_="lab-warn") for hint in hints[1:]))


def accuracy_dots(
    scores: Mapping[str, Mapping[str, Any]], colour: str, base: Mapping[str, Mapping[str, Any]] | None = None
) -> Html:
    """Return the accuracy of each task as a dot with its 95 % interval, chance and majority as marks.

    Args:
        scores: of a run, by task, as in its summary.
        colour: of the run.
        base: the scores of the bare base, shown as rings.
    """
    cells: list[str] = []
    for task, score in scores.items():
        known = {"chance": "chance", "majority": "majority baseline"}
        levels = [
            el("span", class_=f"lab-level lab-{key}", style=_at(score[key]), title=f"{words} {percent(score[key])}")
            for key, words in known.items()
            if score.get(key) is not None
        ]
        other = (base or {}).get(task)
        ring = f"{_at(other['accuracy'])}; border-color: #7f868e" if other else ""
        rings = [el("span", class_="lab-spot lab-base", style=ring, title=_told("base", other))] if other else []
        wide = f"left: {100 * score['low']:.2f}%; width: {100 * (score['high'] - score['low']):.2f}%"
        whisker = el("span", class_="lab-whisker", style=f"{wide}; background: {colour}")
        spot = el("span", class_="lab-spot", style=f"{_at(score['accuracy'])}; background: {colour}")
        track = [*levels, whisker, *rings, spot]
        told = _told(task, score)
        cells += [
            el("span", task, class_="lab-dotname", title=told),
            el("span", *track, class_="lab-dottrack", title=told, role="img", aria_label=told),
            el("span", percent(score["accuracy"]), class_="lab-dotvalue"),
        ]
    marks = "bar: 95 % interval · dotted: chance · line: majority baseline" + " · ring: base" * bool(base)
    return el("div", el("div", *cells, class_="lab-dots"), el("div", marks, class_="lab-dotfoot"))


def answers(found: Sequence[Mapping[str, Any]]) -> Html:
    """Return scored answers, the latest first: sign, end of the question, gold answer and what was said."""
    cells: list[str] = []
    for each in found:
        right = bool(each.get("correct"))
        question, said = (" ".join(str(each.get(key, "")).split()) for key in ("prompt", "text"))
        sign = el("div", "✓" if right else "✗", class_="lab-good" if right else "lab-bad")
        gold = f"gold {each.get('gold', '')} → {said or '(nothing)'}"
        cells += [sign, el("div", gold, title=said), el("div", question, class_="lab-muted", title=question)]
    return el("div", *cells, class_="lab-answers")


def _at(share: float) -> str:
    return f"left: {100 * share:.2f}%"


def _told(name: str, score: Mapping[str, Any]) -> str:
    right = f"{score['correct']} of {score['total']}"
    return f"{name}: {percent(score['accuracy'])} ({right}), 95 % interval {interval(score['low'], score['high'])}"
