"""What the command line prints: JSON, tables that fit the terminal, and the progress of a run."""

from __future__ import annotations

import functools
import gc
import inspect
import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from llm_adapters_lab._lazy import uncollected
from llm_adapters_lab.events import LeftOut
from llm_adapters_lab.results.formatting import clock, percent, size
from llm_adapters_lab.results.formatting import texts as columns

if TYPE_CHECKING:
    from llm_adapters_lab.events import Event

# Control characters except tab and line feed, marks that change the direction of text, halves of characters.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
REPORTS = {"training": 10, "scoring": 2}
"""How often a stage prints its progress without a terminal."""
COLOURS = {
    "finished": "green",
    "running": "cyan",
    "stopping": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "dead": "red",
    "unreadable": "red",
}
GAP, WRAP, SQUEEZE = 2, 24, 10
"""Blanks between columns; the width down to which a text wraps, and the one if even the first columns do not fit."""
NAME, SHORT = 40, 14
"""The width to which names are cut so that all columns fit, and the one so that the important ones do."""
quiet: ContextVar[bool] = ContextVar("quiet", default=False)
"""Whether JSON is asked for, and nothing else may be printed."""


class Output(NamedTuple):
    """The result of a command.

    Attributes:
        value: plain data, printed by --json.
        show: prints it for a reader; default: as a table, `value` being its rows.
        code: exit code.
    """

    value: Any
    show: Callable[[], object] | None = None
    code: int = 0


def with_json(function: Callable[..., Output | None]) -> Callable[..., None]:
    """Make a function that returns an `Output` a command that prints it, as JSON if `--json` is given."""
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def command(*, as_json: bool, **given: Any) -> None:
        before = quiet.set(as_json)
        try:
            output = function(**given)
        finally:
            quiet.reset(before)
        if output is None:
            return
        if as_json:
            print_json(output.value)
        else:
            (output.show or functools.partial(show_rows, output.value))()
        if output.code:
            raise typer.Exit(output.code)

    option = typer.Option("--json", help="Print JSON on one line instead of tables.")
    kind = inspect.Parameter.KEYWORD_ONLY
    as_json = inspect.Parameter("as_json", kind, default=False, annotation=Annotated[bool, option])
    taken = [*signature.parameters.values(), as_json]
    command.__signature__ = signature.replace(parameters=taken, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in taken}
    return command


@contextmanager
def loading() -> Iterator[None]:
    """Import what runs need without looking for garbage, and never look through it again: both would take a second."""
    with uncollected():
        yield
        gc.freeze()


def no_bars() -> None:
    """Keep transformers from drawing progress bars of its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def console() -> Console:
    """Return a console on the current stdout. Without a terminal lines have no limit."""
    # Emoji off: ":llama:" is no picture.
    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 10_000)


def print_json(value: Any) -> None:
    """Print plain data as JSON on one line."""
    print(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False)), flush=True)


def say(text: str) -> None:
    """Print text as it stands, except for what would control a terminal."""
    console().print(inert(text), markup=False, soft_wrap=True)


def remark(text: str) -> None:
    """Print a sentence, wrapped at blanks on a terminal."""
    console().print(inert(text), markup=False)


def inert(text: str) -> str:
    """Return text with control characters spelled out: what data and models say must not steer a terminal."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def show_rows(rows: Sequence[dict[str, Any]], *, keep: int = 1, cut: str = "") -> list[str]:
    """Print plain rows as a table, the most important columns first; return the columns that were left out.

    On a terminal texts wrap at blanks, and columns that still do not fit are left out, the last ones first. Without a
    terminal everything is printed, one line a row.

    Args:
        rows: dicts; a column is shown in the order in which the rows name it.
        keep: number of columns that are always shown, as far as possible.
        cut: column that may be cut, so that every row has one line and nothing else is broken.
    """
    screen = console()
    table, width, left_out = as_table(rows, screen.width, keep=keep, cut=cut)
    screen.width = max(screen.width, width)  # the terminal breaks what is longer than its lines
    screen.print(table, crop=False)
    if left_out:
        remark(f"Not shown: {', '.join(left_out)}. Use a wider terminal, a pipe or --json to see everything.")
    return left_out


def as_table(
    rows: Sequence[dict[str, Any]], room: int, *, keep: int = 1, cut: str = ""
) -> tuple[Table, int, list[str]]:
    """Return the table of `show_rows` for a terminal of `room` columns, its width, and the columns left out."""
    texts = {name: list(map(inert, column)) for name, column in columns(rows).items()}
    titles = {name: inert(name.replace("_", " ")) for name in texts}
    full = {n: max(cell_len(line) for text in [titles[n], *texts[n]] for line in text.split("\n")) for n in texts}
    width = _one_line(full, room, keep, cut) if cut else _wrapped(titles, texts, full, room, keep)
    spare = room + GAP - sum(each + GAP for each in width.values())
    while spare > 0 and (growing := [name for name in width if width[name] < full[name]]):
        width[min(growing, key=width.__getitem__)] += 1
        spare -= 1
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for name in width:
        number = all(re.fullmatch(r"–|[-+]?[\d.,]+(e-\d+)?%?|\d+(:\d\d)+", text) for text in texts[name])
        table.add_column(
            Text(titles[name]),
            width=width[name],
            justify="right" if number else "left",
            no_wrap=bool(cut),
            overflow="ellipsis" if cut else "fold",
        )
    if cut in width:
        texts[cut] = [_shortened(text, width[cut]) for text in texts[cut]]
    for row in zip(*(texts[name] for name in width), strict=True):
        table.add_row(*(Text(text, COLOURS.get(text, "")) for text in row))
    return table, sum(each + GAP for each in width.values()), [name for name in texts if name not in width]


