"""The commands that start, forecast or repeat a run: run, rerun, doctor."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_adapters_lab.cli.arguments import Changes, Root, RunName, SpecName, complete_specs, find, load_spec
from llm_adapters_lab.cli.console import (
    Output,
    Progress,
    loading,
    no_bars,
    quiet,
    remark,
    say,
    show_rows,
    stop_on_signal,
    with_json,
)
from llm_adapters_lab.cli.result_commands import show_result
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.results.formatting import about, size

if TYPE_CHECKING:
    from llm_adapters_lab.runs.preview import Forecast

SHOWN = 20
"""Differences of a repeated run that are printed."""
FINISHED = "This run is finished already; --fresh starts it over."


@with_json
def run(
    spec: SpecName,
    changes: Changes = None,
    root: Root = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over even if the run is finished.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Forecast size, memory and time; read no weights.")] = False,
) -> Output | None:
    """Train and score the run that a spec describes.

    A finished run is not repeated, and an interrupted one is resumed. Ctrl-C saves a checkpoint and stops.
    """
    from llm_adapters_lab.models.spec import check_base
    from llm_adapters_lab.runs.base_files import unchanged
    from llm_adapters_lab.runs.record import Run, check_writable
    from llm_adapters_lab.runs.recovery.lock import unlock

    wanted = load_spec(spec, changes)
    record = Run(root / wanted.id)
    if dry or fresh or not record.done:
        check_base(wanted.base)
        if not dry and "RANK" not in os.environ:  # the processes of a group check it together
            check_writable(record.folder)
    if dry:
        with loading():
            from llm_adapters_lab.runs.preview import dry_run

        found = dry_run(wanted, root)
        return Output(found.as_json(), lambda: show_forecast(found))
    launched = any(name in ("RANK", "WORLD_SIZE") or name.startswith("ACCELERATE_") for name in os.environ)
    if record.done and not (fresh or launched) and unchanged(record):
        unlock(record)
        if not quiet.get():
            say(FINISHED)
        return Output(record.summary, lambda: show_result(record))
    with loading():
        no_bars()
        from llm_adapters_lab.runs.execution import run as do

    is_main = os.environ.get("RANK", "0") == "0"  # the other processes of a group have nothing to show
    with stop_on_signal() as stop:
        if is_main:
            with Progress() as progress:
                record = do(wanted, root=root, fresh=fresh, stop=stop, on_event=progress)
            if not progress.events and record.done and not progress.quiet:
                say(FINISHED)
        else:
            record = do(wanted, root=root, fresh=fresh, stop=stop)
    # A network file system may show the other processes an older state of the record.
    failed = not (record.done if is_main else not stop.is_set())
    code = (stop.code if stop.is_set() else 1) if failed else 0
    if not is_main:
        raise typer.Exit(code)
    return Output(record.summary, lambda: show_result(record), code)


@with_json
def rerun(run: RunName, root: Root = Path("runs")) -> Output:
    """Repeat a finished run and compare bit for bit.

    The run is repeated in a temporary folder. The exit code is 0 if everything is identical, otherwise 1.
    """
    record = find(run, root)
    with loading():
        no_bars()
        from llm_adapters_lab.runs.reproduce import rerun as repeat

    with Progress() as progress:
        found = repeat(record, progress)

    def show() -> None:
        if found:
            columns = {"field": "field", "before": "before", "now": "now", "may be due to": "cause"}
            show_rows([{name: _short(getattr(row, key)) for name, key in columns.items()} for row in found[:SHOWN]])
        more = f", of which {SHOWN} are shown; --json lists all" if len(found) > SHOWN else ""
        say(f"Differences: {len(found):,}{more}." if found else f"No difference: {record.id} is reproduced exactly.")

    return Output([vars(difference) for difference in found], show, int(bool(found)))


def _short(value: Any) -> Any:
    """Return a hash by its beginning, and anything else as it is."""
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value


@with_json
def doctor(
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="SPEC", help="Also forecast this spec, like `run --dry-run`.", autocompletion=complete_specs
        ),
    ] = None,
    changes: Changes = None,
    root: Root = Path("runs"),
) -> Output:
    """Show what the lab chooses on this machine, and why."""
    if changes and not spec:
        raise BadSpec("--set changes a spec, and none is given. Name it: doctor SPEC --set KEY=VALUE.")
    wanted = load_spec(spec, changes) if spec else None
    if wanted:
        from llm_adapters_lab.models.spec import check_base

        check_base(wanted.base)
    with loading():
        from llm_adapters_lab.runs.forecast.fits import memory_of_machine
        from llm_adapters_lab.runs.forecast.machine import choices
        from llm_adapters_lab.runs.preview import dry_run

    found = dry_run(wanted, root) if wanted else None
    chosen = [vars(choice) for choice in (*choices(), *(found.fast_paths if found else ()))]

    def show() -> None:
        show_rows(chosen)
        if found:
            show_forecast(found)

    more = found.as_json() if found else {"memory": None, "available": memory_of_machine()}
    return Output({"choices": chosen} | more, show)


def show_forecast(found: Forecast) -> None:
    """Print a forecast as tables and notes."""
    spec, unknown = found.spec, "unknown"
    kind = " + ".join(part.type for part in spec.adapter.parts) if spec.adapter else ""
    from llm_adapters_lab.core.sites import describe_counts

    places = describe_counts(found.sites_by_layer) or "the whole model"
    facts = {
        "run": f"{found.id} ({found.state})",
        "base": f"{spec.base}: {found.base_parameters:,} parameters",
        "quantization": found.quantization,
        "adapter": f"{kind}: {found.trainable_parameters:,} parameters" if kind else "none",
        "sites": places if spec.adapter else "none",
        "rows to train on": unknown if found.rows is None else f"{found.rows:,}",
        "steps": found.steps_in_words or (unknown if found.steps is None else f"{found.steps:,}"),
        "rows to score on": ", ".join(f"{name} {count:,}" for name, count in found.asked.items()) or "none known",
        "time": unknown if found.duration.seconds is None else f"{about(found.duration.seconds)}. {found.duration.why}",
    }
    show_rows([{"what": name, "dry run": text} for name, text in facts.items()])
    memory = found.memory
    parts = {**vars(memory), "total": memory.total} if memory else {"weights": found.weights}
    there = {"available": size(found.available)} if found.available else {}
    show_rows([{name: size(count) for name, count in parts.items()} | there | {"fits": "yes" if found.fits else "no"}])
    for note in found.notes:
        remark(note)
