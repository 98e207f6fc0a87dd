"""The command that runs a sweep: its progress, its results, and its estimated cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group as Stack
from rich.live import Live
from rich.text import Text

from llm_adapters_lab.cli.arguments import Changes, Root, complete_files
from llm_adapters_lab.cli.console import (
    Output,
    as_table,
    console,
    no_bars,
    quiet,
    remark,
    say,
    show_rows,
    stop_on_signal,
    with_json,
)
from llm_adapters_lab.errors import LabError
from llm_adapters_lab.results.formatting import about, clock, interval, percent, size

if TYPE_CHECKING:
    from llm_adapters_lab.results.benchmark_report import Standing
    from llm_adapters_lab.sweeps.spec import Point
    from llm_adapters_lab.sweeps.sweeping import Cost, SweepRun

Row = dict[str, Any]


Where = Literal["local", "process", "study", "ray", "slurm"]
"""The names of `executors.EXECUTORS`, known before anything is imported."""
WHERE = (
    "local: in this process, one run after another; process: in processes that continue without this command; study: "
    "in this process, several runs at once over one base; ray: on the cluster of RAY_ADDRESS, or all of this machine; "
    "slurm: as jobs."
)


@with_json
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="SWEEP",
            help="Sweep file (YAML): a spec, varied by grid, list, random and seeds.",
            autocompletion=complete_files,
        ),
    ],
    changes: Changes = None,
    executor: Annotated[Where, typer.Option(help=WHERE)] = "local",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; ray, slurm: runs in the queue.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="ray, slurm: processors for each run.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="ray, slurm: GPUs for each run.")] = None,
    hours: Annotated[float | None, typer.Option(min=0.1, help="slurm: time limit of a job.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show size and time of every run; start none.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write the report on all runs.", show_default="ROOT/NAME.html"),
    ] = None,
    root: Root = Path("runs"),
) -> Output:
    """Run many variations of one spec.

    Finished runs are not repeated, and a failed one does not stop the others. The same command resumes a sweep.
    """
    from llm_adapters_lab.config import assignments
    from llm_adapters_lab.results import reports
    from llm_adapters_lab.runs.record import check_writable
    from llm_adapters_lab.sweeps.spec import Sweep

    what = Sweep.load(file, assignments(changes or []))
    points = what.points()
    _check_bases(points, root)
    path = report or root / f"{what.name}.html"
    if not dry_run:
        check_writable(root)
        reports.check_report(path)
    from llm_adapters_lab.sweeps import sweeping
    from llm_adapters_lab.sweeps.executors import make_executor

    where = make_executor(executor, jobs=jobs, cpus=cpus, gpus=gpus, hours=hours)
    if dry_run:
        sweeping.check_points(points)
        found = sweeping.costs(points, root)
        return Output([_plain_cost(cost) for cost in found], partial(_show_costs, found, jobs or 1))
    no_bars()
    with stop_on_signal() as stop, Board() as board:
        ended = sweeping.sweep(what, root=root, executor=where, stop=stop, on_update=board)
    done = [each.run for each in ended if each.run.done]
    if done:
        reports.report(done, path)
    code = (stop.code if stop.is_set() else 1) if any(each.state.name != "finished" for each in ended) else 0
    value = {"runs": [_plain(each) for each in ended], "report": str(path) if done else None}
    return Output(value, lambda: _show_end(ended, path if done else None), code)


@with_json
def benchmark(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="BENCHMARK",
            help="Benchmark file (YAML): methods, ranges to search, seeds.",
            autocompletion=complete_files,
        ),
    ],
    executor: Annotated[Where, typer.Option(help=WHERE)] = "local",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; ray, slurm: runs in the queue.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all runs and count them; start none.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write the report with all figures.", show_default="ROOT/NAME.html"),
    ] = None,
    root: Root = Path("runs"),
) -> Output:
    """Compare methods fairly: each gets the same number of runs to search, and the best setting several seeds.

    Settings are chosen by the loss on rows held out of the training rows; test questions are only answered by the runs
    that are compared. The same command resumes a benchmark.
    """
    from llm_adapters_lab.runs.record import check_writable
    from llm_adapters_lab.sweeps.benchmarks import Benchmark

    what = Benchmark.load(file)
    points = [point for contest in what.contests() for point in what.searched(contest)]
    _check_bases(points, root)
    from llm_adapters_lab.results import benchmark_report, plots, reports
    from llm_adapters_lab.sweeps import sweeping
    from llm_adapters_lab.sweeps.benchmarks import benchmark as do
    from llm_adapters_lab.sweeps.executors import make_executor

    words = f"{len(what.methods)} methods, a search of {what.search.budget} and {len(what.seeds)} seeds each"
    path = report or root / f"{what.name}.html"
    where = make_executor(executor, jobs=jobs)
    if dry_run:
        sweeping.check_points(points)
        count = len(points) + len(what.contests()) * len(what.seeds) + len({place.base for place in what.contests()})
        return Output({"runs": count}, lambda: say(f"{count:,} runs: {words}."))
    check_writable(root)
    reports.check_report(path)
    no_bars()
    with stop_on_signal() as stop, Board() as board:
        outcome = do(what, root=root, executor=where, stop=stop, on_update=board)
    found = benchmark_report.standings(outcome)
    done = [run for runs in outcome.finals.values() for run in runs if run.done]
    if done:
        reports.report(done, path, plots.benchmark_figures(outcome, found), "Benchmark")
    code = stop.code if stop.is_set() else 1 if outcome.unfinished else 0
    value: Row = {"standings": [each.row() for each in found], "unfinished": dict(outcome.unfinished)}
    value |= {"budget": what.search.budget, "verdicts": benchmark_report.verdicts(outcome, found)}
    value |= {"saved_tokens": benchmark_report.saved_tokens(outcome), "report": str(path) if done else None}
    return Output(value, partial(_show_standings, found, value), code)


def _show_standings(found: Sequence[Standing], value: Row) -> None:
    from llm_adapters_lab.results.overview import chance

    several = len({(each.contest.base, each.contest.task) for each in found}) > 1
    rows = [
        {
            **({"base": one.contest.base, "task": one.contest.task} if several else {}),
            "tier": one.tier,
            "method": one.contest.method,
            "accuracy": percent(one.accuracy),
            "95 % interval": interval(*one.ends["accuracy"]) if one.tier else None,
            "seeds": ", ".join(percent(share) for share in one.by_seed),
            "against the best": chance(one.rival) if one.rival else None,
            "setting": ", ".join(f"{name.rpartition('.')[2]} {number:.3g}" for name, number in one.setting.items()),
            "loss": f"{one.loss:.3f}",
            "typical": f"{one.typical_loss:.3f}",
            "forgetting": f"{one.measures['forgetting']:+.3f}" if "forgetting" in one.measures else None,
            "retained": f"{100 * one.measures['retained']:+.1f}" if "retained" in one.measures else None,
            "trainable": round(one.measures["trainable"]) if one.tier else None,
            "FLOPs": f"{one.measures['flops']:.2g}" if one.tier else None,
            "time": clock(one.measures["seconds"]) if one.tier else None,
        }
        for one in found
    ]
    empty = {name for name in rows[0] if all(row[name] is None for row in rows)}
    show_rows([{name: value for name, value in row.items() if name not in empty} for row in rows], keep=4)
    for text in value["verdicts"]:
        remark(text)
    if saved := value["saved_tokens"]:
        remark(f"{sum(one.ended for one in found)} runs were ended early, which saved {percent(saved)} of the search.")
    most = max(one.tried for one in found)
    for one in found:
        for name in one.edges:
            remark(f"{one.contest.words}: the best {name} is the end of what was tried. Widen its range.")
        if one.tried < most:
            remark(f"{one.contest.words}: only {one.tried} different settings were tried, of others {most}.")
        if one.failed:
            remark(f"{one.contest.words}: {one.failed} runs of the search have failed or not ended.")
    for run_id, reason in value["unfinished"].items():
        say(f"{run_id}: {reason}")
    if value["unfinished"]:
        remark("Repeat this command to do the runs that are not finished.")
    if value["report"]:
        say(f"report: {value['report']}")


def _check_bases(points: Sequence[Point], root: Path) -> None:
    """Refuse bases that do not exist, before anything is imported that could read them."""
    from llm_adapters_lab.models.spec import check_base
    from llm_adapters_lab.runs.record import Run
    from llm_adapters_lab.sweeps.spec import describe_changes, reject

    faults = {}
    for changes, spec in points:
        try:
            if not Run(root / spec.id).done:
                check_base(spec.base)
        except LabError as error:
            faults[describe_changes(changes)] = str(error)
    reject(faults)


class Board(ExitStack):
    """Shows the states of a sweep's runs: a live table on a terminal, a line for each change otherwise."""

    def __init__(self) -> None:
        """Start drawing; the end of a `with` ends it."""
        super().__init__()
        from llm_adapters_lab.sweeps.sweeping import progress_printer

        self.console, self.quiet = console(), quiet.get()
        shown = self.console.is_terminal and not self.quiet
        live = Live(console=self.console, auto_refresh=False, transient=True)
        self.live = self.enter_context(live) if shown else None
        self.print = progress_printer(say)
        self.began = time.monotonic()

    def __call__(self, runs: Sequence[SweepRun]) -> None:
        """Show the states of all runs."""
        from llm_adapters_lab.sweeps.sweeping import count_states

        if self.live:
            # Active and failed runs must be seen; the terminal may be too low for all.
            room = max(1, self.console.height - 5)
            first = sorted(runs, key=lambda each: not (each.state.works or each.state.name == "failed"))[:room]
            rows = _rows([each for each in runs if each in first])
            hidden = f"; {len(runs) - room} not shown" if len(runs) > room else ""
            below = f"{count_states(runs)}; {clock(time.monotonic() - self.began)}{hidden}"
            self.live.update(Stack(as_table(rows, self.console.width)[0], Text(below)), refresh=True)
        elif not self.quiet:
            self.print(runs)


