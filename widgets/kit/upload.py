"""Files from the browser, saved below the folder of the runs.

They arrive in pieces, so that the connection does not limit their size, and are never written over other files.
"""

from __future__ import annotations

import filecmp
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from llm_adapters_lab.errors import CannotWrite
from llm_adapters_lab.files import share
from llm_adapters_lab.results.formatting import size
from widgets.kit.elements import static
from widgets.kit.panel import error_text

FOLDER = ".uploads"
LIMIT = 200_000_000
"""Maximum number of bytes of a file."""


class Upload(anywidget.AnyWidget):
    """A button to choose a file; files can be dropped on it, too, or on the card around it.

    Attributes:
        label: of the button.
        accept: the endings of files, separated by commas.
        limit: maximum number of bytes.
    """

    _esm = static("upload.js")
    _css = static("data.css")
    label = traitlets.Unicode("Upload").tag(sync=True)
    accept = traitlets.Unicode("").tag(sync=True)
    limit = traitlets.Int(LIMIT).tag(sync=True)

    def __init__(
        self, root: Path, accept: str, saved: Callable[[Path, str], object], failed: Callable[[str], object]
    ) -> None:
        """Accept files.

        Args:
            root: folder of all runs.
            accept: the endings of files, separated by commas.
            saved: called with the path of every file, and what happened in words.
            failed: called with the reason why a file was not saved.
        """
        super().__init__(accept=accept)
        self._root, self._saved, self._failed = root, saved, failed
        self._part: Path | None = None
        self._size = 0
        self.on_msg(self._received)

    def close(self) -> None:
        """Remove a file that has not arrived completely."""
        self._drop()
        super().close()

    def _received(self, _: Any, message: dict[str, Any], pieces: list[Any]) -> None:
        name = str(message.get("name", ""))
        try:
            done = self._write(name, message, bytes(pieces[0]) if pieces else b"")
        except Exception as error:
            self._drop()
            self.send({"name": name, "error": True})
            self._failed(error_text(error))
            return
        self.send({"name": name, "done": done is not None})
        if done:
            self._saved(*done)

    def _write(self, name: str, message: dict[str, Any], piece: bytes) -> tuple[Path, str] | None:
        """Append a piece; with the last one, return the path of the file and what happened."""
        start, folder = int(message["from"]), self._root / FOLDER
        if start == 0:
            self._drop()
            if Path(name).suffix.lower() not in self.accept.split(","):
                raise CannotWrite(f"{name!r:.100} is no file of rows. Give one that ends in {self.accept}.")
            folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=folder, prefix=".")
            os.close(handle)
            self._part, self._size = Path(part), 0
        if self._part is None or start != self._size:
            raise CannotWrite(f"{name!r:.100} did not arrive completely. Upload it again.")
        self._size += len(piece)
        if self._size > self.limit:
            raise CannotWrite(
                f"{name!r:.100} has more than {size(self.limit)}. Copy it to this machine by other means."
            )
        with self._part.open("ab") as file:
            file.write(piece)
        if not message["last"]:
            return None
        part_of, self._part = self._part, None
        try:
            return _keep(part_of, folder, name)
        finally:
            part_of.unlink(missing_ok=True)

    def _drop(self) -> None:
        if self._part is not None:
            self._part.unlink(missing_ok=True)
            self._part = None


def _keep(part: Path, folder: Path, name: str) -> tuple[Path, str]:
    """Give a file a name of its own, or that of a file with the same content; return its path, and this in words."""
    stem, ending = re.sub(r"[^\w.-]+", "-", Path(name).stem, flags=re.ASCII).strip("-.")[:60], Path(name).suffix.lower()
    told = size(part.stat().st_size)
    for number in range(1, 1000):
        path = folder / f"{stem or 'rows'}{f'-{number}' if number > 1 else ''}{ending}"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            if filecmp.cmp(part, path, shallow=False):
                return path, f"{path.name} ({told}) was here already"
            continue
        part.replace(path)
        share(path)
        return path, f"{path.name} ({told}) saved"
    raise CannotWrite(f"There are too many files called {stem}{ending}. Give this one another name.")
