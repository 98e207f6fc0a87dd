"""How results are written: values as text, scores as rows of a table, and such rows as Markdown.

`cli.console` prints the same rows on a terminal; `report.html.j2` has the HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
NONE = "–"
"""Text of a value that is not known."""
SHARES = ("chance", "majority", "in format", "by label", "by text", "acc_norm", "by limit")
"""Columns of a score that are shares, named after its keys."""
SAID = 80
"""Characters of an answer in a table."""
LEAKING = "!"
"""Mark of a task whose test rows are in the training data."""


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share, 0..1, as a percentage; a dash for None."""
    return NONE if share is None else f"{100 * share:.{digits}f}%"


def interval(low: float | None, high: float | None) -> str:
    """Return the ends of an interval of shares as "12.3 to 45.6%"; a dash for None."""
    return NONE if low is None or high is None else f"{100 * low:.1f} to {percent(high)}"


def size(count: int) -> str:
    """Return a number of bytes in MB, or in GB from 1 GB on."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def clock(seconds: float | None) -> str:
    """Return a duration in seconds as m:ss or h:mm:ss; a dash for None."""
    if seconds is None:
        return NONE
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def cell(value: Any) -> str:
    """Return a value as the text of a table cell."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def heads(rows: Iterable[Row]) -> list[str]:
    """Return the columns of rows, in the order in which the rows name them."""
    return list(dict.fromkeys(head for row in rows for head in row))


def texts(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the columns of rows as text, without those in which no row has a value."""
    columns = {head: [cell(row.get(head)) for row in rows] for head in heads(rows)}
    return {head: column for head, column in columns.items() if set(column) != {NONE}}


def score_cells(score: Row) -> dict[str, Any]:
    """Return a score as the cells of a row, the most important first.

    Args:
        score: one of a summary, a row of `comparison.compare`, or one of `published_results.published`.
    """
    shots = f", {score['shots']} shots" if score.get("shots") else ""
    return {
        "accuracy": percent(score["accuracy"]),
        "95% interval": interval(score.get("low"), score.get("high")),
        "correct": None if score.get("correct") is None else f"{score['correct']} of {score['total']}",
        **{name: percent(score.get(name.replace(" ", "_"))) for name in SHARES},
        "too long": score.get("too_long") or None,
        "protocol": f"{score['protocol']}{shots}" if score.get("protocol") else None,
        "prompt": score.get("template"),
        "dtype": score.get("dtype"),
        "batch": score.get("batch"),
    }


def item_cells(item: Row) -> dict[str, Any]:
    """Return an item of `paired_tests.disagreements` as the cells of a row, with both answers and log-likelihoods."""
    cells = {key: item[key] for key in ("against", "task", "id", "right", "gold", "first", "second")}
    for which in ("first", "second"):
        said = item.get(f"{which}_text")
        cells[f"{which} said"] = " ".join(said.split())[:SAID] if said is not None else None
        cells[f"{which} log-likelihoods"] = likelihoods_cell(item.get(f"{which}_options"))
    return cells


def likelihoods_cell(options: Mapping[str, Mapping[str, float]] | None) -> str | None:
    """Return the log-likelihoods of a question's options, by label and by text, in nats; None where not scored."""
    kinds = [(kind, (options or {}).get(kind)) for kind in ("label", "text")]
    found = [f"{kind}: {', '.join(f'{k} {v:.2f}' for k, v in values.items())}" for kind, values in kinds if values]
    return "; ".join(found) or None


def task_cell(row: Row) -> str:
    """Return the task of a row of `comparison.compare`, marked if its test rows leaked; its status if it has none."""
    return str(row["task"] or row["status"]) + LEAKING * bool(row.get("leak") or row.get("contaminated"))


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; whatever the cells hold is shown as it stands."""
    columns = texts(rows)
    lines = [
        list(columns),
        ["---"] * len(columns),
        *zip(*(map(plain_markdown, c) for c in columns.values()), strict=True),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain_markdown(text: str) -> str:
    """Return text that Markdown shows as it stands."""
    return re.sub(r"([\\`*_{}\[\]<>|#!~&])", r"\\\1", " ".join(text.split()))
