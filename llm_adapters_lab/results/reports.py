"""Write one HTML file with results, figures, example answers and everything needed to repeat the runs.

The file is self-contained. Its content policy blocks everything from outside and every script but the two written here,
and the template escapes all text, so that what data sets and models say stays text. It is readable without JavaScript:
each figure is then a table.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from html import unescape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_adapters_lab.config import to_yaml
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import row_remarks
from llm_adapters_lab.files import write_atomically, writing
from llm_adapters_lab.markup import Html
from llm_adapters_lab.privacy import to_write
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.appearance import Look, looks
from llm_adapters_lab.results.comparison import FORMAT_NOTE, compare, leak, mean_accuracy, notes, task_names
from llm_adapters_lab.results.entry_groups import EntryGroup
from llm_adapters_lab.results.formatting import cell, clock, heads, likelihoods_cell, percent, size, spread
from llm_adapters_lab.results.group_tests import cautions
from llm_adapters_lab.results.overview import Overview, overview
from llm_adapters_lab.results.paired_tests import differing_questions, pairs
from llm_adapters_lab.results.plots import groups as group_plots
from llm_adapters_lab.runs.record import Run, check_writable

if TYPE_CHECKING:
    import plotly.graph_objects as go

COMPACT = 8
"""Number of runs from which on results are shown by groups of seeds instead of by run."""
EXAMPLES, ANSWERS, LONGEST, ROWS = 2, 40, 1200, 200
"""Questions shown of each task, answers shown where runs disagree, characters of a text, rows of a figure's table."""


