"""How results are written everywhere: values as text, scores as rows of a table, and such rows as Markdown.

`cli.console` prints the same rows on a terminal; `report.html.j2` has the HTML.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
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
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_PART = re.compile(r"\d+/")
_PROJECTIONS = ("q", "k", "v", "o", "qkv", "q_a", "q_b", "kv_a", "kv_b", "gate", "up", "gate_up", "down")


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share, 0..1, as a percentage such as "91.7 %"; a dash for None."""
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def interval(low: float | None, high: float | None) -> str:
    """Return the ends of an interval of shares as "12.3 to 45.6 %"; a dash for None."""
    return NONE if low is None or high is None else f"{100 * low:.1f} to {percent(high)}"


def spread(shares: Sequence[float]) -> str:
    """Return the mean and the standard deviation (n - 1) of shares over seeds, such as "84.9 ± 4.5 % (3 seeds)"."""
    if len(shares) < 2:
        return percent(shares[0] if shares else None)
    return f"{100 * statistics.fmean(shares):.1f} ± {percent(statistics.stdev(shares))} ({len(shares)} seeds)"


def size(count: float) -> str:
    """Return a number of bytes with three digits and a decimal unit: "999 B", "344 kB", "2.5 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 999.5 else f"{count:,.0f} TB"


def count(number: int | None) -> str:
    """Return a number with three digits, as in tables: "999", "12.3k", "1.31M", "6.74B"; a dash for None."""
    if number is None:
        return NONE
    if number < 1000:
        return str(number)
    scaled = float(number)
    for unit in ("k", "M", "B"):
        scaled /= 1000
        if scaled < 999.5:
            return f"{scaled:.3g}{unit}"
    return f"{scaled / 1000:.3g}T"


def clock(seconds: float | None) -> str:
    """Return a duration in seconds as m:ss or h:mm:ss; a dash for None."""
    if seconds is None:
        return NONE
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def about(seconds: float | None) -> str:
    """Return an estimated duration in seconds in words: "about 40 s", "about 6 min", "about 2 h"; a dash for None."""
    if seconds is None:
        return NONE
    if seconds < 57.5:
        return f"about {max(5 * round(seconds / 5), 1)} s"
    if seconds < 90 * 60:
        return f"about {max(round(seconds / 60), 1)} min"
    return f"about {seconds / 3600:.2g} h"


def ago(at: float, now: float | None = None) -> str:
    """Return how long ago something was: "just now", "5 min ago", "3 h ago", "yesterday 14:03", "12 Nov 14:03".

    Args:
        at: seconds since 1970.
        now: the same of the present; by default, the clock's.
    """
    now = time.time() if now is None else now
    then, today = datetime.fromtimestamp(at), datetime.fromtimestamp(now)
    days, past = (today.date() - then.date()).days, now - at
    if past < 45:
        return "just now"
    if past < 3570:
        return f"{max(round(past / 60), 1)} min ago"
    if days == 0:
        return f"{round(past / 3600)} h ago"
    if days == 1:
        return f"yesterday {then:%H:%M}"
    year = f" {then.year}" if then.year != today.year else ""
    return f"{then.day} {_MONTHS[then.month - 1]}{year} {then:%H:%M}"


def date(at: float) -> str:
    """Return a time in seconds since 1970 as "2025-11-28 14:03:20", local: the full text of `ago`."""
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"


def place(key: str) -> tuple[int | None, str]:
    """Split a site key at its first number, the layer: "model.layers.3.mlp.up_proj" -> (3, "mlp.up_proj").

    The number of a part, as in "0/model.layers.3.mlp.up_proj", is no layer and is left out.
    """
    key = key[found.end() :] if (found := _PART.match(key)) else key
    found = re.search(r"\d+", key)
    if found is None:
        return None, key
    before = re.split(r"[./]", key[: found.start()])
    return int(found[0]), key[found.end() :].lstrip("./") or f"whole {before[-1] or 'layer'}"


def site_names(keys: Iterable[str], roles: Mapping[str, str] | None = None) -> dict[str, tuple[int | None, str]]:
    """Return layer and name of each site: "model.layers.3.self_attn.q_proj" -> (3, "q").

    A name is the role of the site, as in a placement; where several sites of a layer have the same, it is the path in
    the layer, with the part of the adapter that is there if it has several.

    Args:
        keys: of the sites.
        roles: of the sites by key, as in `Site.role`, if the model is known; else they are taken from the key.
    """
    places = {key: place(key) for key in keys}
    named = {key: (layer, (roles or {}).get(key) or _role(kind)) for key, (layer, kind) in places.items()}
    shared = Counter(named.values())
    # One site with a path instead of a role would be torn from its row of other layers.
    doubtful = {name for (_, name), number in shared.items() if number > 1}
    return {key: _apart(key) if name in doubtful else (layer, name) for key, (layer, name) in named.items()}


def _apart(key: str) -> tuple[int | None, str]:
    """Return layer and path of a site, and the number of its part if there is one."""
    layer, path = place(key)
    part = _PART.match(key)
    return layer, f"{path} (part {int(part[0][:-1]) + 1})" if part else path


def site_name(layer: int | None, name: str) -> str:
    """Return a site of `site_names` in words: "q, layer 3"."""
    return name if layer is None else f"{name}, layer {layer}"


def _role(kind: str) -> str:
    """Return the role of a site by its path in the layer; the path where that does not tell."""
    path, _, whole = kind.partition(":")
    if whole:  # a sublayer, or an input
        role = whole.partition(":")[0]
        return _role(path) + ".in" if role == "in" else whole.replace(":in", ".in")
    parent, _, last = path.rpartition(".")
    role = last.removesuffix("_proj") if last not in ("in_proj", "out_proj") else last
    if role not in _PROJECTIONS or re.search(r"cross|encoder|expert|\d", parent):
        return kind
    return role


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
        "95 % interval": interval(score.get("low"), score.get("high")),
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
