"""The command line: start runs, look at them, compare them, and ask what there is.

Commands import what they need when they run, so that `--help` does not wait for torch. Those that tell what the lab has
to offer are in `catalogue`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from llm_adapters_lab.cli import console, export_commands, list_commands, run_commands, sweep_commands
from llm_adapters_lab.cli.list_commands import Json
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.privacy import without_home

if TYPE_CHECKING:
    from llm_adapters_lab.runs.record import Run


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Turn the lab's own errors into a message and exit code 2."""
        try:
            return super().invoke(ctx)
        except LabError as error:
            typer.echo(f"error: {console.inert(without_home(str(error)))}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
Root = Annotated[Path, typer.Option("--root", help="Folder of all runs.")]
RUN_HELP = "Run id, the beginning of one, a run folder, a spec file or a name that `presets` lists."


def main() -> None:
    """Run the command line."""
    app(prog_name="llm_adapters_lab")


@app.callback()
def about() -> None:
    """LLM Adapters Lab: choose an adapter, train it, look inside, compare."""


@app.command("run")
def run_command(
    spec: Annotated[Path, typer.Argument(help="Spec file, YAML or JSON, or a name that `presets` lists.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. adapter.rank=16.")
    ] = None,
    root: Root = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again even if the result is there.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what it would be; no weight is read.")] = False,
    as_json: Json = False,
) -> None:
    """Do a run, or read its result if it has been done."""
    wanted = console.load_spec(spec, changes or [])
    if dry:
        run_commands.rehearse(wanted, root, as_json)
        return
    from transformers.utils import logging

    from llm_adapters_lab.cli import tables
    from llm_adapters_lab.runs.execution import run

    logging.disable_progress_bar()
    leads = os.environ.get("RANK", "0") == "0"  # the others of several processes have nothing to show
    with console.stop_on_signal() as stop:
        if as_json or not leads:
            record = run(wanted, root=root, fresh=fresh, stop=stop)
        else:
            with console.Progress() as progress:
                record = run(wanted, root=root, fresh=fresh, stop=stop, on_event=progress)
            if not progress.events and record.done:
                console.say("This run has been done before; --fresh does it again.")
    if as_json and leads:
        console.print_json(record.summary)
    elif leads:
        tables.show_result(record)
    # A network file system may show the others an older state of the record.
    if not (record.done if leads else not stop.is_set()):
        raise typer.Exit(stop.code if stop.is_set() else 1)


@app.command("list")
def list_command(root: Root = Path("runs"), as_json: Json = False) -> None:
    """List the runs under a folder, oldest first."""
    from llm_adapters_lab.runs.record import list_runs

    rows = [_brief(record) for record in list_runs(root)]
    if as_json:
        console.print_json(rows)
    elif rows:
        console.show_runs(rows)
    else:
        console.say(f"There are no runs under {root} yet.")


@app.command()
def show(run: Annotated[str, typer.Argument(help=RUN_HELP)], root: Root = Path("runs"), as_json: Json = False) -> None:
    """Show what a run was asked to do and what came of it."""
    from llm_adapters_lab.cli import tables

    record = _find(run, root)
    if as_json:
        spec = record.spec.model_dump(mode="json")
        console.print_json({"id": record.id, "folder": str(record.folder), "spec": spec, "summary": record.summary})
    else:
        console.show_spec(record)
        tables.show_result(record)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help=RUN_HELP)],
    root: Root = Path("runs"),
    html: Annotated[Path | None, typer.Option(help="Also write a report with curves to this file.")] = None,
    paper: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help="Add the published figures of a row, e.g. llama-7b-lora.")
    ] = None,
    items: Annotated[bool, typer.Option("--items", help="List the items that only one of two runs got right.")] = False,
    as_json: Json = False,
) -> None:
    """Compare runs in one table, the first with each other item by item, and perhaps in an HTML report."""
    from llm_adapters_lab.cli import tables
    from llm_adapters_lab.results import paired_tests, seed_groups
    from llm_adapters_lab.results.comparison import compare, task_names
    from llm_adapters_lab.results.published_results import published

    chosen = [_find(name, root) for name in names]
    beside = [row for name in paper or () for row in published(name, task_names(chosen))]
    found = {
        "rows": compare(chosen),
        "paper": beside,
        "pairs": paired_tests.pairs(chosen),
        "seeds": seed_groups.seeds(chosen),
    }
    if items:
        found["items"] = [row for other in chosen[1:] for row in paired_tests.disagreements(chosen[0], other)]
    if html:
        from llm_adapters_lab.results.reports import report

        report(chosen, html)
    if as_json:
        console.print_json(found)
        return
    tables.show_comparison(found["rows"] + found["paper"])
    if found["pairs"]:
        tables.show_pairs(found["pairs"])
    if found["seeds"]:
        tables.show_seeds(found["seeds"])
    if items:
        console.show_rows([{key: row[key] for key in row if key != "prompt"} for row in found["items"]])
    if html:
        console.say(f"report: {html}")


