"""The last prompts and answers of the playground, kept under the root of all runs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_adapters_lab.files import append_line, write_atomically

FILE = ".playground.jsonl"
MOST = 100
"""Number of prompts that are kept."""
LONGEST = 20_000
"""Characters of a text that are kept."""
Entry = dict[str, Any]


class PromptHistory:
    """The last prompts and answers, oldest first.

    Each is a dictionary with "at" (seconds since 1970), "question", "input", "system", "template" and "answers", a list
    of pairs of name and text.
    """

    def __init__(self, root: Path) -> None:
        """Use the file in a folder, which need not exist."""
        self._path = root / FILE

    def read(self) -> list[Entry]:
        """Return the last prompts; lines that are damaged are left out."""
        found = []
        with suppress(OSError):
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines()[-MOST:]:
                with suppress(ValueError, RecursionError):
                    if (entry := _checked(json.loads(line))) is not None:
                        found.append(entry)
        return found

    def add(self, entry: Entry) -> None:
        """Add a prompt, and forget the oldest where there are too many."""
        if not self._path.parent.is_dir() or self._path.is_symlink():
            return
        answers = [[name, text[:LONGEST]] for name, text in entry["answers"]]
        append_line(self._path, entry | {"question": entry["question"][:LONGEST], "answers": answers})
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > 2 * MOST:
            write_atomically(self._path, ("\n".join(lines[-MOST:]) + "\n").encode())

    def clear(self) -> None:
        """Forget all prompts."""
        self._path.unlink(missing_ok=True)


def _checked(found: Any) -> Entry | None:
    if not isinstance(found, dict) or not isinstance(found.get("at"), int | float):
        return None
    texts = [found.get(name, "") for name in ("question", "input", "system", "template")]
    answers = found.get("answers")
    pairs = isinstance(answers, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in answers
    )
    return found if pairs and all(isinstance(text, str) for text in texts) else None
