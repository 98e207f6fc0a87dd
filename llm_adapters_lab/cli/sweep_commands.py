"""The command that does a sweep: its table while it goes, its result, and what it would cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Group as Stack
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llm_adapters_lab.cli import console
from llm_adapters_lab.cli.console import clock, percent, say
from llm_adapters_lab.cli.list_commands import Json

if TYPE_CHECKING:
    from llm_adapters_lab.results.seed_groups import Group
    from llm_adapters_lab.sweeps.sweeping import Standing
from typing import TYPE_CHECKING

from llm_adapters_lab.cli.console import cell

if TYPE_CHECKING:
    from llm_adapters_lab.sweeps.costs import Cost
    from llm_adapters_lab.sweeps.sweeping import Standing

COLOURS = {
    "finished": "green",
    "running": "cyan",
    "stopping": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "dead": "red",
}


class Where(StrEnum):
    """The names of `executors.EXECUTORS`, known before anything is imported."""

    local = "local"
    process = "process"
    study = "study"
    ray = "ray"
    slurm = "slurm"


WHERE = (
    "local: in this process, one after the other; process: in others, which go on without this command; study: here, "
    "several at once over one base; ray: on the cluster of RAY_ADDRESS, or all of this machine; slurm: as jobs."
)


def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file, YAML: a spec with grid, list, random or seeds.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the shared spec.")
    ] = None,
    executor: Annotated[Where, typer.Option(help=WHERE)] = Where.local,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; with ray and slurm: in the queue.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="With ray and slurm: processors for each run.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="With ray and slurm: GPUs for each run.")] = None,
    hours: Annotated[float | None, typer.Option(min=0.1, help="With slurm: time limit of a job.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Start nothing; show what it would cost.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="File of the report that compares all runs; default: ROOT/NAME.html.")
    ] = None,
    root: Annotated[Path, typer.Option("--root", help="Folder of all runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Do many runs that vary one spec, or only those that are not done yet."""
    from transformers.utils import logging

    from llm_adapters_lab.config import assignments
    from llm_adapters_lab.sweeps.executors import executor as make
    from llm_adapters_lab.sweeps.spec import Sweep
    from llm_adapters_lab.sweeps.sweeping import sweep as work

    what = Sweep.load(file, assignments(changes or []))
    where = make(executor, jobs=jobs, cpus=cpus, gpus=gpus, hours=hours)
    if dry_run:
        show_costs(what, root, jobs or 1, as_json)
        return
    logging.disable_progress_bar()
    with console.stop_on_signal() as stop, nullcontext() if as_json else Board() as board:
        ended = work(what, root=root, where=where, stop=stop, on_look=board)
    path = _report(ended, report or root / f"{what.name}.html")
    if as_json:
        console.print_json({"runs": [_plain(standing) for standing in ended], "report": path and str(path)})
    else:
        _show_end(ended, path)
    if any(standing.state.name != "finished" for standing in ended):
        raise typer.Exit(stop.code if stop.is_set() else 1)