def _rows(runs: Sequence[SweepRun]) -> list[Row]:
    """Return a row for each run: what distinguishes it, its state, and how far it is."""
    return [
        {
            **changed,
            "state": run.state.name,
            "accuracy": percent(_plain(run)["accuracy"]),
            "progress": _progress(run) or None,
            "run": run.run.id,
        }
        for run, changed in zip(runs, _varying(runs), strict=True)
    ]


def _progress(run: SweepRun) -> str:
    from llm_adapters_lab.runs.event_log import last_event

    if not run.state.works:
        return "" if run.state.name == "finished" else run.state.reason.partition("\n")[0]
    last = last_event(run.run.log) or {}
    if last.get("event") == "Step":
        return f"step {last['step']} of {last['steps']}, {clock(last['seconds_left'])} left"
    return f"{last['task']} {last['done']} of {last['total']}" if last.get("event") == "Scoring" else ""


def _show_end(ended: Sequence[SweepRun], report: Path | None) -> None:
    from llm_adapters_lab.results.seed_groups import groups
    from llm_adapters_lab.sweeps.spec import describe_changes

    show_rows(_rows(ended), keep=len(_varying(ended)[0]) + 1)
    for each in ended:
        if each.state.name not in ("finished", "unfinished"):
            say(f"{describe_changes(each.changes)} {each.state.name}: {each.state.reason}")
    found = groups([each.run for each in ended])
    if any(len(group.runs) > 1 for group in found):
        rows = [
            {
                "run": group.name,
                "mean accuracy": percent(group.mean),
                "95 % interval": interval(group.low, group.high),
                "range of seeds": interval(min(group.means), max(group.means)),
                "seeds": ", ".join(map(str, group.seeds)),
            }
            for group in found
        ]
        show_rows(rows)
    if any(each.state.works for each in ended):
        remark("Active runs continue in the background; repeat this command to re-attach.")
    elif any(each.state.name != "finished" for each in ended):
        remark("Repeat this command to do the runs that are not finished.")
    if report:
        say(f"report: {report}")


