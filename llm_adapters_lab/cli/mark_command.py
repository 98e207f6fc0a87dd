"""The command that marks a run: mark."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llm_adapters_lab.cli.arguments import Root, RunName, find
from llm_adapters_lab.cli.console import Output, say, with_json


@with_json
def mark(
    run: RunName,
    star: Annotated[bool | None, typer.Option("--star/--no-star", help="Give it a star, or remove it.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Add a tag. May be repeated.")] = None,
    untag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Remove a tag. May be repeated.")] = None,
    baseline: Annotated[
        bool | None, typer.Option("--baseline/--no-baseline", help="Make it the baseline of its root, or stop that.")
    ] = None,
    note: Annotated[str | None, typer.Option(metavar="TEXT", help='Its new note, Markdown; "" removes it.')] = None,
    root: Root = Path("runs"),
) -> Output:
    """Star or tag a run, make it the baseline, or write a note on it.

    Without options, its marks are shown. Marks can be filtered by: list --filter 'star=true tag=good'.
    """
    from llm_adapters_lab.runs import marks, record

    found = find(run, root)
    before = marks.marks(found)
    tags = [kept for kept in (*before.tags, *(tag or ())) if kept not in (untag or ())]
    now = marks.mark(found, star=star, tags=tags if tag or untag else None, baseline=baseline)
    if note is not None:
        record.write_note(found, note)
    text = record.note(found)

    def show() -> None:
        words = ["★"] * now.star + ["baseline"] * now.baseline + [f"#{name}" for name in now.tags]
        say(f"{found.id}: {' '.join(words) or 'no star, no tags'}")
        if text:
            say(text)

    return Output({"id": found.id, **asdict(now), "note": text}, show)