class Board:
    """Shows how the runs of a sweep stand: a live table on a terminal, a line for each change anywhere else."""

    def __init__(self) -> None:
        """Make a display; it appears inside `with`."""
        from llm_adapters_lab.sweeps.sweeping import teller

        self.console = console.console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self.tell = teller(say)
        self.began = time.monotonic()

    def __enter__(self) -> Board:
        """Start drawing."""
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop drawing."""
        if self.live:
            self.live.stop()

    def __call__(self, standings: Sequence[Standing]) -> None:
        """Show how the runs stand."""
        from llm_adapters_lab.sweeps.sweeping import counted

        if self.live:
            # What works or has failed must be seen; the console may be too low for all.
            room = max(1, self.console.height - 5)
            first = sorted(standings, key=lambda s: not (s.state.works or s.state.name == "failed"))[:room]
            chosen = [s for s in standings if s in first]
            hidden = f"; {len(standings) - room} not shown" if len(standings) > room else ""
            below = f"{counted(standings)}; {clock(time.monotonic() - self.began)}{hidden}"
            self.live.update(Stack(_table(chosen), Text(below)), refresh=True)
            return
        self.tell(standings)


def _table(standings: Sequence[Standing]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    names = list(dict.fromkeys(name for standing in standings for name in standing.changes))
    for name in (*names, "state", "", "accuracy", "run"):
        table.add_column(escape(name), overflow="fold", justify="right" if name == "accuracy" else "left")
    for standing in standings:
        values = [changed(standing, name) for name in names]
        colour = COLOURS.get(standing.state.name)
        state = f"[{colour}]{standing.state.name}[/]" if colour else standing.state.name
        row = _plain(standing)
        table.add_row(*map(escape, values), state, escape(_progress(standing)), percent(row["accuracy"]), row["id"])
    return table


def _progress(standing: Standing) -> str:
    from llm_adapters_lab.runs.event_log import last_event

    if standing.state.name == "finished":
        return ""
    if not standing.state.works:
        return standing.state.reason.partition("\n")[0]
    last = last_event(standing.run.log) or {}
    if last.get("event") == "Step":
        return f"step {last['step']} of {last['steps']}, {clock(last['seconds_left'])} left"
    return f"{last['task']} {last['done']} of {last['total']}" if last.get("event") == "Scoring" else ""


def _show_end(ended: Sequence[Standing], report: Path | None) -> None:
    from llm_adapters_lab.results.seed_groups import groups
    from llm_adapters_lab.sweeps.spec import words

    console.console().print(_table(ended))
    failed = [standing for standing in ended if standing.state.name not in ("finished", "unfinished")]
    for standing in failed:
        say(f"{words(standing.changes)} {standing.state.name}: {standing.state.reason}")
    found = groups([standing.run for standing in ended])
    if any(len(group.runs) > 1 for group in found):
        console.show_rows([_group(group) for group in found])
    if any(standing.state.works for standing in ended):
        say("What works goes on without this command; the same command finds it again.")
    elif any(standing.state.name != "finished" for standing in ended):
        say("The same command does what is not finished.")
    if report:
        say(f"report: {report}")


def _group(group: Group) -> dict[str, Any]:
    """Return a row of the table of means over seeds."""
    return {
        **{"run": group.name, "seeds": ", ".join(map(str, group.seeds)), "mean accuracy": percent(group.mean)},
        "95 % interval": f"{100 * group.low:.1f} to {100 * group.high:.1f} %",
        "range of seeds": f"{100 * min(group.means):.1f} to {100 * max(group.means):.1f} %",
    }


def _report(ended: Sequence[Standing], path: Path) -> Path | None:
    from llm_adapters_lab.results.reports import report

    begun = [standing.run for standing in ended if standing.run.done]
    return report(begun, path) if begun else None


def _plain(standing: Standing) -> dict[str, Any]:
    from llm_adapters_lab.results.comparison import mean_accuracy

    run, state = standing.run, standing.state
    fixed = {"id": run.id, "changes": standing.changes, "state": state.name, "reason": state.reason}
    return fixed | {"accuracy": mean_accuracy(run) if state.name == "finished" else None}


GIGA = 1e9


def show_costs(what: Any, root: Path, jobs: int, as_json: bool) -> None:
    """Print what every run of a sweep would cost, and all of them; nothing is started."""
    from llm_adapters_lab.sweeps.costs import costs
    from llm_adapters_lab.sweeps.sweeping import check

    points = what.points()
    check(points)
    found = costs(points, root)
    if as_json:
        console.print_json([_cost(cost) for cost in found])
        return
    rows = [
        {
            **{name: changed(cost, name) for name in cost.changes},
            **{"state": cost.state.name, "trainable": cost.size.trainable, "of base": percent(cost.size.share)},
            "GB": round((cost.size.weights + cost.size.training) / GIGA, 3),
            **{"time": None if cost.seconds is None else clock(cost.seconds), "run": cost.run.id},
        }
        for cost in found
    ]
    console.show_rows(rows)
    say(_total(found, jobs))


def _total(found: Sequence[Cost], jobs: int) -> str:
    from llm_adapters_lab.runs.forecast.duration import TIMES

    open_ = [cost for cost in found if cost.state.name != "finished"]
    known = [cost.seconds for cost in open_ if cost.seconds is not None]
    lines = [f"{len(found)} runs, {len(found) - len(open_)} of them finished, {len(open_)} to do."]
    lines.append("GB: weights, adapter, gradients and AdamW's moments; activations and the libraries come on top.")
    if open_ and known:
        several = f", {jobs} at a time: {clock(sum(known) / jobs)} at best" if jobs > 1 else ""
        missing = f"; the other {len(open_) - len(known)}: unknown" if len(known) < len(open_) else ""
        lines.append(f"Time for {len(known)} to do: {clock(sum(known))}{several} ({TIMES}){missing}.")
    elif open_:
        lines.append("Time: unknown; no finished run here has the same base, data, batch, steps and scoring.")
    return "\n".join(lines)


def _cost(cost: Cost) -> dict[str, Any]:
    size = {"trainable": cost.size.trainable, "base": cost.size.base, "bytes": cost.size.weights + cost.size.training}
    fixed = {"id": cost.run.id, "changes": cost.changes, "state": cost.state.name}
    return fixed | size | {"seconds": cost.seconds, "from_runs": cost.alike}


def changed(of: Standing | Cost, name: str) -> str:
    """Return in words what a run of a sweep has in a field that is varied."""
    from llm_adapters_lab.sweeps.spec import value_words

    value = of.changes.get(name)
    return value_words(value) if name in of.changes else cell(None)
