"""Keep the home folder out of records, unusable names out of paths, and pickles closed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llm_adapters_lab.errors import BadSpec

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
HOME = os.path.expanduser("~").rstrip("/")
"""Home folder; empty if it is the root of the file system, which identifies no user."""


def tilde(path: str) -> str:
    """Return a path, or a task name ``own:<path>``, with "~" for the home folder.

    Records and reports are shared; they must not reveal the user's name.
    """
    return re.sub(rf"^(own:)?{re.escape(HOME)}(?=/|$)", r"\1~", path) if HOME else path


def without_home(text: str) -> str:
    """Return text, such as an error message, with "~" for the home folder wherever it occurs."""
    return re.sub(rf"(?<![\w/.~-]){re.escape(HOME)}(?![\w.-])", "~", text) if HOME else text


def to_write(path: str | Path) -> Path:
    """Return `path` if a file or folder can be written there.

    Raises:
        BadSpec: it contains a control character, or a name in it is too long.
    """
    if not str(path).isprintable():
        raise BadSpec(f"{str(path)!r} cannot be written to: the name contains a control character. Choose another.")
    if any(len(os.fsencode(part)) > 255 for part in Path(path).parts):
        raise BadSpec(f"{path!s:.60}... cannot be written to: the name is too long. Choose a shorter one.")
    return Path(path)


def pickles(folder: str | Path) -> str:
    """Return the names of the files in a folder that may be pickles, for a message; "none" if there are none."""
    return ", ".join(sorted(file.name for file in Path(folder).glob("*") if file.suffix in PICKLES)) or "none"
