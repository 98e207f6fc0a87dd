"""What the command line draws: progress, tables and trees. Only `cli` uses it."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

if TYPE_CHECKING:
    from llm_adapters_lab.events import Event
    from llm_adapters_lab.runs.record import Run
    from llm_adapters_lab.runs.spec import RunSpec

# Control characters but for tab and line feed, marks that turn the direction of text, halves of characters.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
PARTS = {"training": 10, "scoring": 2}  # how often a stage reports where there is no terminal


def console() -> Console:
    """Return a console on stdout."""
    # Made anew each time, so that it writes to today's stdout. A pipe has no width: do not cut its lines.
    # Emoji off: ":llama:" is no picture.
    made = Console(highlight=False, emoji=False)
    return made if made.is_terminal else Console(highlight=False, emoji=False, width=160)


def print_json(value: Any) -> None:
    """Print plain data as JSON on one line."""
    print(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False)), flush=True)


def say(text: str) -> None:
    """Print a line as it stands, but for what a terminal would obey."""
    console().print(inert(text), markup=False, soft_wrap=True)


def inert(text: str) -> str:
    """Return text whose control characters are spelled out: what data and models say must not steer a terminal."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


class Progress:
    """Shows the events of a run: bars on a terminal, a few lines per stage anywhere else."""

    def __init__(self) -> None:
        """Make a display; it appears inside `with`."""
        self.events = 0
        self.console = console()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self.bars = Bars(*columns, console=self.console, disable=not self.console.is_terminal)
        self.tasks: dict[str, TaskID] = {}
        self.parts: dict[str, int] = {}

    def __enter__(self) -> Progress:
        """Start drawing."""
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop drawing."""
        self.bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        fields = event.to_json()
        kind = fields["event"]
        self.events += kind != "Noticed"
        if kind == "Started":
            share = fields["trainable_parameters"] / max(1, fields["base_parameters"])
            trains = f"{fields['trainable_parameters']:,} trainable parameters ({share:.2%} of the base)"
            self._print(f"{fields['id']} on {fields['device']}: {trains}")
        elif kind == "Resumed":
            where = f"its training after step {fields['step']}" if fields["stage"] == "training" else "its scoring"
            self._print(f"{fields['id']} goes on with {where}")
        elif kind == "Estimated":
            parts = ", ".join(f"{key} {size(fields[key])}" for key in ("weights", "adapter", "optimizer", "step"))
            self._print(f"memory of the training: about {size(fields['total'])} ({parts})")
        elif kind == "FellBack":
            self._print(f"{fields['setting']}: {fields['reason']}")
        elif kind == "Step":
            note = f"loss {fields['loss']:.3f}  {fields['tokens_per_second']:,.0f} tokens/s"
            self._advance("training", fields["step"], fields["steps"], f"{note}  {clock(fields['seconds_left'])} left")
        elif kind == "Validated":
            best = ", the best so far" if fields["best"] else ""
            self._print(f"validation loss {fields['loss']:.3f} after step {fields['step']}{best}")
        elif kind == "Noticed":
            self._print(fields["text"])
        elif kind == "Scoring":
            self._advance(f"scoring {fields['task']}", fields["done"], fields["total"], "")

    def _advance(self, stage: str, done: int, total: int, note: str) -> None:
        if self.bars.disable:
            part = done * PARTS[stage.partition(" ")[0]] // max(1, total)
            if self.parts.get(stage) != part or done == total:
                self._print(f"{stage} {done}/{total}  {note}".rstrip())
            self.parts[stage] = part
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(inert(stage), total=total, note=note)
        self.bars.update(self.tasks[stage], completed=done, total=total, note=note)

    def _print(self, text: str) -> None:
        self.console.print(inert(text), markup=False, soft_wrap=True)


def size(count: int) -> str:
    """Return bytes as MB, or GB from a thousand of those on."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def clock(seconds: float) -> str:
    """Return a time in seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def show_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print plain rows as a table; columns in the order in which the rows name them."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        numbers = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(
            escape(inert(column.replace("_", " "))), justify="right" if numbers else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(escape(inert(cell(row.get(column)))) for column in columns))
    console().print(table)


def cell(value: Any) -> str:
    """Return a value as the text of a table cell."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share: float | None) -> str:
    """Return a share in per cent, or a dash where it is not known."""
    return "–" if share is None else f"{100 * share:.1f} %"


def show_runs(rows: Iterable[dict[str, Any]]) -> None:
    """Print a line per run, its accuracies in one cell."""
    show_rows(
        [
            {**row, "accuracy": ", ".join(f"{t} {percent(a)}" for t, a in row["accuracy"].items()) or None}
            for row in rows
        ]
    )


def show_spec(record: Run) -> None:
    """Print the spec of a run as YAML."""
    import yaml

    say(f"# {record.id}\n" + yaml.safe_dump(record.spec.model_dump(mode="json"), sort_keys=False).rstrip())


def load_spec(path: Path, changes: Sequence[str] = ()) -> RunSpec:
    """Load a spec and change it by texts of the form key=value."""
    from llm_adapters_lab.config import assignments
    from llm_adapters_lab.runs.spec import RunSpec

    return RunSpec.load(path, assignments(changes))


class Stop(threading.Event):
    """Set by a signal; `code` is what the process then exits with."""

    code = 130


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """The first Ctrl-C or SIGTERM ends the run, saved, after the current step; the second one at once."""
    stop = Stop()

    def asked(signum: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.code = 128 + signum
        stop.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
