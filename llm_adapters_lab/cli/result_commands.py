"""The commands that read finished runs: list, show, compare, rescore, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llm_adapters_lab.cli.arguments import (
    RUN_HELP,
    Root,
    RunName,
    RunNames,
    complete_columns,
    complete_published,
    complete_runs,
    find,
)
from llm_adapters_lab.cli.console import Output, remark, say, show_rows, with_json
from llm_adapters_lab.errors import BadSpec, listed
from llm_adapters_lab.results.formatting import ago, clock, interval, percent, score_cells, task_cell

if TYPE_CHECKING:
    from llm_adapters_lab.results.run_index import Entry
    from llm_adapters_lab.runs.record import Run

Row = dict[str, Any]
Rule = Literal["lab", "original"]
SORT_HELP = "Sort by a field of the spec, or by accuracy, trainable, begun, state or id; the largest {}."
PAPER_HELP = "Add a row of the paper's tables, e.g. llama-7b-lora. May be repeated."
FILTER_HELP = (
    "Only runs that match, e.g. 'adapter=lora,rank>=8' or 'state=failed'. Fields compare with = != < <= > >=; other "
    "words are searched in ids, notes and specs."
)
COMPARED_HELP = f"{RUN_HELP} Without any, --filter, --sort or --limit choose from all runs."
Filter = Annotated[str, typer.Option("--filter", metavar="TERMS", help=FILTER_HELP)]
UNDECIDED = "undecided"
ASKED = ("protocol", "prompt", "dtype", "batch")
"""Columns on how a task was asked."""
MOST = 5
"""Unreadable runs that a list names."""


def sort_option(end: str) -> Any:
    """Return the option --sort of a command that shows the largest first or last."""
    return typer.Option("--sort", metavar="FIELD", help=SORT_HELP.format(end), autocompletion=complete_columns)


@with_json
def list_runs(
    root: Root = Path("runs"),
    sort: Annotated[str, sort_option("last")] = "",
    terms: Filter = "",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the last N runs of the list.")] = None,
) -> Output:
    """List runs, the newest last."""
    known = _all_runs(root)
    rows = _select(known, sort, terms)
    shown = rows[:limit][::-1]

    def show() -> None:
        if readable := [entry for entry in shown if entry.fields]:
            show_rows(_listed(readable, sort), keep=5, cut="run")
        if broken := [entry.id for entry in shown if not entry.fields]:
            remark(f"Unreadable: {listed(broken, MOST, ', ')}. `show` gives the reason.")
        if not known:
            say(f"There are no runs under {root} yet.")
        elif not rows:
            say(f"None of the {len(known)} runs under {root} matches {terms!r}.")
        elif len(shown) < len(known):
            say(f"{len(shown)} of {len(known)} runs.")

    return Output([_plain(entry) for entry in shown], show)


def _all_runs(root: Path) -> list[Entry]:
    from llm_adapters_lab.results import run_index

    return [entry for entry in run_index.entries(root) if not entry.run.folder.is_symlink()]


def _select(known: Sequence[Entry], sort: str, terms: str) -> list[Entry]:
    """Return the runs that match a filter; sorted, the largest first, if `sort` names a field."""
    from llm_adapters_lab.results import run_index

    rows = run_index.matching(known, terms)
    return run_index.ordered(rows, run_index.by_field(known, sort), down=True) if sort else rows


def _listed(entries: Sequence[Entry], sort: str) -> list[Row]:
    from llm_adapters_lab.results.appearance import short_names
    from llm_adapters_lab.results.run_index import full_name, words

    names = short_names({e.id: {key: value for key, value in e.fields.items() if key != "state"} for e in entries})
    key = full_name(sort, list(dict.fromkeys(key for entry in entries for key in entry.values))) if sort else ""
    first = key.rpartition(".")[2]
    rows = []
    for entry in entries:
        row: Row = {"run": names[entry.id], "id": entry.id}
        cells: Row = {"state": "unreadable" if entry.fault else entry.state.name, "accuracy": percent(entry.accuracy)}
        cells |= {"trainable": entry.trainable, "marks": _marks(entry), "note": entry.note.partition("\n")[0] or None}
        cells |= {"time": clock(entry.train["seconds"]) if entry.train.get("seconds") else None}
        cells["begun"] = ago(entry.begun)
        cells["by task"] = ", ".join(f"{task} {percent(share)}" for task, share in entry.scores.items()) or None
        if first and first not in row:  # what the list is sorted by must be seen
            row[first] = (
                cells.pop(first) if first in cells else words(entry.values[key]) if key in entry.values else None
            )
        rows.append(row | cells)
    return rows


def _marks(entry: Entry) -> str | None:
    """Return star, baseline and tags in a cell."""
    words = ["★"] * entry.marks.star + ["baseline"] * entry.marks.baseline + [f"#{tag}" for tag in entry.marks.tags]
    return " ".join(words) or None


def _plain(entry: Entry) -> Row:
    return {
        "id": entry.id,
        "status": "unreadable" if entry.fault else entry.state.name,
        "base": entry.fields.get("base"),
        "adapter": entry.fields.get("adapter.type"),
        "at": entry.fields.get("adapter.at"),
        "trainable": entry.trainable,
        "accuracy": dict(entry.scores),
        "star": entry.marks.star,
        "tags": entry.marks.tags,
        "baseline": entry.marks.baseline,
    }


@with_json
def show(run: RunName, root: Root = Path("runs")) -> Output:
    """Show the spec of a run and its results."""
    record = find(run, root)
    spec = record.spec.model_dump(mode="json")

    def show() -> None:
        from llm_adapters_lab.config import to_yaml

        given = record.spec.model_dump(mode="json", exclude_none=True)
        say(f"# {record.id}\n" + to_yaml(given))
        show_result(record)

    return Output({"id": record.id, "folder": str(record.folder), "spec": spec, "summary": record.summary}, show)


@with_json
def compare(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help=COMPARED_HELP, autocompletion=complete_runs)
    ] = None,
    root: Root = Path("runs"),
    sort: Annotated[str, sort_option("first")] = "",
    terms: Filter = "",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N runs.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a report with figures.")] = None,
    paper: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help=PAPER_HELP, autocompletion=complete_published)
    ] = None,
    items: Annotated[bool, typer.Option("--items", help="List the items that only one of two runs got right.")] = False,
) -> Output:
    """Compare runs by costs, scores and paired tests.

    The tests compare the first run with each other run, item by item.
    """
    from llm_adapters_lab.results import paired_tests, seed_groups
    from llm_adapters_lab.results.appearance import looks, short_names, spec_fields
    from llm_adapters_lab.results.comparison import compare, remarks, task_names
    from llm_adapters_lab.results.formatting import item_cells
    from llm_adapters_lab.results.overview import overview
    from llm_adapters_lab.results.published_results import published

    chosen, unreadable = _chosen(names or (), root, sort, terms, limit)
    tasks = task_names(chosen)
    rows, beside = compare(chosen), [row for name in paper or () for row in published(name, tasks)]
    if html:
        from llm_adapters_lab.results.reports import report

        report(chosen, html)
    summed = overview(chosen)
    found: dict[str, Any] = {"unreadable": unreadable} if unreadable else {}
    found |= {"rows": rows, "paper": beside, "pairs": paired_tests.pairs(chosen), "seeds": seed_groups.seeds(chosen)}
    if items:
        found["items"] = [
            row | {"against": looks(chosen)[other.id].name}
            for other in chosen[1:]
            for row in paired_tests.disagreements(chosen[0], other)
        ]

    def show() -> None:
        if unreadable:
            remark(f"Unreadable, left out: {listed(unreadable, MOST, ', ')}. `show` gives the reason.")
        short = short_names({run.id: spec_fields(run.spec) for run in chosen})
        called = {look.name: short[run] for run, look in looks(chosen).items()}
        if any(len(group.entries) > 1 for group in summed.groups):
            say("Seeds averaged: mean ± standard deviation")
            show_rows(summed.rows(), keep=3, cut="run")
            remark(f"{summed.verdict}\n")
        show_rows([_cost(row, short) for row in {row["run"]: row for row in rows}.values()], keep=4, cut="run")
        order = dict.fromkeys([*tasks, *(row["task"] for row in beside)])
        scored = [row for task in order for row in rows + beside if row["task"] == task]
        if scored:
            say("")
            cells = [
                {"task": task_cell(row), "run": called.get(row["name"], row["name"]), **score_cells(row)}
                for row in scored
            ]
            shared = _shared(cells)
            show_rows([{k: v for k, v in row.items() if k not in shared} for row in cells], keep=5, cut="run")
            if shared:
                remark(f"The same in all: {', '.join(f'{name} {value}' for name, value in shared.items())}.")
        for text in remarks(rows + beside):
            remark(text)
        for name in set(paper or ()) - {row["name"] for row in beside}:
            known = ", ".join(row["task"] for row in published(name))
            remark(f"{name}: the paper has none of these tasks. It has {known}.")
        if found["pairs"]:
            paired = {look.name: short[run] for run, look in looks([run for run in chosen if run.done]).items()}
            cells = [_pair(row, paired) for row in found["pairs"]]
            remark(f"\n{short[chosen[0].id]} against each other run: difference in points, exact McNemar test")
            left_out = show_rows(cells, keep=6, cut="other run")
            if "verdict" not in left_out and any(row["verdict"] == UNDECIDED for row in cells):
                remark(f"{UNDECIDED}: not distinguishable on the items that both have answered.")
            for text in paired_tests.differing_questions(found["pairs"]):
                remark(text)
        if found.get("items"):
            say("\nItems that only one of two runs got right")
            show_rows([item_cells(row) | {"against": called[row["against"]]} for row in found["items"]], keep=5)
        if html:
            say(f"report: {html}")

    return Output(found, show)


def _chosen(names: Sequence[str], root: Path, sort: str, terms: str, limit: int | None) -> tuple[list[Run], list[str]]:
    """Return the runs to compare: those that are named, or all, as filter, sort and limit ask; and unreadable ones."""
    from llm_adapters_lab.results import run_index

    named = list({run.id: run for run in (find(name, root) for name in names)}.values())
    if not (sort or terms or limit):
        if not named:
            raise BadSpec("No run was named. Name the runs to compare, or choose some with --filter; see `list`.")
        return named, []
    every = [run_index.entry(run) for run in named] or _all_runs(root)
    known = [entry for entry in every if not entry.fault]
    rows = _select(known, sort, terms)
    if not rows:
        raise BadSpec(f"None of {len(known)} runs under {root} matches {terms!r}." if known else f"{root} has no runs.")
    return [entry.run for entry in rows[:limit]], [entry.id for entry in every if entry.fault]


def _cost(row: Row, names: Mapping[str, str]) -> Row:
    return {
        "run": names[row["run"]],
        "id": row["run"],
        "trainable": row["trainable_parameters"],
        "of base": percent(row["share_of_base"], 2),
        "time": clock(row["seconds"]),
        "status": None if row["status"] == "finished" else row["status"],
    }


def _pair(row: Row, names: Mapping[str, str]) -> Row:
    verdict = row["verdict"].removesuffix(" is better")
    return {
        "other run": names[row["second"]],
        "task": row["task"],
        "difference": f"{100 * row['difference']:+.1f}" if row["items"] else None,
        "95 % interval": f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}" if row["items"] else None,
        "p": f"{row['p']:.2g}" if row["items"] else None,
        "verdict": {row["first"]: "worse", row["second"]: "better", "not distinguishable": UNDECIDED}.get(
            verdict, verdict
        ),
        "items": row["items"],
        "first only": row["only_first"],
        "other only": row["only_second"],
    }


def _shared(rows: Sequence[Row]) -> Row:
    """Return the cells on how a task was asked that are the same in all of several rows."""
    if len({row["run"] for row in rows}) < 2:
        return {}
    values = {name: {row.get(name) for row in rows} for name in ASKED}
    return {name: value for name, (value, *others) in values.items() if not others and value is not None}


@with_json
def rescore(
    run: RunName,
    extraction: Annotated[Rule, typer.Option(help="Rule that extracts the answers.")] = "original",
    root: Root = Path("runs"),
) -> Output:
    """Score the stored answers of a run by another rule.

    Nothing is written, and no model is needed.
    """
    from llm_adapters_lab.results.rescoring import rescore as read_again

    record = find(run, root)
    after, before = read_again(record, extraction), record.summary["scores"]
    pairs = [(task, score) for task in after for score in (before[task], after[task])]
    rows = [{"task": task, "extraction": score.get("extraction"), **score_cells(score)} for task, score in pairs]
    return Output(after, partial(show_rows, rows, keep=3))


def report(
    names: RunNames,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")] = Path("report.html"),
    root: Root = Path("runs"),
) -> None:
    """Write an HTML report of one or several runs; it works offline."""
    chosen = [find(name, root) for name in names]
    from llm_adapters_lab.results.reports import report as write

    say(f"report: {write(chosen, out)}")


@with_json
def losses(
    names: RunNames,
    tasks: Annotated[str, typer.Option(metavar="TASK,TASK,...", help="Default: what the runs learnt.")] = "",
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Held-out rows of each task, at most.")] = 96,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a heat map.")] = None,
    root: Root = Path("runs"),
) -> Output:
    """Measure the loss of each run's adapter, and of the base, on the held-out rows of each task.

    The adapters have one base. Losses are in nats per token that training counts.
    """
    chosen = [find(name, root) for name in names]
    from llm_adapters_lab.results.loss_matrix import loss_matrix

    found = loss_matrix(chosen, [task.strip() for task in tasks.split(",") if task.strip()], rows)
    if html:
        from llm_adapters_lab.files import writing

        with writing(html):
            found.figure().write_html(html)
    table = [
        {"adapter": name, **dict(zip(found.tasks, own, strict=True))}
        for name, own in zip(found.names, found.losses, strict=True)
    ]

    def show() -> None:
        show_rows([{k: v if isinstance(v, str) else f"{v:.3f}" for k, v in row.items()} for row in table])
        remark(
            f"Nats per token on {listed([f'{n} rows' for n in dict.fromkeys(found.rows)], gap=' or ')} of each task."
        )

    return Output(table, show)


@with_json
def published(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of the JSON results of peft's comparison; or paper.")
    ],
    task: Annotated[str, typer.Option(metavar="TASK", help="With paper: the task of its tables.")] = "gsm8k",
    against: Annotated[
        str, typer.Option(metavar="NAME", help="The experiment to compare with; default: the best.")
    ] = "",
    questions: Annotated[int, typer.Option(min=1, metavar="N", help="Number of test questions.")] = 1319,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a figure.")] = None,
) -> Output:
    """Rank the published results of peft's method comparison, or those of LLM-Adapters, and say what is really apart.

    The results have one seed, and which questions were answered right is not known.
    """
    from llm_adapters_lab.results import peft_results

    if str(folder) == "paper":
        results, left_out = peft_results.paper_results(task), list[str]()
    else:
        results, left_out = peft_results.read_peft_results(folder, questions)
    places = peft_results.rank(results, against)
    mine = next(place.result for place in places if place.p is None)
    if html:
        from llm_adapters_lab.files import writing

        with writing(html):
            peft_results.figure(places).write_html(html)
    table = [
        {
            "tier": place.tier,
            "experiment": place.result.name,
            "accuracy": percent(place.result.accuracy),
            "95 % interval": interval(*place.result.ends),
            "p": "" if place.p is None else f"{place.p:.2g}",
            "verdict": place.verdict(mine),
            "forgetting": "" if place.result.forgetting is None else f"{place.result.forgetting:.3f}",
            "rate": "" if place.result.learning_rate is None else f"{place.result.learning_rate:g}",
            "trainable": place.result.trainable,
            "time": None if place.result.seconds is None else clock(place.result.seconds),
        }
        for place in places
    ]
    table = [{name: value for name, value in row.items() if any(other[name] for other in table)} for row in table]
    found = [asdict(p.result) | {"tier": p.tier, "p": p.p, "verdict": p.verdict(mine)} for p in places]

    def show() -> None:
        show_rows(table, keep=4, cut="experiment")
        remark(peft_results.summary(places))
        for text in left_out:
            remark(f"Left out: {text}")

    return Output({"results": found, "left_out": left_out}, show)


def show_result(record: Run) -> None:
    """Print the scores of a run with what they have to beat, its training, and its folder."""
    from llm_adapters_lab.events import row_remarks
    from llm_adapters_lab.results.comparison import compare, remarks

    summary, rows = record.summary, [row for row in compare([record]) if row["task"]]
    if rows:
        show_rows([{"task": task_cell(row), **score_cells(row)} for row in rows], keep=2)
        for text in remarks(rows):
            remark(text)
    for text in row_remarks(summary):
        remark(text)
    if trained := summary.get("train"):
        loss = f"loss {trained['loss_first']:.3f} to {trained['loss_last']:.3f}"
        speed = f"{trained['tokens_per_second']:,.0f} tokens/s"
        say(f"trained {trained['steps']} steps in {clock(trained['seconds'])}, {loss}, {speed}")
    if held := summary.get("adapter_bytes"):
        from llm_adapters_lab.core.sites import describe_counts

        where = describe_counts(summary.get("sites") or {})
        at = f" at {where}" if where else ""
        say(f"adapter: {summary['trainable_parameters']:,} parameters{at}, {held / 1000:,.1f} kB of tensors on disk")
    if "error" in summary:
        say(summary.get("traceback", ""))
        say(f"failed while {summary['stage']}: {summary['error']}")
        say(summary.get("advice", ""))
    elif not record.done:
        from llm_adapters_lab.runs.status import resumes_at

        begun = (record.folder / "spec.json").is_file()
        where = resumes_at(record, record.spec) if begun else "at the beginning"
        say(f"{summary['status']}. Run the same spec again: it resumes {where}.")
    say(f"run: {record.folder}")
