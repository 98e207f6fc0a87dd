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
from llm_adapters_lab.results.formatting import cell, heads, likelihoods_cell, percent
from llm_adapters_lab.results.paired_tests import differing_questions, pairs
from llm_adapters_lab.results.seed_groups import groups
from llm_adapters_lab.runs.record import Run, check_writable

if TYPE_CHECKING:
    import plotly.graph_objects as go

EXAMPLES, ANSWERS, LONGEST, ROWS = 2, 40, 1200, 200
"""Questions shown of each task, answers shown where runs disagree, characters of a text, rows of a figure's table."""


def report(runs: Sequence[Run], path: str | Path, more: Sequence[go.Figure] = ()) -> Path:
    """Write an HTML report that needs no network, about 5 MB.

    Args:
        runs: what to show, in this order; of an unfinished run, what there is so far.
        path: of the file; missing folders are made.
        more: figures of `plots` to add, for instance views of what an adapter does inside.

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
    paired = pairs([run for run in runs if next(run.predictions(), None)])
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
            lead=_lead(runs, seen, rows),
            policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:",
            tasks={task: [_score(run, task) for run in runs] for task in tasks},
            means=[mean_accuracy(run, tasks) for run in runs],
            format_note=FORMAT_NOTE,
            summaries={run.id: run.summary for run in runs},
            rows={row["run"]: row for row in rows},
            figures=_figures(runs, more),
            examples=list(_examples(runs)),
            recipes={run.id: _recipe(run) for run in runs},
            css=Html(css),
            library=Html(library),
            draw=Html(draw),
            cell=cell,
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


def _lead(runs: Sequence[Run], seen: dict[str, Look], rows: Sequence[dict[str, Any]]) -> str:
    """Return a sentence on which run is best, by how much, and at what cost."""
    tasks = task_names(runs)
    means = {run.id: mean for run in runs if (mean := mean_accuracy(run, tasks)) is not None}
    if not means:
        return "Nothing has been scored yet."
    best = max(means, key=means.__getitem__)
    where = f"on {tasks[0]}" if len(tasks) == 1 else f"on average over {len(tasks)} datasets"
    size, share = next((row["trainable_parameters"], row["share_of_base"]) for row in rows if row["run"] == best)
    words = f"Best {where}: {seen[best].name}, {percent(means[best])} correct"
    words += f" with {size:,} trained parameters, {percent(share, 2)} of the base" if size else ""
    bare = [percent(means[run.id]) for run in runs if run.id in means and run.id != best and run.spec.adapter is None]
    return words + (f". The base alone reaches {' and '.join(bare)}." if bare else ".")


def _figures(runs: Sequence[Run], more: Sequence[go.Figure]) -> dict[str, Any]:
    trained = [run for run in runs if next(run.events("Step"), None)]
    scored, found = bool(task_names(runs)), groups(runs)
    moved = [(run, len(list(run.events("Norms")))) for run in trained]
    return {
        "accuracy": _figure(plots.accuracy(*runs)) if scored else None,
        "means": _figure(plots.means(found)) if any(len(group.runs) > 1 for group in found) else None,
        "parameters": _figure(plots.parameters_against_accuracy(*runs)) if scored and trained else None,
        "losses": _figure(plots.loss_curve(*trained)) if trained else None,
        "norms": [_figure((plots.norm_evolution if n > 2 else plots.norm_heatmap)(run)) for run, n in moved if n],
        "more": [_figure(figure) for figure in more],
    }


def _figure(figure: go.Figure) -> dict[str, Any]:
    """Return a figure for the template: its data as JSON, and the table that stands in without JavaScript."""
    # Only "<" could end the script element; as JSON the escape means the same.
    data = json.dumps(json.loads(figure.to_json()), separators=(",", ":")).replace("<", "\\u003c")
    rows = plots.data(figure)
    kept = rows[:: -max(1, -(-len(rows) // ROWS))][::-1]  # evenly, and the last one in any case
    names = heads(rows)
    cells = [[cell(row.get(name)) for name in names] for row in kept]
    title = unescape(figure.layout.title.text)
    return {"title": title, "height": figure.layout.height, "json": Html(data), "heads": names, "rows": cells}


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
