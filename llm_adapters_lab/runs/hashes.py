"""The hashes of everything that decides the result of a run, and what has changed since."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from llm_adapters_lab.core.fingerprint import base_hash
from llm_adapters_lab.core.saved_adapters import digests, looking_in
from llm_adapters_lab.models.source import Source
from llm_adapters_lab.runs.base_files import changed_since, file_hashes
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.rows import Rows
from llm_adapters_lab.runs.spec import RunSpec


def all_hashes(plan: Source, base_print: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """Return the hashes of everything that decides the result of a run: base, rows and the files of the base."""
    return {"base": base_hash(base_print), "data": rows.digests(), **file_hashes(plan)}


def adapter_hashes(spec: RunSpec, root: Path) -> dict[str, Any]:
    """Return the digests of the saved adapters that a spec names, under "adapters"; {} if it names none."""
    with looking_in(root):
        found = digests(spec.adapter) if spec.adapter else {}
    return {"adapters": found} if found else {}


def outdated(record: Run) -> str:
    """Return a warning if the files of a base have changed since a finished run; else ""."""
    names = changed_since(record, partial(adapter_hashes, record.spec, record.folder.parent))
    if not names:  # also if they are missing or damaged: the result is still valid
        return ""
    return (
        f"In {record.spec.base}, {' and '.join(names)} changed since the run {record.id}, whose result belongs to the "
        "earlier files. Run it again with --fresh (fresh=True), or keep the changed base in a folder of its own."
    )