def _plain(run: SweepRun) -> Row:
    from llm_adapters_lab.results.comparison import mean_accuracy

    known = {"id": run.run.id, "changes": run.changes, "state": run.state.name, "reason": run.state.reason}
    return known | {"accuracy": mean_accuracy(run.run) if run.state.name == "finished" else None}


def _show_costs(found: Sequence[Cost], jobs: int) -> None:
    """Print what every run of a sweep would cost, and all of them together."""
    from llm_adapters_lab.runs.forecast.duration import total

    rows = [
        {
            **changed,
            "state": cost.state.name if cost.run.folder.exists() else "not started",
            "trainable": cost.size.trainable,
            "of base": percent(cost.size.share, 2),
            "memory": size(cost.size.weights + cost.size.training),
            "time": about(cost.duration.seconds).removeprefix("about "),
            "run": cost.run.id,
        }
        for cost, changed in zip(found, _varying(found), strict=True)
    ]
    show_rows(rows)
    left = [cost for cost in found if cost.state.name != "finished"]
    time = total(cost.duration for cost in left)
    done = f"{len(found) - len(left)} of {len(found)} runs are finished; " if len(left) < len(found) else ""
    several = f", {jobs} at a time: {about(time.seconds / jobs)} at best" if jobs > 1 and time.seconds else ""
    words = f"{about(time.seconds)}{several}" if time.seconds is not None else "time unknown"
    say(f"{done}{len(left)} run{'s' * (len(left) != 1)}, {words}." if left else f"All {len(found)} runs are finished.")
    if left:
        remark(f"Time: {time.why[0].lower()}{time.why[1:]}" if time.why else "")
    remark("Memory: weights, adapter, gradients and AdamW's moments; activations and libraries are not included.")


def _plain_cost(cost: Cost) -> Row:
    amount = {"trainable": cost.size.trainable, "base": cost.size.base}
    amount["bytes"] = cost.size.weights + cost.size.training
    known = {"id": cost.run.id, "changes": cost.changes, "state": cost.state.name}
    return known | amount | {"seconds": cost.duration.seconds, "time_from": cost.duration.source}


def _varying(runs: Sequence[SweepRun | Cost]) -> list[Row]:
    """Return what `_changed` does, without fields that have the same value in all runs."""
    rows = _changed(runs)
    titles = dict.fromkeys(title for row in rows for title in row)
    varied = [title for title in titles if len(rows) == 1 or len({row.get(title) for row in rows}) > 1]
    return [{title: row[title] for title in varied if title in row} for row in rows]


def _changed(runs: Sequence[SweepRun | Cost]) -> list[Row]:
    """Return in words what each run of a sweep has in the fields that are varied, by the shortest clear names."""
    from llm_adapters_lab.sweeps.spec import describe_value

    fields = {name for run in runs for name in run.changes}
    last = Counter(name.rpartition(".")[2] for name in fields)
    titles = {name: short if last[short := name.rpartition(".")[2]] == 1 else name for name in fields}
    return [{titles[name]: describe_value(value) for name, value in run.changes.items()} for run in runs]
