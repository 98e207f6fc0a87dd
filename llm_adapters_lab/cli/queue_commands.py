"""The command for the queue of runs: list it, add to it, remove from it, and work on it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_adapters_lab.cli.arguments import Changes, Root, complete_runs, complete_specs, load_spec
from llm_adapters_lab.cli.console import Output, remark, say, show_rows, stop_on_signal, with_json
from llm_adapters_lab.errors import BadSpec

if TYPE_CHECKING:
    from llm_adapters_lab.runs.record import Run

Jobs = Annotated[int, typer.Option(min=1, help="Runs at a time.")]


@with_json
def queue(
    specs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SPEC]...", help="Specs to add, the first to be started first.", autocompletion=complete_specs
        ),
    ] = None,
    changes: Changes = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Remove a run. May be repeated.", autocompletion=complete_runs),
    ] = None,
    first: Annotated[
        str, typer.Option(metavar="RUN", help="Let a run be the next.", autocompletion=complete_runs)
    ] = "",
    start: Annotated[bool, typer.Option("--start", help="Start the runs in the background, if nothing does.")] = False,
    work: Annotated[bool, typer.Option("--work", help="Start the runs from this command, until none waits.")] = False,
    jobs: Jobs = 1,
    root: Root = Path("runs"),
) -> Output:
    """List the runs that wait to be started one after another; add specs to them.

    Added runs are started in the background. Finished runs are not repeated, and a failed one does not stop the others.
    """
    from llm_adapters_lab.runs import queue as waiting

    if changes and not specs:
        raise BadSpec("--set changes a spec, and none is given. Name it: queue SPEC --set KEY=VALUE.")
    notes = _add(specs, changes, root) if specs else []
    for name in remove or ():
        waiting.remove(_queued(name, root))
    if first:
        run = _queued(first, root)
        while waiting.queued(root)[0] != run:
            waiting.move_up(run)
    if work:
        _work(root, jobs)
    elif specs or start:
        from llm_adapters_lab.sweeps.queue import keep

        keep(root, jobs)
    runs = waiting.queued(root)
    idle = bool(runs) and not (specs or start) and waiting.keeper(root) is None

    def show() -> None:
        for note in notes:
            remark(note)
        if runs:
            show_rows(_rows(runs))
        else:
            say("No run waits.")
        if idle:
            remark("Nothing starts them now: use --start.")

    return Output([{"place": place, "id": run.id} for place, run in enumerate(runs, 1)], show)


def _add(specs: list[Path], changes: list[str] | None, root: Path) -> list[str]:
    from llm_adapters_lab.models.spec import check_base
    from llm_adapters_lab.runs.record import check_writable

    wanted = [load_spec(path, changes) for path in specs]
    check_writable(root)
    for spec in wanted:
        check_base(spec.base)
    from llm_adapters_lab.sweeps.queue import enqueue

    added = {run.id for run in enqueue(wanted, root)}
    return [f"{spec.id} is finished or active already." for spec in wanted if spec.id not in added]


def _queued(name: str, root: Path) -> Run:
    from llm_adapters_lab.runs import queue as waiting
    from llm_adapters_lab.runs.presets import is_spec

    begin = load_spec(Path(name)).id if is_spec(name) else name
    found = [run for run in waiting.queued(root) if run.id.startswith(begin)]
    if len(found) != 1:
        why = f"{len(found)} runs that wait begin with {name!r}" if found else f"No run {name!r} waits"
        raise BadSpec(f"{why} under {root}. `queue` lists those that do.")
    return found[0]


def _work(root: Path, jobs: int) -> None:
    """Start the queued runs, in forked copies of this process where that is possible."""
    from llm_adapters_lab.cli.waiting import fork, load
    from llm_adapters_lab.sweeps.queue import work

    copies = load()
    if copies:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # copies that have ended leave nothing behind
    with stop_on_signal() as stop:
        work(root, jobs, fork if copies else None, stop)


def _rows(runs: list[Run]) -> list[dict[str, Any]]:
    from llm_adapters_lab.results.appearance import short_names, spec_fields
    from llm_adapters_lab.runs.status import spec_of

    fields: dict[str, Any] = {}
    for run in runs:
        try:
            fields[run.id] = spec_fields(spec_of(run.id, run.folder.parent))
        except (BadSpec, OSError):  # of another version
            fields[run.id] = {}
    names = short_names(fields)
    return [{"place": place, "run": names[run.id], "id": run.id} for place, run in enumerate(runs, 1)]