def report(
    runs: Sequence[Run], path: str | Path, more: Sequence[go.Figure] = (), more_title: str = "Inspection"
) -> Path:
    """Write an HTML report that needs no network, about 5 MB: it holds the library that draws its figures.

    Args:
        runs: what to show, in this order; of an unfinished run, what there is so far.
        path: of the file; missing folders are made.
        more: figures of `plots` to add, for instance views of what an adapter does inside. One whose `layout.meta`
            has the `code` that makes it is followed by its table and that code.
        more_title: the heading above these.

    Returns:
        The path.

    Raises:
        BadSpec: there are no runs, or the path cannot be that of a file.
        CannotWrite: the file cannot be written.
    """
    runs, path = list({run.id: run for run in runs}.values()), check_report(path)
    if not runs:
        raise BadSpec("A report needs at least one run; none was given.")
    from jinja2 import Environment
    from plotly.offline import get_plotlyjs

    seen, tasks, rows = looks(runs), task_names(runs), compare(runs)
    found = overview(runs)
    shown = found if len(runs) >= COMPACT or any(len(group.entries) > 1 for group in found.groups) else None
    if shown:
        seen = shown.looks()
    paired = [] if shown else pairs([run for run in runs if next(run.predictions(), None)])
    bases, library = ", ".join(dict.fromkeys(Path(run.spec.base).name for run in runs)), get_plotlyjs()
    files = resources.files(__package__)
    css, draw, page = ((files / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html.j2"))
    hashes = " ".join(f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in (library, draw))
    text = (
        Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
        .from_string(page)
        .render(
            runs=runs,
            looks=seen,
            title=f"{len(runs)} runs on {bases}" if len(runs) > 1 else f"{seen[runs[0].id].name} on {bases}",
            lead=_lead(found, seen),
            overview=shown if shown and shown.ranked else None,
            group_rows=[] if shown is None else shown.rows(),
            cautions=[] if shown is None else cautions(shown.rivals),
            policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:",
            tasks={task: [_score(run, task) for run in runs] for task in tasks},
            means=[mean_accuracy(run, tasks) for run in runs],
            format_note=FORMAT_NOTE,
            summaries={run.id: run.summary for run in runs},
            rows={row["run"]: row for row in rows},
            figures=_figures(runs, more, seen, shown if shown and shown.ranked else None),
            examples=list(_examples(runs)),
            recipes={run.id: _recipe(run) for run in runs},
            more_title=more_title,
            css=Html(css),
            library=Html(library),
            draw=Html(draw),
            cell=cell,
            clock=clock,
            size=size,
            percent=percent,
            short=_short,
            likelihoods=likelihoods_cell,
            row_remarks=row_remarks,
            paired=paired,
            pair_notes=differing_questions(paired),
        )
    )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    return path


def check_report(path: str | Path) -> Path:
    """Return the path of a report that can be written.

    Raises:
        BadSpec: it is a folder, or no name of a file.
        CannotWrite: its folder cannot be made or written to.
    """
    if to_write(path).is_dir():
        raise BadSpec(f"{path} is a folder. Name a file for the report, as in {Path(path) / 'report.html'}.")
    check_writable(Path(path).resolve().parent)
    return Path(path)


def _score(run: Run, task: str) -> dict[str, Any] | None:
    summary = run.summary
    score = summary.get("scores", {}).get(task)
    return score | {"notes": notes(score, leak(summary, task))} if score else None


def _recipe(run: Run) -> str:
    return to_yaml(run.spec.model_dump(mode="json"))


def _lead(found: Overview, seen: dict[str, Look]) -> str:
    """Return which group of seeds is best, whether that is certain, and at what cost."""
    if not found.ranked:
        return "Nothing has been scored yet."
    best, tasks = found.ranked[0], found.tasks
    where = f"on {tasks[0]}" if len(tasks) == 1 else f"over {len(tasks)} datasets"
    size, whole = best.value("trainable"), best.entries[0].run.summary.get("base_parameters")
    cost = (
        f", with {round(size):,} trainable parameters ({percent(size / whole, 2)} of the base)"
        if size and whole
        else ""
    )
    words = f"Highest mean accuracy {where}: {_called(best, seen)}, {spread(best.means(tasks))}{cost}."
    same = [_called(rival.group, seen) for rival in found.rivals if not rival.sign]
    if same:
        listed = same[0] if len(same) == 1 else f"{len(same)} others"
        words += f" The data do not separate it from {listed}."
    bare = [group for group in found.ranked if group.fields.get("adapter.type") is None and group is not best]
    reached = " and ".join(spread(group.means(tasks)) for group in bare)
    return words + (f" The base without an adapter reaches {reached}." if bare else "")


def _called(group: EntryGroup, seen: dict[str, Look]) -> str:
    return group.name if len(group.entries) > 1 else seen[group.id].name


def _figures(
    runs: Sequence[Run], more: Sequence[go.Figure], seen: dict[str, Look], found: Overview | None
) -> dict[str, Any]:
    trained, scored = [run for run in runs if next(run.events("Step"), None)], bool(task_names(runs))
    figures: dict[str, Any] = dict.fromkeys(("accuracy", "means", "parameters", "losses"))
    if found:
        shades, tasks, height = found.colours, found.tasks, 300
        ranked = [tier.groups for tier in found.tiers]
        drawn = {
            "means": (group_plots.tiers(ranked, tasks, shades, height), "Mean accuracy over the datasets"),
            "accuracy": (group_plots.by_task(found.ranked, tasks, shades, height), "Accuracy on each dataset"),
        }
        if trained:
            costs = group_plots.against_parameters(found.groups, tasks, shades, 420)
            drawn["parameters"] = (costs, "Accuracy vs trainable parameters")
            drawn["losses"] = (group_plots.loss_curves(found.groups, shades, 420), "Training loss, smoothed")
        figures |= {name: _figure(_titled(*each)) for name, each in drawn.items()}
    elif scored:
        figures["accuracy"] = _figure(plots.accuracy(*runs))
        figures["parameters"] = _figure(plots.parameters_against_accuracy(*runs)) if trained else None
    if trained and not found:
        figures["losses"] = _figure(plots.loss_curve(*trained))
    norms = []
    for run in trained:
        if number := len(list(run.events("Norms"))):
            norms.append(
                _figure((plots.norm_evolution if number > 2 else plots.norm_heatmap)(run, name=seen[run.id].name))
            )
    return figures | {"norms": norms, "more": [_figure(figure) for figure in more]}


def _titled(figure: go.Figure, title: str) -> go.Figure:
    """Give a figure that has none a title."""
    top = (figure.layout.margin.t or 0) + 44
    figure.update_layout(title={"text": title, "subtitle": {"text": ""}}, margin={"t": top})
    return figure.update_layout(height=figure.layout.height + 44)


def _figure(figure: go.Figure) -> dict[str, Any]:
    """Return a figure for the template: its data as JSON, and the table that stands in without JavaScript."""
    # Only "<" could end the script element; as JSON the escape means the same.
    data = json.dumps(json.loads(figure.to_json()), separators=(",", ":")).replace("<", "\\u003c")
    rows = plots.data(figure)
    kept = rows[:: -max(1, -(-len(rows) // ROWS))][::-1]  # evenly, and the last one in any case
    names = heads(rows)
    cells = [[cell(row.get(name)) for name in names] for row in kept]
    title = unescape(figure.layout.title.text)
    table = {"heads": names, "rows": cells, "code": (figure.layout.meta or {}).get("code", "")}
    return {"title": title, "height": figure.layout.height, "json": Html(data), **table}


def _examples(runs: Sequence[Run]) -> Iterator[tuple[str, list[list[tuple[Run, dict[str, Any]]]], int]]:
    """Yield for each task the questions to show, each with every run's answer, and how many questions there are.

    Questions answered by more runs come first, and of these the ones on which the runs disagree.
    """
    answers: dict[tuple[str, str], list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        for row in run.predictions():
            answers.setdefault((row["task"], row["id"]), []).append((run, row))
    for task in dict.fromkeys(task for task, _ in answers):
        questions = [given for (of, _), given in answers.items() if of == task]
        questions.sort(key=lambda given: (-len(given), len({row["correct"] for _, row in given}) == 1))
        apart = sum(len({row["correct"] for _, row in given}) > 1 for given in questions)
        yield task, questions[: max(EXAMPLES, min(apart, ANSWERS // len(runs)))], len(questions)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}\n[…]\n{text[-LONGEST // 2 :]}"
