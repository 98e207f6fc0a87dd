"""Parameters of a run notebook: what papermill was given, checked, and the line that gives it the same again.

A run notebook begins with a cell tagged `parameters` whose values have annotations:

    runs: list[str] = []  # what papermill --help-notebook says of it

Papermill adds a cell with what it was given, and only warns of names that the first one does not have.
"""

from __future__ import annotations

import ast
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml
from pydantic import ConfigDict, create_model

from llm_adapters_lab.config import parse
from llm_adapters_lab.errors import BadSpec

FAST: dict[str, Any] = {
    **{"data.rows": 32, "data.validation": 4, "data.max_tokens": 128, "train.batch": 4, "train.max_steps": 2},
    **{"eval.rows": 4, "eval.max_new_tokens": 4, "eval.likelihood": False},
}
"""Changes that make of a run a matter of seconds. It shows that everything works, and measures nothing."""
LIMITS = ("--execution-timeout", "1200", "--start-timeout", "120")
"""Seconds that a cell, and the start of the kernel, may take: papermill has no limit for a cell of its own."""


def given(cells: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that are not as the notebook has them; in the notebook: ``given(In, globals())``.

    Args:
        cells: source of the cells that were run, in their order.
        values: of all names.

    Raises:
        BadSpec: a parameter is not one of the notebook's, or its value is not of the type that is named there.
    """
    declared: dict[str, ast.AnnAssign] = {}
    injected: set[str] = set()
    for cell in cells:
        with suppress(SyntaxError):  # a cell with a magic command
            lines = ast.parse(cell).body
            for line in lines:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value:
                    declared[line.target.id] = line
            if cell.startswith("# Parameters"):
                names = (name for line in lines if isinstance(line, ast.Assign) for name in line.targets)
                injected = {name.id for name in names if isinstance(name, ast.Name)}
    if not declared:
        raise BadSpec("Run the first cell with the parameters before this one.")
    types: Any = {name: (ast.unparse(line.annotation), ...) for name, line in declared.items()}
    model = create_model("Parameters", __config__=ConfigDict(extra="forbid", strict=True), **types)
    parse(model, {name: values[name] for name in {**declared, **dict.fromkeys(injected)}})
    defaults = {name: ast.literal_eval(line.value) for name, line in declared.items() if line.value}
    return {name: values[name] for name in declared if values[name] != defaults[name]}


def papermill_line(notebook: str, changed: Mapping[str, Any], out: str = "out.ipynb") -> str:
    """Return the command line that runs a notebook with parameters other than its own.

    Args:
        notebook: its path, from the top folder of the repository.
        changed: what `given` returns.
        out: the notebook it writes.
    """
    text = yaml.safe_dump(dict(changed), default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return shlex.join(["papermill", notebook, out, *(["-y", text.strip()] if changed else []), *LIMITS])
