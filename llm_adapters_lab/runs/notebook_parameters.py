"""The parameters of a run notebook: check what papermill passed, and print the command line that repeats it.

A run notebook starts with a cell tagged `parameters`, in which each value has a type annotation:

    runs: list[str] = []  # shown by papermill --help-notebook

Papermill adds a cell with the values it was given; it only warns about names that are not in the first cell.
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
"""Changes that shorten a run to seconds. Such a run shows that everything works; its scores mean nothing."""
LIMITS = ("--execution-timeout", "1200", "--start-timeout", "120")
"""Time limits in seconds for a cell and for starting the kernel; by default papermill has none for cells."""


def given(cells: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters whose values differ from the notebook's own; in a notebook, ``given(In, globals())``.

    Args:
        cells: sources of the executed cells, in order.
        values: the notebook's global variables.

    Raises:
        BadSpec: there is no such parameter, or its value has the wrong type.
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
    """Return the papermill command line that runs a notebook with changed parameters.

    Args:
        notebook: its path relative to the root of the repository.
        changed: what `given` returns.
        out: the notebook it writes.
    """
    text = yaml.safe_dump(dict(changed), default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return shlex.join(["papermill", notebook, out, *(["-y", text.strip()] if changed else []), *LIMITS])
