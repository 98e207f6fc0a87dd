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

from llm_adapters_lab import terminal
from llm_adapters_lab.catalogue import Json
from llm_adapters_lab.sweep_costs import changed, show_costs
from llm_adapters_lab.terminal import clock, percent, say

if TYPE_CHECKING:
    from llm_adapters_lab.groups import Group
    from llm_adapters_lab.sweep import Standing

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

    from llm_adapters_lab.executors import executor as make
    from llm_adapters_lab.fields import assignments
    from llm_adapters_lab.sweep import sweep as work
    from llm_adapters_lab.sweep_file import Sweep

    what = Sweep.load(file, assignments(changes or []))
    where = make(executor, jobs=jobs, cpus=cpus, gpus=gpus, hours=hours)
    if dry_run:
        show_costs(what, root, jobs or 1, as_json)
        return
    logging.disable_progress_bar()
    with terminal.stop_on_signal() as stop, nullcontext() if as_json else Board() as board:
        ended = work(what, root=root, where=where, stop=stop, on_look=board)
    path = _report(ended, report or root / f"{what.name}.html")
    if as_json:
        terminal.print_json({"runs": [_plain(standing) for standing in ended], "report": path and str(path)})
    else:
        _show_end(ended, path)
    if any(standing.state.name != "finished" for standing in ended):
        raise typer.Exit(stop.code if stop.is_set() else 1)


class Board:
    """Shows how the runs of a sweep stand: a live table on a terminal, a line for each change anywhere else."""

    def __init__(self) -> None:
        """Make a display; it appears inside `with`."""
        from llm_adapters_lab.sweep import teller

        self.console = terminal.console()
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
        from llm_adapters_lab.sweep import counted

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
    from llm_adapters_lab.tail import last_event

    if standing.state.name == "finished":
        return ""
    if not standing.state.works:
        return standing.state.reason.partition("\n")[0]
    last = last_event(standing.run) or {}
    if last.get("event") == "Step":
        return f"step {last['step']} of {last['steps']}, {clock(last['seconds_left'])} left"
    return f"{last['task']} {last['done']} of {last['total']}" if last.get("event") == "Scoring" else ""


def _show_end(ended: Sequence[Standing], report: Path | None) -> None:
    from llm_adapters_lab.groups import groups
    from llm_adapters_lab.sweep_file import words

    terminal.console().print(_table(ended))
    failed = [standing for standing in ended if standing.state.name not in ("finished", "unfinished")]
    for standing in failed:
        say(f"{words(standing.changes)} {standing.state.name}: {standing.state.reason}")
    found = groups([standing.run for standing in ended])
    if any(len(group.runs) > 1 for group in found):
        terminal.show_rows([_group(group) for group in found])
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
    from llm_adapters_lab.report import report

    begun = [standing.run for standing in ended if standing.run.done]
    return report(begun, path) if begun else None


def _plain(standing: Standing) -> dict[str, Any]:
    from llm_adapters_lab.comparison import mean_accuracy

    run, state = standing.run, standing.state
    fixed = {"id": run.id, "changes": standing.changes, "state": state.name, "reason": state.reason}
    return fixed | {"accuracy": mean_accuracy(run) if state.name == "finished" else None}
