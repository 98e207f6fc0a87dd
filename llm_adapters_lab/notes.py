"""Notes: what a person has written about a run, kept beside its record and when the run is done again."""

from __future__ import annotations

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.record import Run, write_atomically


def note(run: Run) -> str:
    """Return the note about a run; "" for none."""
    try:
        return (run.folder / "note.txt").read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""


def write_note(run: Run, text: str) -> None:
    """Keep a note about a run, in place of the one before; "" for none.

    Raises:
        BadSpec: the run has no folder.
    """
    if not run.folder.is_dir():
        raise BadSpec(f"The run {run.id} has no folder that could hold a note. It has not begun, or is deleted.")
    write_atomically(run.folder / "note.txt", (text.strip() + "\n").encode())
