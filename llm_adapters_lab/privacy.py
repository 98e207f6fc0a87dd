"""Keep the user's name and home folder out of records, and unusable names out of paths."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llm_adapters_lab.errors import BadSpec

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
HOME = os.path.expanduser("~").rstrip("/")
"""Home folder; empty where it is the root of all, and no name either."""


def tilde(path: str) -> str:
    """Return a path, or the name of a task that begins with one, with "~" for the home folder.

    Records and reports are passed on: they shall not tell whose machine they come from.
    """
    return re.sub(rf"^(own:)?{re.escape(HOME)}(?=/|$)", r"\1~", path) if HOME else path


def without_home(text: str) -> str:
    """Return text, such as that of an error, with "~" wherever it names the home folder."""
    return re.sub(rf"(?<![\w/.~-]){re.escape(HOME)}(?![\w.-])", "~", text) if HOME else text


def to_write(path: str | Path) -> Path:
    """Return a path that a file or folder can have.

    Raises:
        BadSpec: it holds a control character, or a name in it is too long.
    """
    if not str(path).isprintable():
        raise BadSpec(f"{str(path)!r} cannot be written to: the name holds a control character. Choose another.")
    if any(len(os.fsencode(part)) > 255 for part in Path(path).parts):
        raise BadSpec(f"{path!s:.60}... cannot be written to: the name is too long. Choose a shorter one.")
    return Path(path)


def pickles(folder: str | Path) -> str:
    """Return the names of the files in a folder that may be pickles, for a message; "none" for none."""
    return ", ".join(sorted(file.name for file in Path(folder).glob("*") if file.suffix in PICKLES)) or "none"
