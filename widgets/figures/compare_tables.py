"""Tables of a comparison as markup: scores with intervals, tests of the differences, and what sets the specs apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm_adapters_lab.cli.tables import FORMAT_NOTE
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results.appearance import Look, looks
from llm_adapters_lab.results.comparison import FORMAT, compare, differences, mean_accuracy, task_names
from llm_adapters_lab.results.paired_tests import LEVEL, pairs
from llm_adapters_lab.results.run_index import words
from llm_adapters_lab.results.seed_groups import seeds
from llm_adapters_lab.runs.record import Run

_EDGE = "1px solid var(--jp-border-color2, #c8ced4)"
_CELL = f"padding: 3px 10px 3px 4px; border-bottom: {_EDGE}; text-align: left; vertical-align: top; line-height: 1.4"
_MARKED = "background: rgba(230, 159, 0, 0.25); font-weight: 600"
_NOTE = "color: var(--jp-ui-font-color2, #5b6570); line-height: 1.4; max-width: 900px; padding: 2px 4px"


def legend(names: Mapping[str, Look]) -> Html:
    """Return which run has which name and colour in what follows."""
    lines = []
    for run_id, look in names.items():
        dot = f"display: inline-block; width: 0.8em; height: 0.8em; border-radius: 50%; background: {look.colour}"
        lines.append(el("div", el("span", style=dot, aria_hidden="true"), " ", el("b", look.name), f"  {run_id}"))
    return el("div", *lines, style="line-height: 1.5; overflow-wrap: anywhere")


def scores(runs: Sequence[Run]) -> Html | None:
    """Return accuracy and 95 % interval of every run on every dataset, with what belongs beside them; None for none."""
    names, tasks = looks(runs), task_names(runs)
    if not tasks:
        return None
    rows = [row for row in compare(runs) if row["task"]]
    texts = {
        (row["task"], row["run"]): f"{_percent(row['accuracy'])} ({_percent(row['low'])} to {_percent(row['high'])})"
        for row in rows
    }
    lines = [[task, *(texts.get((task, run.id), "–") for run in runs)] for task in tasks]
    if len(tasks) > 1:
        means = [mean_accuracy(run, tasks) for run in runs]
        lines.append(["mean of all", *("–" if mean is None else _percent(mean) for mean in means)])
    remarks = ["Accuracy in %, in brackets its 95 % Wilson interval."]
    remarks += [
        f"{row['task']}, {row['name']}: {row['leak']:.0%} of the test rows are in the training data."
        for row in rows
        if row["leak"]
    ]
    if any(row["in_format"] is not None and row["in_format"] < FORMAT for row in rows):
        remarks.append(FORMAT_NOTE)
    return _table("Accuracy on each dataset", ["dataset", *(names[run.id].name for run in runs)], lines, remarks)


def significance(runs: Sequence[Run]) -> Html | None:
    """Return the test of the first run against each other, and the spread over seeds; None for less than two."""
    found = pairs(runs)
    if not found:
        return None
    heads = ["run", "against", "dataset", "items", "only run right", "only other right", "difference", "p", "verdict"]
    lines, marked = [], set()
    for place, row in enumerate(found):
        # Read as "other against the reference", so that a gain is a plus.
        gain, low, high = (f"{0 - 100 * row[key]:+.1f}" for key in ("difference", "high", "low"))
        counts = [str(row["items"]), str(row["only_second"]), str(row["only_first"])]
        test = [f"{gain} ({low} to {high})", f"{row['p']:.2g}", row["verdict"]]
        lines.append([row["second"], row["first"], row["task"], *counts, *test])
        if row["verdict"].endswith("is better"):
            marked.add((place, len(heads) - 1))
    remarks = [
        f"Difference in points with its 95 % bootstrap interval; p by the exact McNemar test on the items both have "
        f"answered. Every line is a test of its own: of runs that are alike, up to 1 line in {1 / LEVEL:.0f} is called "
        "better by chance."
    ]
    remarks += [
        f"{row['name']}, {row['task']}: {_percent(row['mean'])} ± {_percent(row['deviation'])} over the seeds "
        f"{', '.join(map(str, row['seeds']))}."
        for row in seeds(runs)
    ]
    return _table("Are the differences real?", heads, lines, remarks, marked)


def differing(runs: Sequence[Run]) -> Html | None:
    """Return the fields of the specs that are not the same, marked where they differ from the first; None for none."""
    found, names = differences(runs), looks(runs)
    lines, marked = [], set()
    for place, (key, values) in enumerate(found.items()):
        texts = [words(values[run.id]) if run.id in values else "–" for run in runs]
        lines.append([key, *texts])
        marked |= {(place, i + 1) for i, text in enumerate(texts) if text != texts[0]}
    remarks = [f"Marked: not as in {names[runs[0].id].name}. –: the run has no such field."] if lines else []
    heads = ["field", *(names[run.id].name for run in runs)]
    return _table("What sets the specs apart", heads, lines, remarks, marked) if lines else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _table(
    title: str,
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    remarks: Sequence[str],
    marked: set[tuple[int, int]] | None = None,
) -> Html:
    top = el("tr", *(el("th", head, style=_CELL, scope="col") for head in heads))
    body = []
    for i, line in enumerate(lines):
        cells = [el("th", line[0], style=f"{_CELL}; font-weight: normal; white-space: nowrap", scope="row")]
        for j, text in enumerate(line[1:], 1):
            look = f"{_CELL}; {_MARKED}" if (i, j) in (marked or ()) else _CELL
            # Only what is long may break, such as the path of a file.
            cells.append(
                el("td", text, style=f"{look}; {'min-width: 16em' if len(text) > 40 else 'white-space: nowrap'}")
            )
        body.append(el("tr", *cells))
    caption = el("caption", el("b", title), style="text-align: left; padding: 12px 4px 4px; font-size: 115%")
    look = "border-collapse: collapse; font-variant-numeric: tabular-nums"
    whole = el("table", caption, el("thead", top), el("tbody", *body), style=look)
    scroll = el("div", whole, style="overflow-x: auto", tabindex="0", role="region", aria_label=title)
    return el("div", scroll, *(el("div", text, style=_NOTE) for text in remarks))
