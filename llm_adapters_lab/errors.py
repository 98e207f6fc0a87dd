"""Every error the lab raises on purpose.

Each message says what is wrong, what was given and what to do. The command line prints it and exits with code 2;
a panel shows it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class LabError(Exception):
    """The base of all deliberate errors of the lab."""


class BadSpec(LabError, ValueError):
    """A spec or an argument names an unknown key, adapter, task or value, or a value out of its range."""


class UnknownAnatomy(LabError):
    """The model is not a decoder with recognisable layers and projections."""


class EmptyPlacement(LabError, ValueError):
    """A placement matches no site of the model, or none in some of the layers it names."""


class CannotInject(LabError):
    """The model is in a state in which an adapter would be silently ignored or wrong."""


class CannotMerge(LabError):
    """The adapter has no merged weight, or the base cannot hold one."""


class CannotConvert(LabError):
    """An adapter has a feature without a counterpart in the format it is exported to or imported from."""


class StateMismatch(LabError, ValueError):
    """Saved adapter tensors do not fit the adapter they are loaded into."""


class WrongBase(LabError, ValueError):
    """A saved adapter was trained on another base model."""


class NoView(LabError):
    """The view does not exist for this model or method, or its data were not recorded."""


class ModelUnavailable(LabError):
    """A base model could not be found or fetched."""


class DataUnavailable(LabError):
    """A data file is missing."""


class BadRow(LabError, ValueError):
    """A data row lacks a field or holds a value that the task does not know."""


class NotEnoughMemory(LabError):
    """A run needs more memory than the machine has; nothing was loaded."""


class TrainingFailed(LabError):
    """Training could not continue, for instance because the loss is no longer finite."""


class NotFinite(LabError):
    """A model's logits are nan or infinite, so that it cannot answer; `rows` are their numbers in the batch."""

    def __init__(self, text: str, rows: Sequence[int] = ()) -> None:
        """Store the message, and the rows."""
        super().__init__(text)
        self.rows = rows


class ProcessLost(LabError):
    """A process of a distributed run has ended, and the others cannot continue without it."""


class ClusterError(LabError):
    """Another machine or the shared storage does not answer, or has other versions or weights than this one."""


class CannotWrite(LabError, OSError):
    """A file, a folder or a repository of the hub cannot be written."""


def choices(given: str, known: Iterable[str]) -> str:
    """Return a sentence that offers the nearest known names, or all of them.

    Args:
        given: the name that was not found.
        known: the names that exist.
    """
    known = sorted(known)
    near = get_close_matches(given, known, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    return f"Choose one of: {', '.join(known)}."


def listed(items: Sequence[str], shown: int = 8, gap: str = "; ") -> str:
    """Return the first items for a message, and the number of the others."""
    return gap.join(items[:shown]) + (f" and {len(items) - shown} more" if len(items) > shown else "")


def shortened(message: str) -> str:
    """Return a message with the middle of very long lines, which quote the input, cut out."""
    return "\n".join(line if len(line) <= 800 else f"{line[:400]} … {line[-350:]}" for line in message.split("\n"))