def _shortened(text: str, room: int) -> str:
    """Return a name that is too long without its middle: its last word, such as the seed, tells runs apart."""
    end = text.rpartition(" ")[2]
    if cell_len(text) <= room or len(text) > cell_len(text) or not 0 < len(end) <= room // 3:
        return text
    return f"{text[: room - len(end) - 2].rstrip()}… {end}"


def _fits(width: Mapping[str, int], room: int) -> bool:
    return sum(width.values()) + GAP * (len(width) - 1) <= room


def _one_line(full: Mapping[str, int], room: int, keep: int, cut: str) -> dict[str, int]:
    """Return the widths of the columns that fit if `cut` may be cut: to NAME, for the first ones to SHORT."""
    width = dict(full)
    for longest, least in ((NAME, keep), (SHORT, 2)):
        width[cut] = min(full[cut], longest)
        while not _fits(width, room) and len(width) > least:
            width.popitem()
    if not _fits(width, room):  # what remains is what names a row
        del width[cut]
    return width


def _wrapped(
    titles: Mapping[str, str], texts: Mapping[str, list[str]], full: Mapping[str, int], room: int, keep: int
) -> dict[str, int]:
    """Return the widths of the columns that fit if texts wrap at blanks."""
    words = {n: max(map(cell_len, " ".join([titles[n], *texts[n]]).split()), default=0) for n in texts}
    width: dict[str, int] = {}
    for narrow, names in ((WRAP, list(texts)), (SQUEEZE, list(texts)[:keep])):
        width = {name: min(full[name], max(narrow, words[name])) for name in names}
        while not _fits(width, room) and len(width) > keep:
            width.popitem()
        if _fits(width, room):
            return width
    first = next(iter(width))
    width[first] = max(SQUEEZE, width[first] + room - sum(width.values()) - GAP * (len(width) - 1))
    return width


class Progress(ExitStack):
    """Shows the events of a run: bars on a terminal, a few lines for each stage otherwise, nothing with --json."""

    def __init__(self) -> None:
        """Start drawing; the end of a `with` ends it."""
        super().__init__()
        self.events, self.quiet = 0, quiet.get()
        self.console = console()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        shown = self.console.is_terminal and not self.quiet
        self.bars = self.enter_context(Bars(*columns, console=self.console, disable=not shown))
        self.tasks: dict[str, TaskID] = {}
        self.parts: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        fields = event.to_json()
        kind = fields["event"]
        self.events += kind != "Noticed"
        if kind == "Started":
            share = fields["trainable_parameters"] / max(1, fields["base_parameters"])
            trains = f"{fields['trainable_parameters']:,} trainable parameters ({percent(share, 2)} of the base)"
            self._print(f"{fields['id']} on {fields['device']}: {trains}")
        elif kind == "Resumed":
            where = f"training after step {fields['step']}" if fields["stage"] == "training" else "scoring"
            self._print(f"{fields['id']} resumes {where}")
        elif kind == "Estimated":
            parts = ", ".join(f"{key} {size(fields[key])}" for key in ("weights", "adapter", "optimizer", "step"))
            self._print(f"memory of the training: about {size(fields['total'])} ({parts})")
        elif kind == "FellBack":
            self._print(f"{fields['setting']}: {fields['reason']}")
        elif kind == "Step":
            measures = "".join(f"{name} {value:.3f}  " for name, value in fields["measures"].items())
            note = f"loss {fields['loss']:.3f}  {measures}{fields['tokens_per_second']:,.0f} tokens/s"
            self._advance("training", fields["step"], fields["steps"], f"{note}  {clock(fields['seconds_left'])} left")
        elif kind == "Validated":
            best = ", the best so far" if fields["best"] else ""
            self._print(f"validation loss {fields['loss']:.3f} after step {fields['step']}{best}")
        elif isinstance(event, LeftOut):
            self._print(event.text)
        elif kind == "Noticed":
            self._print(fields["text"])
        elif kind == "Scoring":
            self._advance(f"scoring {fields['task']}", fields["done"], fields["total"], "")

    def _advance(self, stage: str, done: int, total: int, note: str) -> None:
        if self.bars.disable:
            part = done * REPORTS[stage.partition(" ")[0]] // max(1, total)
            if self.parts.get(stage) != part or done == total:
                self._print(f"{stage} {done}/{total}  {note}".rstrip())
            self.parts[stage] = part
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(inert(stage), total=total, note=note)
        self.bars.update(self.tasks[stage], completed=done, total=total, note=note)

    def _print(self, text: str) -> None:
        if not self.quiet:
            self.console.print(inert(text), markup=False, soft_wrap=True)


class Stop(threading.Event):
    """Set by a signal; `code` is the exit code that belongs to it."""

    code = 130


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Stop and save after the current step on the first Ctrl-C or SIGTERM; interrupt at once on the second."""
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
