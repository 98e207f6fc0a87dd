"""What is told of a run beside its result: what it would be, and whether it comes out the same again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_adapters_lab.cli.console import Progress, clock, print_json, say, show_rows, size
from llm_adapters_lab.cli.list_commands import Json

if TYPE_CHECKING:
    from llm_adapters_lab.runs.spec import RunSpec

SHOWN = 20


def rerun(
    run: Annotated[str, typer.Argument(help="Run id, the beginning of one, or a run folder.")],
    root: Annotated[Path, typer.Option("--root", help="Folder of all runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Do a finished run again, elsewhere, and compare to the bit; exit code 0 if all is equal, 1 if not."""
    from transformers.utils import logging

    from llm_adapters_lab.runs.record import Run, find_run
    from llm_adapters_lab.runs.reproduce import rerun as do_again

    logging.disable_progress_bar()
    record = Run(Path(run)) if os.path.isfile(Path(run) / "spec.json") else find_run(run, root)
    if as_json:
        found = do_again(record)
        print_json([vars(difference) for difference in found])
    else:
        with Progress() as progress:
            found = do_again(record, progress)
        if found:
            columns = {"field": "field", "before": "before", "now": "now", "may be due to": "cause"}
            show_rows([{name: _short(getattr(row, key)) for name, key in columns.items()} for row in found[:SHOWN]])
        more = f", of which {SHOWN} are shown; --json lists all" if len(found) > SHOWN else ""
        say(f"Differences: {len(found):,}{more}." if found else f"No difference: {record.id} came out the same again.")
    if found:
        raise typer.Exit(1)


def rehearse(spec: RunSpec, root: Path, as_json: bool) -> None:
    """Print what a run would be."""
    from llm_adapters_lab.runs.preview import dry_run

    found = dry_run(spec, root)
    if as_json:
        print_json(found.as_json())
        return
    places = ", ".join(f"{count} {role}" for role, count in found.sites.items()) or "the whole model"
    unknown = "unknown"
    facts = {
        "run": f"{found.id} ({found.state})",
        "base": f"{spec.base}: {found.base_parameters:,} parameters",
        "quantization": found.quantization,
        "adapter": f"{spec.adapter.type}: {found.trainable_parameters:,} parameters" if spec.adapter else "none",
        "sites": places if spec.adapter else "none",
        "rows to train on": unknown if found.rows is None else f"{found.rows:,}",
        "steps": unknown if found.steps is None else f"{found.steps:,}",
        "rows to score on": ", ".join(f"{name} {count:,}" for name, count in found.asked.items()) or "none known",
        "time": unknown if found.seconds is None else clock(found.seconds),
    }
    show_rows([{"what": name, "dry run": text} for name, text in facts.items()])
    memory = found.memory
    parts = {**vars(memory), "total": memory.total} if memory else {"weights": found.weights}
    there = {"there is": size(found.available)} if found.available else {}
    show_rows([{name: size(count) for name, count in parts.items()} | there | {"fits": "yes" if found.fits else "no"}])
    for note in found.notes:
        say(note)


def _short(value: Any) -> Any:
    """Return a hash by its beginning, and anything else as it is."""
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value
