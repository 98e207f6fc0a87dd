"""The command that does a run again and shows what comes out otherwise."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_adapters_lab.catalogue import Json
from llm_adapters_lab.terminal import Progress, print_json, say, show_rows

SHOWN = 20


def rerun(
    run: Annotated[str, typer.Argument(help="Run id, the beginning of one, or a run folder.")],
    root: Annotated[Path, typer.Option("--root", help="Folder of all runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Do a finished run again, elsewhere, and compare to the bit; exit code 0 if all is equal, 1 if not."""
    from transformers.utils import logging

    from llm_adapters_lab.record import Run, find
    from llm_adapters_lab.rerun import rerun as do_again

    logging.disable_progress_bar()
    record = Run(Path(run)) if os.path.isfile(Path(run) / "spec.json") else find(run, root)
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


def _short(value: Any) -> Any:
    """Return a hash by its beginning, and anything else as it is."""
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value
