"""The tables of results that the command line prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm_adapters_lab.cli.console import clock, percent, say, show_rows
from llm_adapters_lab.results.comparison import FORMAT, leak

if TYPE_CHECKING:
    from llm_adapters_lab.runs.record import Run

MARK = "!"  # of a task whose test rows were seen in training
FORMAT_NOTE = (
    "Few answers of a run are in the asked format. A jump from there can be format, not knowledge: 'in format' says "
    "how many answers could be read, 'by label' and 'by text' how often the right option is the likeliest one, as its "
    "label and as its words, whatever is generated."
)


def show_comparison(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows of `comparison.table` for reading, then what to note about them.

    Rows of `paper.published` may follow; they have fewer keys.
    """
    show_rows(
        [
            {
                "run": row["name"],
                "trainable": row.get("trainable_parameters"),
                "of base": None if row.get("share_of_base") is None else f"{row['share_of_base']:.2%}",
                "time": None if row.get("seconds") is None else clock(row["seconds"]),
                "task": (row["task"] or row["status"]) + MARK * bool(row.get("leak") or row.get("contaminated")),
                **_score(row),
            }
            for row in rows
        ]
    )
    notes = [
        f"{MARK} {row['task']}, {row['name']}: {row['leak']:.0%} of the test rows are in the training data"
        for row in rows
        if row.get("leak")
    ]
    notes += sorted({f"{MARK} {row['name']}: {row['note']}" for row in rows if row.get("contaminated")})
    if any(row.get("in_format") is not None and row["in_format"] < FORMAT for row in rows):
        notes.append(FORMAT_NOTE)
    for note in notes:
        say(note)


def _score(score: dict[str, Any]) -> dict[str, str | None]:
    named, low = score.get("protocol"), score.get("low")
    shots = f", {score['shots']} shots" if score.get("shots") else ""
    cells = {
        "protocol": f"{named}{shots}" if named else None,
        "accuracy": percent(score["accuracy"]),
        "95 % interval": None if low is None else f"{100 * low:.1f} to {100 * score['high']:.1f} %",
        "correct": None if score.get("correct") is None else f"{score['correct']} of {score['total']}",
        **{name: percent(score.get(name.replace(" ", "_"))) for name in ("chance", "majority", "in format")},
        **{name: percent(score.get(name.replace(" ", "_"))) for name in ("by label", "by text")},
    }
    return cells | ({"too long": str(score["too_long"])} if score.get("too_long") else {})


def show_pairs(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows of `paired.pairs`: differences in points with their interval, and what may be said of them."""
    show_rows(
        [
            {
                **{"first": row["first"], "second": row["second"], "task": row["task"], "items": row["items"]},
                **{"only first right": row["only_first"], "only second right": row["only_second"]},
                "difference": f"{100 * row['difference']:+.1f}",
                "95 % interval": f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
                **{"p": f"{row['p']:.2g}", "verdict": row["verdict"]},
            }
            for row in rows
        ]
    )


def show_seeds(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows of `paired.seeds`: mean and spread of runs that differ in their seed alone."""
    show_rows(
        [
            {
                **{"name": row["name"], "task": row["task"], "seeds": ", ".join(map(str, row["seeds"]))},
                "mean ± deviation": f"{100 * row['mean']:.1f} ± {100 * row['deviation']:.1f}",
                "range": f"{percent(row['low'])} to {percent(row['high'])}",
            }
            for row in rows
        ]
    )


def show_rescored(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print stored scores and those of the same answers read by another rule, one below the other."""
    show_rows(
        [
            {"task": task, "extraction": score.get("extraction"), **_score(score)}
            for task in after
            for score in (before[task], after[task])
        ]
    )


def show_result(record: Run) -> None:
    """Print the scores of a run with what they have to beat, and the folder of the run."""
    summary = record.summary
    if scores := summary.get("scores"):
        seen = {task: share for task in scores if (share := leak(summary, task))}
        show_rows([{"task": task + MARK * (task in seen), **_score(score)} for task, score in scores.items()])
        for task, share in seen.items():
            say(f"{MARK} {task}: {share:.0%} of the test rows are in the training data")
        if any(score.get("in_format") is not None and score["in_format"] < FORMAT for score in scores.values()):
            say(FORMAT_NOTE)
    if trained := summary.get("train"):
        say(
            f"trained {trained['steps']} steps in {clock(trained['seconds'])}, loss {trained['loss_first']:.3f} to "
            f"{trained['loss_last']:.3f}, {trained['tokens_per_second']:,.0f} tokens/s"
        )
    if held := summary.get("adapter_bytes"):
        say(f"adapter: {summary['trainable_parameters']:,} parameters, {held / 1000:,.1f} kB of tensors on disk")
    if "error" in summary:
        say(summary.get("traceback", ""))
        say(f"failed while {summary['stage']}: {summary['error']}")
        say(summary.get("advice", ""))
    elif not record.done:
        from llm_adapters_lab.runs.recovery.failures import goes_on

        begun = (record.folder / "spec.json").is_file()
        where = goes_on(record, record.spec) if begun else "at the beginning"
        say(f"{summary['status']}. Run the same spec again: it goes on {where}.")
    say(f"run: {record.folder}")