@app.command()
def rescore(
    run: Annotated[str, typer.Argument(help=RUN_HELP)],
    extraction: Annotated[str, typer.Option(help="How the stored answers are read: lab or original.")] = "original",
    root: Root = Path("runs"),
    as_json: Json = False,
) -> None:
    """Read the stored answers of a run by another rule; no model is loaded and nothing is written."""
    from llm_adapters_lab.cli import tables
    from llm_adapters_lab.results.rescoring import rescore as read_again

    if extraction not in ("lab", "original"):
        raise BadSpec(f"--extraction {extraction!r} is neither lab nor original.")
    record = _find(run, root)
    scores = read_again(record, "lab" if extraction == "lab" else "original")
    if as_json:
        console.print_json(scores)
    else:
        tables.show_rescored(record.summary["scores"], scores)


@app.command("report")
def report_command(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help=RUN_HELP)],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("report.html"),
    root: Root = Path("runs"),
) -> None:
    """Write an HTML report of one run or several that needs no network."""
    from llm_adapters_lab.results.reports import report

    console.say(f"report: {report([_find(name, root) for name in names], out)}")


@app.command()
def doctor(
    spec: Annotated[Path | None, typer.Argument(help="Spec file or name: also say what its training needs.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of it.")] = None,
    as_json: Json = False,
) -> None:
    """Say what is chosen on this machine and why, and how much memory a run will need."""
    from llm_adapters_lab.runs.forecast import doctor

    found = doctor.choices()
    taken, memory = doctor.examine(console.load_spec(spec, changes or ())) if spec else ([], None)
    if as_json:
        console.print_json(doctor.as_json(found, taken, memory))
        return
    console.show_rows([vars(choice) for choice in (*found, *taken)])
    if memory:
        console.show_rows(
            [{part: console.size(count) for part, count in (*vars(memory).items(), ("total", memory.total))}]
        )
        console.say(f"of {console.size(doctor.memory_of_machine())}; the interpreter and libraries come on top")
    elif spec:
        console.say("Its memory cannot be told beforehand: the model decides by numbers what it computes.")


_TOLD = (
    list_commands.adapters,
    list_commands.presets,
    list_commands.models,
    list_commands.tasks,
    list_commands.anatomy,
)
_OTHERS: tuple[Callable[..., None], ...] = (
    sweep_commands.sweep,
    *_TOLD,
    export_commands.export,
    export_commands.merge,
    run_commands.rerun,
)
for _command in _OTHERS:
    app.command()(_command)


def _find(name: str, root: Path) -> Run:
    from llm_adapters_lab.runs.presets import is_spec
    from llm_adapters_lab.runs.record import Run, find_run

    path = Path(name)
    if is_spec(name):
        return find_run(console.load_spec(path).id, root)
    return Run(path) if os.path.isfile(path / "spec.json") else find_run(name, root)


def _brief(record: Run) -> dict[str, Any]:
    try:
        spec, summary = record.spec, record.summary
    except BadSpec:
        none = dict.fromkeys(("base", "adapter", "at", "trainable"))
        return {"id": record.id, "status": "unreadable spec", **none, "accuracy": {}}
    return {
        "id": record.id,
        "status": summary["status"],
        "base": spec.base,
        "adapter": spec.adapter.type if spec.adapter else None,
        "at": spec.adapter.at if spec.adapter else None,
        "trainable": summary.get("trainable_parameters"),
        "accuracy": {task: score["accuracy"] for task, score in summary.get("scores", {}).items()},
    }
