"""What a person marks a run with, in marks.json beside its note: a star, tags, and whether it is the baseline.

Marks are no part of the record: nothing depends on them, and they are kept when a run is resumed or repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.files import write_json
from llm_adapters_lab.runs.record import Run

FILE = "marks.json"
MAX_TAGS, MAX_LENGTH = 20, 40
"""Number of tags of a run, and of characters of a tag."""


@dataclass(frozen=True)
class Marks:
    """The marks of a run.

    Attributes:
        star: whether it has a star.
        tags: short texts.
        baseline: whether it is the run that others are compared with; at most one run of a root is.
    """

    star: bool = False
    tags: tuple[str, ...] = ()
    baseline: bool = False


def marks(run: Run) -> Marks:
    """Return the marks of a run; a file that cannot be read counts as none."""
    try:
        found = json.loads((run.folder / FILE).read_text(encoding="utf-8"))
        tags = [tag for tag in found.get("tags", []) if isinstance(tag, str)]
        return Marks(found.get("star") is True, tuple(tags[:MAX_TAGS]), found.get("baseline") is True)
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return Marks()


def mark(
    run: Run, *, star: bool | None = None, tags: Sequence[str] | None = None, baseline: bool | None = None
) -> Marks:
    """Change marks of a run, and return all of them.

    Args:
        run: the run; its folder must exist.
        star: whether it has a star; None leaves that as it is, as for the others.
        tags: its tags.
        baseline: whether it is the baseline; True takes this away from all other runs under the same root.

    Raises:
        BadSpec: the run has no folder, or a tag is empty, too long, or holds a comma or a control character.
    """
    if not run.folder.is_dir():
        raise BadSpec(f"The run {run.id} has no folder for marks: it has not started, or was deleted.")
    given: dict[str, Any] = {"star": star, "tags": None if tags is None else check_tags(tags), "baseline": baseline}
    before = marks(run)
    found = replace(before, **{name: value for name, value in given.items() if value is not None})
    if found != before:
        _write(run.folder, found)
    for other in run.folder.parent.glob(f"*/{FILE}") if baseline else ():
        if other.parent.name != run.id and (own := marks(Run(other.parent))).baseline:
            _write(other.parent, replace(own, baseline=False))
    return found


def check_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Return tags without white space around them and without duplicates.

    Raises:
        BadSpec: there are too many, or one is empty, too long, or holds a comma or a control character.
    """
    found = tuple(dict.fromkeys(" ".join(tag.split(" ")).strip() for tag in tags))
    for tag in found:
        if not tag or len(tag) > MAX_LENGTH or "," in tag or not tag.isprintable():
            raise BadSpec(
                f"{tag[: MAX_LENGTH + 1]!r} cannot be a tag: a tag has 1 to {MAX_LENGTH} characters, no comma and no "
                "control character."
            )
    if len(found) > MAX_TAGS:
        raise BadSpec(f"A run has at most {MAX_TAGS} tags; given were {len(found)}.")
    return found


def _write(folder: Path, found: Marks) -> None:
    if found == Marks():
        with suppress(FileNotFoundError):
            (folder / FILE).unlink()
    else:
        write_json(folder / FILE, asdict(found))
