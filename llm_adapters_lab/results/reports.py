"""Report: one HTML file with results, figures, example answers and everything needed to do the runs again.

The file is complete in itself. Its content policy lets nothing load from outside and no script run but the two that are
written here, so that text from data sets and models stays text. Tables and text read without JavaScript.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.files import write_atomically
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.markup import tabular as _table
from llm_adapters_lab.privacy import to_write
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.appearance import Look, looks
from llm_adapters_lab.results.comparison import compare, leak, mean_accuracy, notes, task_names
from llm_adapters_lab.results.seed_groups import groups
from llm_adapters_lab.results.static_svg import figure as _plot
from llm_adapters_lab.runs.record import Run

if TYPE_CHECKING:
    import plotly.graph_objects as go

NO_SCRIPT = "Without JavaScript the figures are plain pictures, without hover text and legends to click."
EXAMPLES, LONGEST = 2, 1200
FORMAT_NOTE = (
    "The small print under a score gives the range in which the true accuracy lies with 95% confidence, and how many "
    "answers came in the form that was asked for. When a score jumps from about 0, look at that share first: if it "
    "jumped too, the adapter mainly taught how to answer; 'by option text', the likeliest option after the bare "
    "question, shows what the model knew before. Where ranges overlap, the data do not settle which run is better."
)


def report(runs: Sequence[Run], path: str | Path, more: Sequence[go.Figure] = ()) -> Path:
    """Write an HTML report that needs no network, about 5 MB.

    Args:
        runs: what to show, in this order; unfinished ones are shown as far as they are.
        path: of the file; missing folders are made.
        more: figures of `plots` to add, for instance views of what an adapter does inside.

    Returns:
        The path.

    Raises:
        BadSpec: there are no runs, or the path is that of no file.
    """
    from plotly.offline import get_plotlyjs

    runs, path = list({run.id: run for run in runs}.values()), to_write(path)
    if path.is_dir():
        raise BadSpec(f"{path} is a folder. Name a file for the report, as in {path / 'report.html'}.")
    if not runs:
        raise BadSpec("A report needs at least one run; none was given.")
    seen, library = looks(runs), get_plotlyjs()
    bases = ", ".join(dict.fromkeys(Path(run.spec.base).name for run in runs))
    title = f"{len(runs)} runs on {bases}" if len(runs) > 1 else f"{seen[runs[0].id].name} on {bases}"
    files = resources.files(__package__)
    css, draw = ((files / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    hashes = " ".join(f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in (library, draw))
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    head = el(
        "head",
        Html('<meta charset="utf-8">'),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("style", Html(css)),
    )
    scripts = el("script", Html(library)), el("script", Html(draw))
    page = el("html", head, el("body", el("h1", title), *_body(runs, seen, more), *scripts), lang="en")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"<!doctype html>\n{page}\n".encode())
    return path


def _body(runs: Sequence[Run], seen: dict[str, Look], more: Sequence[go.Figure]) -> Iterable[Html]:
    trained = [run for run in runs if next(run.events("Step"), None)]
    yield _lead(runs, seen)
    yield el("noscript", el("p", NO_SCRIPT, class_="soft"))
    if task_names(runs):
        yield el("h2", "Accuracy")
        yield _accuracies(runs, seen)
        yield el("p", FORMAT_NOTE, class_="soft")
        yield _group("marks", [_plot(plots.accuracy(*runs))])
        if any(len(group.runs) > 1 for group in groups(runs)):
            yield _plot(plots.means(groups(runs)))
    failures = [run for run in runs if "error" in run.summary]
    if failures:
        yield el("h2", "What failed")
        yield from (_failure(run, seen[run.id]) for run in failures)
    yield el("h2", "Cost")
    yield _costs(runs, seen)
    if task_names(runs) and trained:
        yield _plot(plots.parameters_against_accuracy(*runs))
    if trained:
        yield el("h2", "Training")
        yield _plot(plots.loss_curve(*trained))
    yield _group("pair", (_plot(_moved(r)) for r in trained if next(r.events("Norms"), None)))
    if more:
        yield el("h2", "Inside")
        yield from map(_plot, more)
    yield from _examples(runs, seen)
    yield el("h2", "Run it again")
    yield from (_again(run, seen[run.id]) for run in runs)


def _lead(runs: Sequence[Run], seen: dict[str, Look]) -> Html:
    """Say in words which run is best, by how much, and at what cost."""
    tasks = task_names(runs)
    means = {run.id: mean for run in runs if (mean := mean_accuracy(run, tasks)) is not None}
    if not means:
        return el("p", "Nothing has been scored yet.", class_="lead")
    best = max(means, key=means.__getitem__)
    where = f"on {tasks[0]}" if len(tasks) == 1 else f"on average over {len(tasks)} datasets"
    size, share = next((r["trainable_parameters"], r["share_of_base"]) for r in compare(runs) if r["run"] == best)
    words = f"Best {where}: {seen[best].name}, {means[best]:.1%} correct"
    words += f" with {size:,} trained parameters, {share:.2%} of the base" if size else ""
    bare = [f"{means[run.id]:.1%}" for run in runs if run.id in means and run.id != best and run.spec.adapter is None]
    return el("p", words + (f". The base alone reaches {' and '.join(bare)}." if bare else "."), class_="lead")


def _accuracies(runs: Sequence[Run], seen: dict[str, Look]) -> Html:
    scores, tasks = [run.summary.get("scores", {}) for run in runs], task_names(runs)
    lines = []
    for task in tasks:
        found = [s.get(task) for s in scores]
        first, top = next(filter(None, found)), max(s["accuracy"] for s in found if s)
        totals = "–".join(f"{total:,}" for total in sorted({s["total"] for s in found if s}))
        given = zip(found, (leak(run.summary, task) for run in runs), strict=True)
        cells = [_score(s, len(runs) > 1 and s["accuracy"] == top, lost) if s else el("td", "–") for s, lost in given]
        known = [el("td", _percent(first[key]), class_="soft") for key in ("chance", "majority")]
        lines.append(el("tr", el("th", task, el("small", f"{totals} rows"), scope="row"), *known, *cells))
    if len(tasks) > 1:
        means = [mean_accuracy(run, tasks) for run in runs]
        top = max((mean for mean in means if mean is not None), default=None)
        cells = [el("td", _strong(_percent(mean), len(runs) > 1 and mean == top)) for mean in means]
        lines.append(el("tr", el("th", "mean", scope="row"), el("td"), el("td"), *cells, class_="mean"))
    heads = ["dataset", "random guess", "most common answer", *(_named(seen[run.id]) for run in runs)]
    return _table(heads, lines)


def _score(score: dict[str, Any], best: bool, leaking: float | None) -> Html:
    beside = [f"{100 * score['low']:.1f}–{100 * score['high']:.1f}", *notes(score, leaking)]
    return el("td", _strong(_percent(score["accuracy"]), best), *(el("small", words) for words in beside))


def _costs(runs: Sequence[Run], seen: dict[str, Look]) -> Html:
    lines, rows = [], {row["run"]: row for row in compare(runs)}
    for run in runs:
        row, summary = rows[run.id], run.summary
        train, size, share = summary.get("train") or {}, row["trainable_parameters"], row["share_of_base"]
        cells = [f"{size:,}" if size is not None else "–", f"{share:.2%}" if share is not None else "–"]
        if train:
            memory, losses = train.get("peak_memory_bytes"), f"{train['loss_first']:.3f} → {train['loss_last']:.3f}"
            cells += [f"{train['steps']:,}", f"{train['seconds']:,.1f}", f"{train['tokens_per_second']:,.0f}"]
            cells += [f"{memory / 1e6:,.0f}" if memory else "–", losses]
        cells += ["–"] * (7 - len(cells)) + [row["status"]]
        lines.append(el("tr", el("th", _named(seen[run.id]), scope="row"), *(el("td", cell) for cell in cells)))
    units = ("trained parameters", "share of base", "steps", "seconds", "tokens/s", "peak MB", "loss", "status")
    return _table(["run", *units], lines)


def _examples(runs: Sequence[Run], seen: dict[str, Look]) -> Iterable[Html]:
    """Show the same questions answered by every run; those on which the runs disagree come first."""
    answers: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for run in runs:
        for row in run.predictions():
            answers.setdefault((row["task"], row["id"]), {})[run.id] = row
    if not answers:
        return
    yield el("h2", "The same questions, answered by each run")
    yield el("p", "Not a random sample: questions on which the runs disagree come first.", class_="soft")
    for number, task in enumerate(dict.fromkeys(task for task, _ in answers)):
        questions = [given for (of, _), given in answers.items() if of == task]
        questions.sort(key=lambda given: (-len(given), len({row["correct"] for row in given.values()}) == 1))
        shown = [part for given in questions[:EXAMPLES] for part in _question(given, seen)]
        few = el("small", f"{min(EXAMPLES, len(questions))} of {len(questions):,}")
        yield el("details", el("summary", task, few), *shown, **({} if number else {"open": ""}))


def _question(given: dict[str, dict[str, Any]], seen: dict[str, Look]) -> Iterable[Html]:
    first = next(iter(given.values()))
    yield el("pre", _short(first["prompt"]))
    yield el("p", "Right answer: ", el("strong", str(first["gold"])))
    cards = []
    for run, row in given.items():
        word, name = ("✓ right", "yes") if row["correct"] else ("✗ wrong", "no")
        read = "no answer found" if row["extracted"] is None else f"read as: {row['extracted']}"
        header = el("header", _named(seen[run]), el("span", word, class_=name))
        parts = (header, el("pre", _short(row["text"] or "")), el("small", read))
        cards.append(el("div", *parts, class_="answer", style=f"border-color: {seen[run].colour}"))
    yield _group("answers", cards)


def _failure(run: Run, look: Look) -> Html:
    found = run.summary
    trace = (
        el("details", el("summary", "Traceback"), el("pre", found["traceback"])) if found.get("traceback") else Html()
    )
    words = el("p", _named(look), f" failed while {found['stage']}: {found['error']}")
    return _group("failure", (words, el("p", found.get("advice", "")), trace))


def _again(run: Run, look: Look) -> Html:
    recipe = yaml.safe_dump(run.spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    facts = run.summary.get("environment", {}).items()
    where = el("dl", *(el(tag, str(text)) for fact in facts for tag, text in zip(("dt", "dd"), fact, strict=True)))
    return el(
        "details",
        el("summary", _named(look), el("small", run.id)),
        el("p", "Save as spec.yaml:"),
        el("pre", recipe),
        el("p", "Then run, for the same result under the same versions on the same kind of device:"),
        el("pre", "python -m llm_adapters_lab run spec.yaml"),
        *([el("p", "It ran on:"), where] if facts else []),
    )


def _moved(run: Run) -> go.Figure:
    return (plots.norm_evolution if len(list(run.events("Norms"))) > 2 else plots.norm_heatmap)(run)


def _named(look: Look) -> Html:
    return el("span", el("span", class_="dot", style=f"background: {look.colour}"), look.name)


def _group(name: str, parts: Iterable[Html]) -> Html:
    return el("div", *parts, class_=name)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _strong(text: str, best: bool) -> str:
    return el("strong", text) if best else text


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}\n[…]\n{text[-LONGEST // 2 :]}"
