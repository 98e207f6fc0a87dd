"""The command line: start runs, inspect and compare them, and list what the lab offers.

Commands import what they need when they run, so that those that need no model do not wait for torch.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from types import SimpleNamespace
from typing import Any

import typer
from typer.core import TyperGroup

from llm_adapters_lab.cli import (
    export_commands,
    mark_command,
    queue_commands,
    reference_commands,
    result_commands,
    run_commands,
    shelf_command,
    sweep_commands,
)
from llm_adapters_lab.cli.arguments import join_words
from llm_adapters_lab.cli.console import inert
from llm_adapters_lab.errors import LabError, shortened
from llm_adapters_lab.privacy import without_home

COMMANDS: dict[str, Callable[..., None]] = {
    "run": run_commands.run,
    "sweep": sweep_commands.sweep,
    "benchmark": sweep_commands.benchmark,
    "queue": queue_commands.queue,
    "list": result_commands.list_runs,
    "show": result_commands.show,
    "compare": result_commands.compare,
    "losses": result_commands.losses,
    "published": result_commands.published,
    "report": result_commands.report,
    "mark": mark_command.mark,
    "rescore": result_commands.rescore,
    "rerun": run_commands.rerun,
    "export": export_commands.export,
    "merge": export_commands.merge,
    "blend": export_commands.blend,
    "shelf": shelf_command.shelf,
    "adapters": reference_commands.adapters,
    "presets": reference_commands.presets,
    "models": reference_commands.models,
    "tasks": reference_commands.tasks,
    "anatomy": reference_commands.anatomy,
    "survey": reference_commands.survey,
    "doctor": run_commands.doctor,
}


PROGRAM = "llm-adapters-lab"
"""The script for which completion is installed."""


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Turn errors of the lab, and files that cannot be read or written, into a message and exit code 2."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = _in_words(error)
            raise
        except (LabError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # of a reader like `head`
                raise
            _report(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _report(error: LabError | OSError) -> None:
    message = str(error)
    if not isinstance(error, LabError):
        message = f"{error.filename or 'The output cannot be written'}: {error.strerror or error}."
    typer.echo(f"error: {inert(shortened(without_home(message)))}", err=True)


def _in_words(error: typer.BadParameter) -> str:
    """Return what is wrong with an option without the words of pydantic, which typer passes on."""
    faults: list[Any] = getattr(error.__cause__, "errors", list)()
    if not faults:
        return error.message
    kind, limits = faults[0]["type"], faults[0].get("ctx", {})
    if "error" in limits:
        return str(limits["error"])
    from llm_adapters_lab.config import expected

    whole = kind.startswith("int") or int in map(type, limits.values())
    must = expected(int if whole else float, [SimpleNamespace(**limits)])
    return f"It must be {must}; given was {faults[0]['input']}."


app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


@app.callback()
def about() -> None:
    """Train adapters for language models, inspect them, and compare them."""


def main() -> None:
    """Run the command line."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or file without "–" gets "?"
            stream.reconfigure(errors="replace")
    try:
        if kept := join_words(os.environ):
            with redirect_stdout(io.StringIO()) as said, suppress(SystemExit):
                app(prog_name=PROGRAM)
            print("\n".join(line.removeprefix(kept) for line in said.getvalue().split("\n")))
        else:
            app(prog_name=PROGRAM)
    except OSError as error:  # of the output of --help
        _report(error)
        sys.exit(2)
